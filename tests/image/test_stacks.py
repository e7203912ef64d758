"""Stacks of samples, unwound when the process has ended, against those of the live `Unwinder` on the stopped thread."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from image.stopped import LIMIT, PTRACE_ATTACH, PTRACE_CONT, WALL, Left, ptrace, traced, until_stop

from splitlock.image.stacks import REGISTERS, RIP, RSP, VDSO, Image, Sample, Stacks

PROGRAMS = Path(__file__).parents[1] / "programs"

BUILDS = {
    "omitted": ["-O2", "-fomit-frame-pointer"],
    "kept": ["-O0", "-fno-omit-frame-pointer"],
    "optimised": ["-O3"],
    "no-pie": ["-O2", "-no-pie"],
    "static": ["-O2", "-static"],
    "static-pie": ["-O2", "-static-pie"],
    "far apart": ["-O2", "-Wl,-z,separate-code", "-Wl,-z,max-page-size=0x200000"],
    "one text": ["-O2", "-Wl,-z,noseparate-code"],
    "no header": ["-O2", "-Wl,--no-eh-frame-hdr"],
    "only .debug_frame": ["-O2", "-g", "-fno-asynchronous-unwind-tables", "-fno-unwind-tables"],
}


@pytest.fixture
def built(program: Callable[..., Path]) -> Callable[[str], str]:
    """`built(how)`: the program, by one of BUILDS."""
    return lambda how: str(program("calls", "-pthread", *BUILDS[how]))


@pytest.fixture(scope="session")
def with_library(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The program, linked to a C++ library that calls it back."""
    folder = tmp_path_factory.mktemp("library")
    shutil.copy(PROGRAMS / "calls.c", folder)
    shutil.copy(PROGRAMS / "each.cc", folder)
    for command in (
        ["g++", "-O2", "-fomit-frame-pointer", "-shared", "-fPIC", "-o", "libeach.so", "each.cc"],
        ["gcc", "-O2", "-fomit-frame-pointer", "-DLIBRARY", "-pthread", "-Wl,-rpath,$ORIGIN", "-o", "calls",
         "calls.c", "-L.", "-leach"],
    ):  # fmt: skip
        subprocess.run(command, cwd=folder, check=True)
    return str(folder / "calls")


@pytest.fixture
def stacks() -> Iterator[Stacks]:
    with Stacks() as made:
        yield made
        assert not made.trouble


@pytest.mark.parametrize("how", BUILDS)
@pytest.mark.parametrize("mode", ["deep", "signal"])
def test_programs(built: Callable[[str], str], stacks: Stacks, how: str, mode: str) -> None:
    with traced(built(how), mode) as pid:
        left = Left(pid)
    found = left.check(stacks)
    assert len(found) > (20 if mode == "deep" else 8)
    assert stacks.stack(left.whole, 3) == left.live[:3]
    assert stacks.stack(left.whole, 0) == []


def test_a_stack_longer_than_the_copy(built: Callable[[str], str], stacks: Stacks) -> None:
    with traced(built("omitted"), "deep", "180") as pid:
        left = Left(pid)
    found = left.check(stacks)
    assert 32 < len(found) < len(left.live)


def test_callback_from_a_library(with_library: str, stacks: Stacks) -> None:
    with traced(with_library, "callback") as pid:
        left = Left(pid)
    found = left.check(stacks)
    library = next(image for image in left.whole.images if image.path.endswith("libeach.so"))
    assert sum(0 <= pc - library.bias < 1 << 20 for pc in found) > 5


