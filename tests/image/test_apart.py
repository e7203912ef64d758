"""Strangers' ELF files are read in a child: what may it do, and what becomes of an answer when it dies?"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from splitlock.host.explain.based import Based
from splitlock.host.explain.line import explain
from splitlock.image import child
from splitlock.image.apart import Symbols
from splitlock.image.symbols import Frame
from splitlock.linux.log import parse
from splitlock.report.watch_text import render

SOURCE = """
int counter = 3;
__attribute__((noinline)) int worker(int *at) { __sync_fetch_and_add(at, 3); return *at; }
int main(void) { return worker(&counter); }
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, int, int]:
    """A program, the address of worker(), and of its locked instruction."""
    folder = tmp_path_factory.mktemp("apart")
    (folder / "made.c").write_text(SOURCE)
    path = str(folder / "made")
    subprocess.run(["gcc", "-g", "-O2", "-no-pie", "-o", path, folder / "made.c"], check=True)
    names = subprocess.check_output(["nm", path], text=True).splitlines()
    code = subprocess.check_output(["objdump", "-d", "--no-show-raw-insn", path], text=True).splitlines()
    worker = next(int(line.split()[0], 16) for line in names if line.endswith(" worker"))
    return path, worker, next(int(line.split(":")[0], 16) for line in code if "\tlock " in line)


@pytest.fixture(autouse=True)
def own_child() -> Iterator[None]:
    """Each test begins with none, and leaves none."""
    for reader in list(child.readers):
        reader.end("the test")
    yield
    for reader in list(child.readers):
        reader.end("the test")


def before_each_question(monkeypatch: pytest.MonkeyPatch, do: Callable[[child.Reader], object]) -> None:
    """Something befalls the child when it is asked for names; not when the symbol table alone is asked for."""
    ask, opened = child.Reader.ask, child.Reader.open
    plain: set[int] = set()

    def opens(self: child.Reader, descriptor: int, name: str, **how: bool) -> int:
        number = opened(self, descriptor, name, **how)
        if how["plain"]:
            plain.add(self.pid)
        return number

    def asks(self: child.Reader, what: str, number: int, about: int | str) -> object:
        if self.pid not in plain:
            do(self)
        return ask(self, what, number, about)

    monkeypatch.setattr(child.Reader, "open", opens)
    monkeypatch.setattr(child.Reader, "ask", asks)


