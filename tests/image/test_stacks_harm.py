"""Samples of programs whose images are gone, replaced, damaged or made up: what is known stays, nothing raises."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile
from image.stopped import LIMIT, Left, identity, traced

from splitlock.image import _libdw, child, stacks
from splitlock.image.elf import Elf
from splitlock.image.stacks import REGISTERS, RIP, RSP, VDSO, Image, Sample, Stacks
from splitlock.image.unwind import Session

OPTIONS = ("-pthread", "-O2", "-fomit-frame-pointer")
WORDS = 1 << 64


@pytest.fixture(autouse=True)
def own_child() -> Iterator[None]:
    """Each test begins with none, and leaves none."""
    for reader in list(child.readers):
        reader.end("the test")
    yield
    for reader in list(child.readers):
        reader.end("the test")


@pytest.fixture
def path(program: Callable[..., Path], tmp_path: Path) -> str:
    """A program of the test's own."""
    return str(shutil.copy(program("calls", *OPTIONS), tmp_path / "calls"))


@pytest.fixture
def left(path: str) -> Left:
    """What it leaves, from a signal handler."""
    with traced(path, "signal") as pid:
        return Left(pid)


def with_image(left: Left, which: str, **changed: Any) -> Sample:
    """The sample with one image described otherwise."""
    images = left.whole.images
    return left.whole._replace(images=tuple(i._replace(**changed) if i.path == which else i for i in images))


def image(left: Left, path: str) -> Image:
    return next(i for i in left.whole.images if i.path == path)


def test_each_image_in_turn_is_gone(left: Left) -> None:
    with Stacks() as made:
        for gone in left.whole.images:
            if gone.path != VDSO and not gone.path.endswith("/ld-linux-x86-64.so.2"):
                sample = with_image(left, gone.path, path="/nowhere")
                assert made.stack(sample, LIMIT) == left.until(gone) != left.live
        everything = left.whole._replace(images=tuple(i._replace(path="/nowhere") for i in left.whole.images))
        assert made.stack(everything) == left.live[:1]
        assert made.stack(left.whole._replace(images=())) == left.live[:1]
        assert made.stack(left.whole, LIMIT) == left.live
        assert not made.trouble


def in_place(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())


def copied(path: Path, _: Path) -> None:
    os.replace(shutil.copy2(path, path.with_suffix(".copy")), path)


