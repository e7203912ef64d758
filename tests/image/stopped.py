"""Threads that the tests trace and have stopped: how to get one, and what a sample of it is."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from elftools.elf.elffile import ELFFile

from splitlock.image.stacks import RSP, VDSO, Identity, Image, Sample, Stacks
from splitlock.image.symbols import Unwinder

PTRACE_TRACEME, PTRACE_CONT, PTRACE_GETREGS, PTRACE_SETREGS, PTRACE_ATTACH = 0, 7, 12, 13, 16
WALL = 0x40000000
USER_REGS = 27
"""Words of struct user_regs_struct (sys/user.h)."""
#: Where the registers stand in it that DWARF counts on x86-64, from rax, rdx, rcx, rbx, rsi, rdi, rbp, rsp on.
_PLACES = (10, 12, 11, 5, 13, 14, 4, 19, 9, 8, 7, 6, 3, 2, 1, 0, 16)
_PAGE = 4096
ALL = 1 << 26
"""Bytes: more than any stack has."""
LIMIT = 1000

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


def ptrace(request: int, tid: int, data: object = None) -> None:
    assert libc.ptrace(request, tid, None, data) == 0, os.strerror(ctypes.get_errno())


def until_stop(tid: int, number: int) -> None:
    """Run a tracee on until it stops with this signal; others are delivered."""
    while True:
        _, status = os.waitpid(tid, WALL)
        assert os.WIFSTOPPED(status), status
        if os.WSTOPSIG(status) == number:
            return
        delivered = 0 if os.WSTOPSIG(status) == signal.SIGTRAP else os.WSTOPSIG(status)
        ptrace(PTRACE_CONT, tid, delivered)


@contextmanager
def traced(*command: str) -> Iterator[int]:
    """The pid of a child traced by us, stopped by its own SIGSTOP."""
    pid = os.fork()
    if pid == 0:
        libc.ptrace(PTRACE_TRACEME, 0, None, None)
        os.execv(command[0], command)
    try:
        until_stop(pid, signal.SIGSTOP)
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, WALL)


def sample(tid: int, most: int = 16384) -> Sample:
    """What an agent would leave of a stopped thread: up to `most` bytes of its stack, and what is mapped."""
    registers = (ctypes.c_uint64 * USER_REGS)()
    ptrace(PTRACE_GETREGS, tid, registers)
    values = tuple(registers[place] for place in _PLACES)
    return Sample(values, _memory(tid, values[RSP], most), images(tid))


def images(pid: int) -> tuple[Image, ...]:
    """The ELF files that a process has mapped with code, and its vdso."""
    found: dict[str, Image] = {}
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, permissions, offset, _, inode, *path = line.split(maxsplit=5)
        start = int(span.split("-")[0], 16)
        if path == [VDSO]:
            found[VDSO] = Image(VDSO, start)
        elif int(inode) and "x" in permissions and path[0] not in found:
            found[path[0]] = Image(path[0], start - _address(path[0], int(offset, 16)), identity(path[0]))
    return tuple(found.values())


def identity(path: str | Path) -> Identity:
    file = os.stat(path)
    return Identity(file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns, file.st_ctime_ns)


def _address(path: str, offset: int) -> int:
    """The address in a file's own terms of the page that is mapped from an offset on."""
    with open(path, "rb") as file:
        for segment in ELFFile(file).iter_segments("PT_LOAD"):
            if segment["p_offset"] & -_PAGE == offset:
                return int(segment["p_vaddr"] & -_PAGE)
    raise AssertionError(f"{path} has no segment at {offset:#x}")


def _memory(tid: int, address: int, most: int) -> bytes:
    """A thread's memory from an address on, as far as it is mapped."""
    memory = os.open(f"/proc/{tid}/mem", os.O_RDONLY)
    try:
        return os.pread(memory, most, address)
    finally:
        os.close(memory)


def spans(image: Image) -> range:
    """The addresses that an image took."""
    with open(image.path, "rb") as file:
        ends = [s["p_vaddr"] + s["p_memsz"] for s in ELFFile(file).iter_segments("PT_LOAD")]
    return range(image.bias, image.bias + max(ends))


class Left:
    """What is known of a stopped thread: by the live unwinder, and the sample that is left of it, whole and short."""

    def __init__(self, pid: int, tid: int = 0) -> None:
        with Unwinder(pid) as unwinder:
            self.live = unwinder.stack(tid or pid, LIMIT)
        self.whole, self.short = (sample(tid or pid, most) for most in (ALL, 16384))

    def until(self, image: Image) -> list[int]:
        """The stack as far as it can be known without this image: its first frame there is the last."""
        inside = spans(image)
        return self.live[: 1 + next(number for number, pc in enumerate(self.live) if pc in inside)]

    def check(self, stacks: Stacks) -> list[int]:
        """Unwound from the whole stack it is the live one, and from the upper 16 kB as much as these hold."""
        assert stacks.stack(self.whole, LIMIT) == self.live
        found = stacks.stack(self.short, LIMIT)
        assert found == self.live[: len(found)]
        assert len(found) > 3, (found, self.live)
        assert found == self.live or len(self.whole.stack) > len(self.short.stack)
        assert stacks.stack(self.short) == found[:32]
        return found