def test_threads(built: Callable[[str], str], stacks: Stacks) -> None:
    with subprocess.Popen([built("omitted"), "threads"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(4) == b"xxxx"  # all four
        tids = sorted(map(int, os.listdir(f"/proc/{process.pid}/task")))
        try:
            for tid in tids:
                ptrace(PTRACE_ATTACH, tid)
                until_stop(tid, signal.SIGSTOP)
            left = [Left(process.pid, tid) for tid in tids]
        finally:
            process.kill()
            for tid in reversed(tids):  # the first thread's end is not told before the others' are taken note of
                os.waitpid(tid, WALL)
    assert len({tuple(each.check(stacks)) for each in left}) > 1
    assert len({each.short.images for each in left}) == 1


@pytest.mark.parametrize("how", ["omitted", "kept"])
def test_wherever_a_signal_comes(built: Callable[[str], str], stacks: Stacks, how: str) -> None:
    """Between any two instructions, before a frame is there and after it has gone."""
    left = []
    with traced(built(how), "timer") as pid:
        for _ in range(60):
            left.append(Left(pid))
            ptrace(PTRACE_CONT, pid)
            until_stop(pid, signal.SIGSTOP)
    assert len({tuple(each.check(stacks)) for each in left}) > 2  # a busy machine's timer comes when it can


def test_signal_in_the_vdso(built: Callable[[str], str], stacks: Stacks) -> None:
    with traced(built("omitted"), "vdso") as pid:
        left = Left(pid)
    vdso = next(image for image in left.whole.images if image.path == VDSO)
    found = left.check(stacks)
    assert any(0 <= pc - vdso.bias < 0x2000 for pc in found)


PYTHON = """
import os, signal
def down(n):
    if n == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
    else:
        sorted([n], key=lambda n: down(n - 1))
down(12)
"""
PERL = "sub f { my $n = shift; if ($n) { my @x = sort { f($n - 1); 0 } 1, 2 } else { kill 'STOP', $$ } } f(8)"
NODE = "function f(n) { n ? [n].forEach(n => f(n - 1)) : process.kill(process.pid, 'SIGSTOP') } f(20)"
INTERPRETERS = {
    "python": [sys.executable, "-c", PYTHON],
    "system's python": ["/usr/bin/python3", "-c", PYTHON],
    "perl": ["perl", "-e", PERL],
    "node": ["node", "-e", NODE],
}


@pytest.mark.parametrize("name", INTERPRETERS)
def test_interpreters(stacks: Stacks, name: str) -> None:
    program, *words = INTERPRETERS[name]
    path = shutil.which(program)
    assert path is not None
    with traced(os.path.realpath(path), *words) as pid:
        left = Left(pid)
    assert len(left.check(stacks)) > 10


def test_every_length_of_stack(built: Callable[[str], str], stacks: Stacks) -> None:
    """What is copied may end anywhere: the stack is shorter then, never another one."""
    with traced(built("omitted"), "signal") as pid:
        left = Left(pid)
    before = 1
    for size in range(0, 2049, 8):
        found = stacks.stack(left.whole._replace(stack=left.whole.stack[:size]))
        assert found == left.live[: len(found)]
        assert found
        assert len(found) >= before
        before = len(found)
    assert before > 3


def test_by_descriptor(built: Callable[[str], str], stacks: Stacks) -> None:
    """As of a container, where the paths say nothing."""
    with traced(built("omitted"), "deep") as pid:
        left = Left(pid)
    program = left.whole.images[0]
    opened = {image: os.open(image.path, os.O_RDONLY) for image in left.whole.images if image.path != VDSO}
    try:
        hidden = tuple(image._replace(path="/nowhere", descriptor=opened[image]) for image in opened)
        assert stacks.stack(left.whole._replace(images=hidden), LIMIT) == left.live
        wrong = hidden[0]._replace(identity=hidden[-1].identity)
        assert stacks.stack(left.whole._replace(images=(wrong, *hidden[1:])), LIMIT) == left.until(program)
    finally:
        for descriptor in opened.values():
            os.close(descriptor)


CONSTANT = """
__attribute__((noipa)) int leaf(int n) { return 3 * n; }
int main(int argc, char **argv) { return leaf(argc) + leaf(!argv); }
void *const table[] = { (char *)main + 1, 0 };
"""


@pytest.mark.parametrize("how", [["-no-pie", "-fno-pie"], ["-pie", "-fPIE"]])
def test_constant_memory_is_read_from_files(stacks: Stacks, tmp_path: Path, how: list[str]) -> None:
    """What the program could write to is not: where the table is to be relocated, its content is not the file's."""
    (tmp_path / "constant.c").write_text(CONSTANT)
    path = str(tmp_path / "constant")
    subprocess.run(["gcc", "-O2", *how, "-o", path, tmp_path / "constant.c"], check=True)
    rows = (line.split() for line in subprocess.check_output(["nm", path], text=True).splitlines())
    at = {row[-1]: int(row[0], 16) for row in rows if len(row) == 3}
    bias = 0 if "-no-pie" in how else 0x555555554000
    registers = [0] * REGISTERS
    registers[RIP], registers[RSP] = at["leaf"] + bias, at["table"] + bias
    found = stacks.stack(Sample(tuple(registers), b"", (Image(path, bias),)))
    assert found == ([at["leaf"], at["main"]] if "-no-pie" in how else [at["leaf"] + bias])


def test_first_is_rip(stacks: Stacks) -> None:
    nothing = Sample(tuple(range(17)), b"", ())
    assert stacks.stack(nothing) == [RIP]