def again(path: Path, _: Path) -> None:
    before = path.stat()
    in_place(path, path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def by_directory(path: Path, _: Path) -> None:
    path.unlink()
    path.mkdir()


def by_pipe(path: Path, _: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def by_loop(path: Path, _: Path) -> None:
    path.unlink()
    path.symlink_to(path)


REPLACED: dict[str, Callable[[Path, Path], object]] = {
    "another build, by rename": lambda path, other: os.rename(other, path),
    "another build, in place": in_place,
    "the same, copied": copied,
    "the same, touched": lambda path, _: os.utime(path),
    "rewritten, with its old times": again,
    "cut off": lambda path, _: os.truncate(path, 4096),
    "a directory": by_directory,
    "a pipe": by_pipe,
    "a loop of links": by_loop,
}


@pytest.mark.parametrize("how", REPLACED)
def test_replaced(left: Left, path: str, program: Callable[..., Path], tmp_path: Path, how: str) -> None:
    """A file that is not what was mapped says nothing of the stack."""
    original = image(left, path)
    expected = left.until(original)
    other = Path(shutil.copy(program("calls", "-pthread", "-O0"), tmp_path / "other"))
    REPLACED[how](Path(path), other)
    with Stacks() as made:
        assert made.stack(left.whole, LIMIT) == expected != left.live
        assert not made.trouble


def test_build_id(left: Left, path: str, program: Callable[..., Path], tmp_path: Path) -> None:
    """Of a copy, when nothing else is known of what was mapped."""
    right = Elf(Path(path).read_bytes()).build_id()
    assert right
    expected = left.until(image(left, path))
    copy = str(shutil.copy(path, tmp_path / "copy"))
    other = str(program("calls", "-pthread", "-O0"))
    with Stacks() as made:
        for file, build_id, found in ((copy, right, left.live), (copy, None, left.live), (copy, "00" * 20, expected),
                                      (other, right, expected), (path, "no hex", expected)):  # fmt: skip
            sample = with_image(left, path, path=file, identity=None, build_id=build_id)
            assert made.stack(sample, LIMIT) == found


@pytest.mark.parametrize(
    "content", [b"", b"\x7fELF", b"#!/bin/sh\n", b"\x7fELF\x02\x01\x01" + bytes(57), b"32", b"arm"]
)
def test_no_such_image(left: Left, path: str, tmp_path: Path, content: bytes) -> None:
    expected = left.until(image(left, path))
    data = bytearray(Path(path).read_bytes())
    if content in (b"32", b"arm"):
        data[4 if content == b"32" else 18] = 1 if content == b"32" else 183  # EI_CLASS, e_machine
        content = bytes(data)
    (tmp_path / "file").write_bytes(content)
    with Stacks() as made:
        assert made.stack(with_image(left, path, path=f"{tmp_path}/file", identity=None), LIMIT) == expected
        assert made.stack(with_image(left, path, path="calls", identity=None), LIMIT) == expected  # whose calls?
        assert made.stack(with_image(left, path, path=f"{path}\0", identity=None), LIMIT) == expected
        assert not made.trouble


@pytest.mark.parametrize("bias", [-1, 1, 4096, 1 << 47, (1 << 56) - 4096, (1 << 63) - 4096, WORDS - 4096, WORDS])
def test_no_such_place(left: Left, path: str, bias: int) -> None:
    """An image where it cannot have been, and two where one was."""
    libc = next(i for i in left.whole.images if "libc.so" in i.path)
    with Stacks() as made:
        found = made.stack(with_image(left, path, bias=bias), LIMIT)
        assert found[: len(left.until(image(left, path)))] == left.until(image(left, path))
        found = made.stack(with_image(left, path, bias=libc.bias + 4096), LIMIT)
        assert found == left.live[:1]
        assert not made.trouble


def test_cut_off_while_it_is_open(left: Left, path: str) -> None:
    """What is mapped of a file and then cut off is SIGBUS for who reads it: the child, and another one goes on."""
    expected = left.until(image(left, path))
    sample = with_image(left, path, identity=None)
    with Stacks() as made:
        assert made.stack(sample._replace(stack=left.whole.stack[:64]), LIMIT)
        os.truncate(path, 4096)
        assert made.stack(sample, LIMIT) == expected
        assert not made.trouble


def test_damaged(left: Left, path: str, tmp_path: Path) -> None:
    """Its headers and its unwind tables, mostly."""
    good, rng = Path(path).read_bytes(), random.Random(25)
    with open(path, "rb") as file:
        tables = [(s["sh_offset"], s["sh_size"]) for s in ELFFile(file).iter_sections() if s.name.startswith(".eh_fr")]
    used = 0
    with Stacks() as made:
        for number in range(400):
            data = bytearray(good)
            if number % 8 == 7:
                del data[rng.randrange(1, len(data)) :]
            for _ in range(rng.choice((1, 4, 16, 64, 256))):
                start, size = rng.choice(tables) if rng.random() < 0.85 else (0, 800)
                data[min(start + rng.randrange(size), len(data) - 1)] = rng.choice(
                    (0, 0x7F, 0x80, 0xFF, rng.randrange(256))
                )
            (tmp_path / "bad").write_bytes(data)
            sample = with_image(left, path, path=f"{tmp_path}/bad", identity=identity(tmp_path / "bad"))
            begun = time.monotonic()
            found = made.stack(sample, LIMIT)
            assert time.monotonic() - begun < 60
            assert found[0] == left.live[0]
            assert len(found) <= LIMIT
            assert all(0 <= pc < WORDS for pc in found)
            used += len(found) > len(left.until(image(left, path)))
    assert used > 40  # or nothing was tried but what is refused


def test_any_registers(left: Left) -> None:
    rng = random.Random(16)
    starts = [i.bias for i in left.whole.images]
    kinds: list[Callable[[], int]] = [
        lambda: rng.randrange(WORDS),
        lambda: rng.choice((0, 1, 7, WORDS - 1, WORDS - 8, 1 << 63)),
        lambda: rng.choice(starts) + rng.randrange(1 << 21),
        lambda: left.whole.registers[RSP] + rng.randrange(-64, len(left.whole.stack) + 64),
    ]
    longer = 0
    with Stacks() as made:
        assert made.stack(left.whole, LIMIT) == left.live
        pid = child.readers[0].pid
        for _ in range(4000):
            registers = list(left.whole.registers)
            for _ in range(rng.choice((1, 2, REGISTERS))):
                registers[rng.randrange(REGISTERS)] = rng.choice(kinds)()
            stack = left.whole.stack[: rng.randrange(len(left.whole.stack))]
            found = made.stack(Sample(tuple(registers), stack, left.whole.images), 100)
            assert found[0] == registers[RIP]
            assert len(found) <= 100
            assert all(0 <= pc < WORDS for pc in found)
            longer += len(found) > 3
        assert made.stack(left.whole, LIMIT) == left.live
        assert child.readers[0].pid == pid
        assert not made.trouble
    assert longer > 100


def test_any_images(left: Left) -> None:
    """Lists that no process has: files twice, over each other, anywhere."""
    rng = random.Random(4)
    files = [i.path for i in left.whole.images]
    with Stacks() as made:
        for _ in range(200):
            places = [rng.choice(left.whole.images).bias + rng.randrange(-9, 9) * 4096, rng.randrange(WORDS), 0]
            images = [Image(rng.choice(files), rng.choice(places)) for _ in range(rng.randrange(12))]
            found = made.stack(left.whole._replace(images=(*images, *left.whole.images[: rng.randrange(4)])))
            assert found[0] == left.live[0]
        assert not made.trouble


def test_few_sets_are_kept(left: Left, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set is handed over once, while it is among the last 8 that were asked about."""
    handed, begin = list[int](), child.Reader.begin

    def begins(self: child.Reader) -> int:
        handed.append(begin(self))
        return handed[-1]

    monkeypatch.setattr(child.Reader, "begin", begins)
    sets = [left.whole._replace(images=(*left.whole.images, Image("/nowhere", n * 4096))) for n in range(20)]
    with Stacks() as made:
        for _ in range(3):
            assert made.stack(sets[0], LIMIT) == left.live
        assert len(handed) == 1
        backwards = sets[0]._replace(images=sets[0].images[::-1])
        assert made.stack(backwards, LIMIT) == left.live
        assert len(handed) == 1
        for number in range(1, 20):
            assert made.stack(sets[number], LIMIT) == left.live
            assert made.stack(sets[0], LIMIT) == left.live  # always among the last
        assert len(handed) == 20
        assert made.stack(sets[13], LIMIT) == left.live
        assert len(handed) == 20
        assert made.stack(sets[12], LIMIT) == left.live
        assert len(handed) == 21
        opened = [os.readlink(link) for link in Path(f"/proc/{child.readers[0].pid}/fd").iterdir()]
        assert sum(name == left.whole.images[0].path for name in opened) <= 2 * 9
    ours = [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    ]
    assert left.whole.images[0].path not in ours


def test_more_images_than_fit_into_a_message(left: Left, path: str, tmp_path: Path) -> None:
    copies = []
    for number in range(300):
        os.link(path, tmp_path / f"{number}")
        copies.append(Image(str(tmp_path / f"{number}"), 0x10_0000_0000 + number * (1 << 20)))
    sample = with_image(left, path, identity=None)
    with Stacks() as made:
        assert made.stack(sample._replace(images=(*copies, *sample.images)), LIMIT) == left.live


def test_a_child_that_died_of_something_else(left: Left) -> None:
    with Stacks() as made:
        assert made.stack(left.whole, LIMIT) == left.live
        os.kill(child.readers[0].pid, signal.SIGKILL)
        assert made.stack(left.whole, LIMIT) == left.live
        assert not made.trouble
        child.readers[0].end("the test")
        assert made.stack(left.whole, LIMIT) == left.live
        made.close()
        assert made.stack(left.whole, LIMIT) == left.live


def before_each_stack(monkeypatch: pytest.MonkeyPatch, number: int) -> list[int]:
    """The child gets a signal when it is asked for a stack; gives the pids that got one."""
    ask, pids = child.Reader.ask, list[int]()

    def asks(self: child.Reader, *words: object) -> object:
        pids.append(self.pid)
        os.kill(self.pid, number)
        return ask(self, *words)  # type: ignore[arg-type]

    monkeypatch.setattr(child.Reader, "ask", asks)
    return pids


def test_the_child_dies_over_a_sample(left: Left, monkeypatch: pytest.MonkeyPatch) -> None:
    with Stacks() as made:
        pids = before_each_stack(monkeypatch, signal.SIGSEGV)
        assert made.stack(left.whole) == left.live[:1]
        assert made.stack(left.whole) == left.live[:1]  # the same images: not tried again
        assert len(set(pids)) == 2
        assert "the callers of 2 samples are not known" in made.trouble
        assert "(killed by signal 11)" in made.trouble
        assert made.stack(left.whole._replace(images=left.whole.images[:2])) == left.live[:1]
        assert len(set(pids)) == 4


def test_the_child_does_not_answer(left: Left, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many samples there are, that is waited for a bounded time."""
    monkeypatch.setattr(child, "_WAIT", 1.0)
    monkeypatch.setattr(stacks, "_PATIENCE", 1.5)
    with Stacks() as made:
        pids = before_each_stack(monkeypatch, signal.SIGSTOP)
        for number in range(20):
            sample = left.whole._replace(images=(*left.whole.images, Image("/nowhere", number * 4096)))
            assert made.stack(sample) == left.live[:1]
        assert len(pids) == 2
        assert "20 samples" in made.trouble
        assert "no answer within 1 s" in made.trouble


def test_no_child_at_all(left: Left, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with Stacks() as made:
        assert made.stack(left.whole) == left.live[:1]
        assert "does not start (no process for it: No such file or directory)" in made.trouble


@pytest.mark.parametrize(
    "said", [None, 7, "rip", {}, [None], [1.5], [True], ["1"], [-1], [WORDS], [1], [[1]], [0] * 33]
)
def test_an_answer_that_makes_no_sense_is_none(left: Left, monkeypatch: pytest.MonkeyPatch, said: object) -> None:
    with Stacks() as made:
        monkeypatch.setattr(child.Reader, "ask", lambda *_: said)
        assert made.stack(left.whole) == left.live[:1]
        assert "its answer makes no sense" in made.trouble


def test_without_libdw(left: Left, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child has none, and says nothing: rip is known."""
    monkeypatch.setattr(_libdw, "load", lambda: None)
    session = Session()
    for each in left.whole.images:
        session.add(os.open(each.path, os.O_RDONLY) if each.path != VDSO else None, each.bias)
    assert session.stack(left.whole.registers, left.whole.stack) == []
    session.close()
    with Stacks() as made:
        monkeypatch.setattr(child.Reader, "ask", lambda *_: [])
        assert made.stack(left.whole) == left.live[:1]
        assert not made.trouble


def test_ctrl_c_while_a_stack_is_unwound(left: Left, monkeypatch: pytest.MonkeyPatch) -> None:
    """ctypes would print and drop what a callback raises."""
    session = Session()
    for each in left.whole.images:
        if each.path != VDSO:
            session.add(os.open(each.path, os.O_RDONLY), each.bias)
    assert session.stack(left.whole.registers, left.whole.stack, LIMIT) == left.live
    with monkeypatch.context() as patched:
        patched.setattr(Session, "_file", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            session.stack(left.whole.registers, b"", LIMIT)
    assert session.stack(left.whole.registers, left.whole.stack, LIMIT) == left.live
    session.close()
    session.close()
    assert session.stack(left.whole.registers, left.whole.stack) == []


def test_imports_little() -> None:
    """libdw and ctypes are the child's."""
    script = "import sys, splitlock.image.stacks; print(*{'ctypes', 'mmap', 'json', 'socket'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == ""
