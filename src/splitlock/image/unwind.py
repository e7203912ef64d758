"""Which calls led to a recorded moment? By its registers, a copy of its stack, and the files that were mapped then.

Unwound by libdw of elfutils as a stopped thread's stack is, but nothing is asked of a process, which may have ended.
This runs where strangers' files are read: in the child (image/reader.py).
"""

from __future__ import annotations

import ctypes
import mmap
import os
from bisect import bisect_right
from itertools import zip_longest

from splitlock._errors import ImageError
from splitlock.image import _libdw
from splitlock.image.elf import EM_X86_64, ET_DYN, ET_EXEC, PF_W, PT_LOAD, Elf
from splitlock.image.stacks import REGISTERS, RSP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

_TOP = 1 << 56  # user addresses are below, with five levels of page tables too
_WORD = 8
_TID = 1  # the one thread of a session; any number above 0
_SIGRETURN = bytes.fromhex("48c7c00f0000000f")  # mov rax, 15; syscall: what a signal handler returns to


class _Mapped:
    """A file that was mapped: where, and which parts of it are as they are in the file. The descriptor is its own.

    Raises OSError or a ValueError (ImageError among them) where the file is no image that can lie there.
    """

    def __init__(self, descriptor: int, bias: int, build_id: str) -> None:
        self.descriptor, self.bias = descriptor, bias
        with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as data:
            elf = Elf(data)
            low, high = elf.span()
            if elf.machine != EM_X86_64 or elf.type not in (ET_EXEC, ET_DYN):
                raise ImageError("not an x86-64 program or library")
            if build_id and elf.build_id() != build_id:
                raise ImageError("another build of this file was mapped")
        self.start, self.end = low + bias, high + bias
        if not 0 <= self.start < self.end <= _TOP or bias & 0xFFF or (elf.type == ET_EXEC and bias):
            raise ImageError("no place for this file")
        self._constant = [s for s in elf.segments if s.type == PT_LOAD and not s.flags & PF_W]

    def read(self, address: int) -> bytes:
        """A word at an address that the program cannot have written to; fewer bytes where there is none."""
        at = address - self.bias
        for s in self._constant:
            if s.vaddr <= at and at + _WORD <= s.vaddr + s.filesz:
                return os.pread(self.descriptor, _WORD, s.offset + at - s.vaddr)
        return b""


class _Moment:
    """What is being unwound: libdw asks for it by callbacks.

    There is one for all sessions, made when this file is loaded: a process without executable memory to be had, as the
    child is, makes no further callbacks.
    """

    def __init__(self) -> None:
        self.lib: ctypes.CDLL | None = None
        self.registers = (ctypes.c_uint64 * REGISTERS)()
        self.stack = b""
        self.file: Callable[[int], bytes] = lambda _: b""
        self.failed: list[BaseException] = []
        self.callbacks = _libdw.ThreadCallbacks(
            next_thread=_libdw.NextThread(lambda *_: _TID),
            memory_read=_libdw.ReadMemory(self._read),
            set_initial_registers=_libdw.SetRegisters(self._set),
        )

    def _set(self, thread: int, _: object) -> bool:
        """Dwfl_Thread_Callbacks.set_initial_registers."""
        assert self.lib is not None
        return bool(self.lib.dwfl_thread_state_registers(thread, 0, REGISTERS, self.registers))

    def _read(self, _: object, address: int, result: Any, __: object) -> bool:
        """Dwfl_Thread_Callbacks.memory_read: a word of memory, from the copy of the stack or from a file.

        An exception (KeyboardInterrupt above all) would be printed and dropped by ctypes: it is kept.
        """
        try:
            at = address - self.registers[RSP]
            copied = self.stack[at : at + _WORD] if at >= 0 else b""
            word = copied if len(copied) == _WORD else self.file(address)
            if len(word) == _WORD:
                result[0] = int.from_bytes(word, "little")
            return len(word) == _WORD
        except BaseException as error:
            self.failed.append(error)
            return False


_moment = _Moment()


