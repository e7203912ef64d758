"""Is it UEFI firmware, and which of its programs? By the firmware volumes that it has unpacked into memory.

A program runs from its volume or is a copy of what lies there, so the code around an instruction is looked for in
all of them. Boot loaders come from a disk and are in none. Source: PI specification vol. 3, 2 and 3: volumes, files,
sections. EDK2 gives each file a section with its name (`CpuMpPei`).
"""

from __future__ import annotations

import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from splitlock.guest.memory import Memory

_SIGNATURE, _SIGNATURE_AT = b"_FVH", 0x28
_MOST = 64 << 20  # bytes of a volume
_AROUND = 16  # bytes before and after the instruction's address that must be the same
_LARGE_FILE, _LARGE = 1, 0xFFFFFF
_NAME = 0x15  # EFI_SECTION_USER_INTERFACE


class Volumes:
    """The firmware volumes in memory, as they are now."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        #: where each begins and ends in the memory's file
        self.ranges = [found for start, end in _used(memory.fd) for found in self._within(start, end)]

    def _within(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        ram = self._memory.ram
        at = ram.find(_SIGNATURE, start, end)
        while at >= 0:
            base = at - _SIGNATURE_AT
            if base >= 0 and base % 8 == 0:
                (size,) = struct.unpack_from("<Q", ram, base + 0x20)
                (head,) = struct.unpack_from("<H", ram, base + 0x30)
                if 0x48 <= head <= 0x100 and head % 2 == 0 and head < size <= min(_MOST, self._memory.size - base):
                    words = struct.unpack_from(f"<{head // 2}H", ram, base)
                    if sum(words) & 0xFFFF == 0:  # its checksum
                        yield base, base + size
            at = ram.find(_SIGNATURE, at + 1, end)

    def program(self, physical: int) -> tuple[bool, str]:
        """Whether the code at a physical address is the firmware's, and its program's name ("" where it has none)."""
        at = self._memory.offset(physical)
        if at is None or at < _AROUND:
            return False, ""
        code = self._memory.ram[at - _AROUND : at + _AROUND]
        for start, end in self.ranges:
            place = at if start <= at < end else self._memory.ram.find(code, start, end)
            if place >= 0:
                return True, self._name(start, end, place)
        return False, ""

    def _name(self, start: int, end: int, place: int) -> str:
        """The name of the file that holds a place of the volume."""
        ram = self._memory.ram
        head, _, extended = struct.unpack_from("<HHH", ram, start + 0x30)
        at = start + head
        if extended:  # a header more, and its size
            at = start + extended + int.from_bytes(ram[start + extended + 16 : start + extended + 20], "little")
        while (at := start + (at - start + 7 & ~7)) + 32 < end:
            size = int.from_bytes(ram[at + 20 : at + 23], "little")
            body = at + 24
            if ram[at + 19] & _LARGE_FILE:
                (size,) = struct.unpack_from("<Q", ram, at + 24)
                body = at + 32
            if not 24 < size <= end - at:
                return ""
            if at <= place < at + size:
                return self._user_interface(body, at + size)
            at += size
        return ""

    def _user_interface(self, at: int, end: int) -> str:
        """The text of a file's section for it."""
        ram = self._memory.ram
        while at + 4 < end:
            size, kind = int.from_bytes(ram[at : at + 3], "little"), ram[at + 3]
            if size == _LARGE:
                size = int.from_bytes(ram[at + 4 : at + 8], "little")
            if size < 4:
                break
            if kind == _NAME:
                return ram[at + 4 : at + min(size, 256)].decode("utf-16-le", "replace").partition("\0")[0]
            at += size + 3 & ~3
        return ""


def _used(fd: int) -> Iterator[tuple[int, int]]:
    """The parts of a file in memory that were ever written: to look at the others would make them so."""
    at = 0
    while True:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # nothing after it
            return
        at = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, at