def test_one_child_without_rights_for_many_files(program: tuple[str, int, int]) -> None:
    path, worker, _ = program
    assert Symbols(path).section(worker) == ".text"
    pids = set()
    for _ in range(30):
        with Symbols(path) as image:
            assert [frame.function for frame in image.frames(worker)] == ["worker"]
            pids.add(child.readers[0].pid)
    (pid,) = pids
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert status["NoNewPrivs"].strip() == "1"
    assert int(status["Uid"].split()[0]) == (os.getuid() or 65534)
    if not os.getuid():
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
        assert status["Groups"].strip() == ""
    limits = dict(re.findall(r"^(Max .*?)  +(\S+)", Path(f"/proc/{pid}/limits").read_text(), re.M))
    assert [limits[f"Max {name}"] for name in ("file size", "processes", "core file size")] == ["0"] * 3
    assert all(limits[f"Max {name}"].isdigit() for name in ("cpu time", "address space", "data size"))
    opened = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
    assert sum(name == path for name in opened) <= 2  # what was closed is forgotten
    assert not [name for name in opened if not name.startswith(("/dev/null", "socket:", path, "pipe:"))]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_that_may_not_become_another_user(program: tuple[str, int, int]) -> None:
    """In a container, or in a service with few capabilities: the child has none of them."""
    script = (
        "import sys; from splitlock.image import apart, child; image = apart.Symbols(sys.argv[1]);"
        "print(image.frames(int(sys.argv[2]))[0].function, image.failure);"
        "print(open(f'/proc/{child.readers[0].pid}/status').read())"
    )
    command = ["setpriv", "--bounding-set=-setuid,-setgid,-sys_admin", sys.executable, "-c", script]
    said = subprocess.check_output([*command, program[0], str(program[1])], text=True)
    assert said.startswith("worker \n")
    status = dict(re.findall(r"^(\w+):\s*(.*)$", said, re.M))
    assert (status["Uid"].split()[1], status["NoNewPrivs"]) == ("0", "1")
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == int(status["CapAmb"], 16) == 0


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGXCPU, signal.SIGKILL])
def test_the_child_dies(program: tuple[str, int, int], monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    path, worker, _ = program
    with monkeypatch.context() as patched, Symbols(path) as image:
        before_each_question(patched, lambda reader: os.kill(reader.pid, number))
        assert image.frames(worker) == [Frame("worker", None, False)]  # the symbol table's word
        assert image.failure == f"killed by signal {int(number)}"
        assert f"cannot say: libdw could not read {path} (killed by signal {int(number)})" in image.trouble
        assert image.section(worker) == ".text"
    with Symbols(path) as other:  # another file is read by another child
        assert other.frames(worker)[0].source == str(Path(path).with_suffix(".c")) + ":3"
        assert not other.trouble


def test_the_child_does_not_answer(program: tuple[str, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    path, worker, _ = program
    monkeypatch.setattr(child, "_WAIT", 1.0)
    before_each_question(monkeypatch, lambda reader: os.kill(reader.pid, signal.SIGSTOP))
    image = Symbols(path)
    assert image.frames(worker) == [Frame("worker", None, False)]
    assert image.failure == "no answer within 1 s"


def test_without_a_demangler(program: tuple[str, int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.joinpath("pycxxfilt.py").write_text("raise ImportError")
    monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])
    image = Symbols(program[0])
    assert [frame.function for frame in image.frames(program[1])] == ["worker"]
    assert not image.failure


@pytest.mark.parametrize(
    ("program_of_child", "said"),
    [
        ("/nowhere/python", "no process for it: No such file or directory"),
        ("exit 3", "ended with status 3"),  # a package of ours is missing, or a library
        ("kill -9 $$", "killed by signal 9"),  # no memory
    ],
)
def test_no_child_at_all(
    program: tuple[str, int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program_of_child: str, said: str
) -> None:
    """That is said as it is, and no file is blamed for it."""
    path, worker, locked = program
    if not program_of_child.startswith("/"):
        (tmp_path / "python").write_text(f"#!/bin/sh\n{program_of_child}\n")
        (tmp_path / "python").chmod(0o755)
        program_of_child = str(tmp_path / "python")
    monkeypatch.setattr("sys.executable", program_of_child)
    image = Symbols(path)
    assert image.frames(worker) == []
    assert image.failure == said
    line = parse(f"x86/split lock detection: #AC: made/77 took a split_lock trap at address: 0x{locked:x}")
    assert line is not None
    os.utime(path, (0, random.random() * 1e9))  # another file: the last ones are kept
    event = explain(line, Based(path))
    assert event.cause == "unread"
    assert event.place is not None
    assert event.place.function is None
    shown = " ".join(render(event).split())
    assert f"{path} was not read: the process that reads ELF files does not start ({said})." in shown
    assert "Functions and source lines are not known." in shown
    assert "damaged" not in shown


def test_a_child_that_died_between_two_files(program: tuple[str, int, int]) -> None:
    """It has not read the second one, which another child reads as if nothing had been."""
    path, worker, _ = program
    with Symbols(path) as first, Symbols(path) as second:
        assert first.section(worker) == ".text"
        os.kill(child.readers[0].pid, signal.SIGKILL)
        assert second.frames(worker)[0].source
        assert not second.failure


def test_neither_way_reads_it(program: tuple[str, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    path, worker, _ = program
    ask = child.Reader.ask

    def asks(self: child.Reader, *words: int | str) -> object:
        os.kill(self.pid, signal.SIGSEGV)
        return ask(self, *words)  # type: ignore[arg-type]

    monkeypatch.setattr(child.Reader, "ask", asks)
    image = Symbols(path)
    assert image.frames(worker) == []
    assert "neither libdw nor a reader of symbol tables" in image.trouble
    assert "by its symbol table alone" not in image.trouble


def test_an_answer_that_makes_no_sense_is_none(program: tuple[str, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a child may say that somebody else runs: any JSON."""
    rng = random.Random(23)

    def value(depth: int) -> object:
        kind = rng.randrange(8 if depth else 6)
        if kind >= 6:
            inner = [value(depth - 1) for _ in range(rng.randrange(4))]
            return inner if kind == 6 else {str(each): each for each in inner}
        return [None, True, rng.randrange(1 << 70), 0.5, "x\ny", -1][kind]

    path, worker, _ = program
    for _ in range(500):
        said = value(3)
        with monkeypatch.context() as patched, Symbols(path) as image:
            patched.setattr(child.Reader, "_exchange", lambda *_, said=said: said)
            for frame in image.frames(worker):
                assert all(each is None or isinstance(each, str) for each in frame[:2])
            assert all(isinstance(each, int) for pair in image.named("worker") for each in pair)
            data = image.data(worker)
            assert data is None or tuple(map(type, data)) == (str, int, str)
            assert image.section(worker) is None or isinstance(image.section(worker), str)


def test_after_ctrl_c_no_answer_is_another_question_s(
    program: tuple[str, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, worker, _ = program
    image = Symbols(path)
    assert image.section(worker) == ".text"
    with monkeypatch.context() as patched:
        patched.setattr(child.Reader, "_received", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            image.data(worker)
    assert [frame.function for frame in image.frames(worker)] == ["worker"]
    assert not image.failure


def test_a_fork_has_a_child_of_its_own(program: tuple[str, int, int]) -> None:
    path, worker, _ = program
    image = Symbols(path)
    assert image.section(worker) == ".text"
    pid = os.fork()
    if not pid:
        right = image.frames(worker)[0].function == "worker" and child.readers[0].owner == os.getpid()
        os._exit(0 if right else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert [frame.function for frame in image.frames(worker)] == ["worker"]


def test_damaged_files_as_well(program: tuple[str, int, int], tmp_path: Path) -> None:
    path, worker, _ = program
    good, rng = Path(path).read_bytes(), random.Random(7)
    for _ in range(40):
        data = bytearray(good)
        for _ in range(rng.choice((4, 64, 256))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        (tmp_path / "bad").write_bytes(data)
        with Symbols(str(tmp_path / "bad")) as image:
            assert isinstance(image.frames(worker), list)
            image.data(worker), image.section(worker), image.named("worker")
            assert not image.failure or "cannot say" in image.trouble


def test_explain_says_it(program: tuple[str, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    path, _, locked = program
    line = parse(f"x86/split lock detection: #AC: made/77 took a split_lock trap at address: 0x{locked:x}")
    assert line is not None
    os.utime(path, (0, random.random() * 1e9))  # another file: the last ones are kept
    event = explain(line, Based(path))
    assert event.place is not None
    assert event.cause is None
    assert event.place.source == str(Path(path).with_suffix(".c")) + ":3"
    os.utime(path, (0, random.random() * 1e9))  # another file: the last ones are kept
    before_each_question(monkeypatch, lambda reader: os.kill(reader.pid, signal.SIGSEGV))
    event = explain(line, Based(path))
    assert event.place is not None
    assert event.cause == "unread"
    assert (event.place.function, event.place.source) == ("worker", None)
    said = " ".join(render(event).split())
    assert f"cannot say: libdw could not read {path} (killed by signal 11)." in said
    assert "install it again" in said