class Session:
    """The images of one process, and the stacks of samples that it left. Without libdw, every stack is empty.

    Sessions are to be used by one thread at a time, all of them.
    """

    def __init__(self) -> None:
        self._lib = _libdw.load()
        self._images: list[_Mapped] = []
        self._places: list[tuple[int, bool]] = []  # where images begin, and whether they can be used
        self._dwfl: int | None = None
        self._begun = False

    def add(self, descriptor: int | None, bias: int, build_id: str = "") -> None:
        """An image that was mapped, before the first `stack`. Takes the descriptor over; None: there is no such file.

        `bias`: what is added to the file's addresses, in bytes; 0 for ET_EXEC. `build_id`, in hex: that of what was
        mapped, where it is known.
        """
        if descriptor is not None:
            try:
                self._images.append(_Mapped(descriptor, bias, build_id))
                return
            except (OSError, ValueError, OverflowError):
                os.close(descriptor)
        self._places.append((bias, False))

    def stack(self, registers: Sequence[int], stack: bytes, limit: int = 32) -> list[int]:
        """At most `limit` program counters, innermost first, as `Unwinder.stack` gives them.

        `registers`, `stack`: those of a `Sample`. Ends early where unwinding fails, where it needs other memory, and in
        an image that cannot be used, whose callers libdw would guess; empty where there is no image at all.
        """
        if not self._begun:
            self._begin()
        if self._lib is None or self._dwfl is None or limit < 1:
            return []
        _moment.lib, _moment.stack, _moment.file = self._lib, stack, self._file
        _moment.registers[:] = [*registers]
        found = _libdw.stack(self._lib, self._dwfl, _TID, limit)
        if _moment.failed:
            raise _moment.failed.pop()
        end = next((number for number, pc in enumerate(found, 1) if self._in_refused(pc)), len(found))
        # That this is no return address, libdw sees by the frame behind it, which the copy may not hold.
        if 1 < len(found) == end and self._file(found[-1] + 1) == _SIGRETURN:
            found[-1] += 1
        return found[:end]

    def close(self) -> None:
        """Free the files."""
        self._begun = True
        if self._lib is not None and self._dwfl is not None:
            self._lib.dwfl_end(self._dwfl)
        self._dwfl = None
        while self._images:
            os.close(self._images.pop().descriptor)

    def _begin(self) -> None:
        self._begun = True
        for image in _clashing(self._images):
            self._images.remove(image)
            os.close(image.descriptor)
            self._places.append((image.start, False))
        self._places = sorted([*self._places, *((image.start, True) for image in self._images)])
        lib = self._lib
        # By build-id alone, on this machine: no server is to be asked.
        self._dwfl = dwfl = _libdw.begin(lib, "dwfl_build_id_find_elf", "dwfl_build_id_find_debuginfo") if lib else None
        if lib is None or dwfl is None:
            return
        lib.dwfl_report_begin(dwfl)
        for number, image in enumerate(self._images):
            given, name = os.dup(image.descriptor), b"%d" % number
            if lib.dwfl_report_elf(dwfl, name, name, given, image.bias, True) is None:
                os.close(given)  # else it is libdw's
        lib.dwfl_report_end(dwfl, None, None)
        if not lib.dwfl_attach_state(dwfl, None, _TID, ctypes.byref(_moment.callbacks), None):
            lib.dwfl_end(dwfl)
            self._dwfl = None

    def _in_refused(self, pc: int) -> bool:
        """Does an address lie behind the beginning of an image that cannot be used, and of no other?"""
        at = bisect_right(self._places, (pc, True)) - 1
        return at >= 0 and not self._places[at][1]

    def _file(self, address: int) -> bytes:
        """The word at an address that the program cannot have written to; empty where there is none."""
        return next((i.read(address) for i in self._images if i.start <= address < i.end), b"")


def _clashing(images: list[_Mapped]) -> list[_Mapped]:
    """Those that share an address with another one. Of two in one place, nobody knows which one was there."""
    images = sorted(images, key=lambda image: image.start)
    found, end = [], 0
    for image, after in zip_longest(images, images[1:]):
        if image.start < end or (after is not None and after.start < image.end):
            found.append(image)
        end = max(end, image.end)
    return found
