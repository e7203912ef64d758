"""The guest's memory as we have it mapped: physical addresses, and virtual ones by its own page tables."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator

from splitlock._errors import SplitlockError

PAGE = 4096
LOW = 2 << 30  #: bytes of memory below 4 GiB at most, as the machine is told (max-ram-below-4g); the rest begins there
_HIGH = 4 << 30
_PRESENT, _WRITABLE, _USER, _ACCESSED, _DIRTY, _LARGE = 1, 1 << 1, 1 << 2, 1 << 5, 1 << 6, 1 << 7
_EPT_ANY = 7  # of an entry: read, write, execute; none of them: nothing is mapped
_ADDRESS = 0x000F_FFFF_FFFF_F000
_LA57 = 1 << 12  # of CR4
_U64 = struct.Struct("<Q")


def _pages(address: int, size: int) -> Iterator[tuple[int, int]]:
    """A range in pieces of which none reaches over a page's end: address and bytes of each."""
    end = address + size
    while address < end:
        length = min(end - address, PAGE - address % PAGE)
        yield address, length
        address += length


class Memory:
    """The guest's memory, `size` bytes that QEMU shares with us through `fd`. Raises SplitlockError without room."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.low = min(size, LOW)
        self.fd = os.memfd_create("splitlock-guest")
        try:
            os.truncate(self.fd, size)
            self.ram = mmap.mmap(self.fd, size)
        except (OSError, ValueError, OverflowError):
            os.close(self.fd)
            raise SplitlockError(f"-m: no room for {size >> 20} MiB here; take less", 2) from None

    def offset(self, physical: int) -> int | None:
        """Where in `ram` a physical address lies; None for what is no memory."""
        if physical >= _HIGH:
            physical += self.low - _HIGH
            return physical if self.low <= physical < self.size else None
        return physical if 0 <= physical < self.low else None

    def read(self, physical: int, size: int) -> bytes | None:
        """So many bytes at a physical address, None where they are not all memory."""
        at = self.offset(physical) if physical >= 0 else None
        return None if at is None or at + size > self.size else self.ram[at : at + size]

    def span(self, physical: int, size: int) -> bytes:
        """As much as there is of so many bytes at a physical address; what was never written is not made to exist."""
        at = self.offset(physical)
        return b"" if at is None else os.pread(self.fd, size, at)

    def close(self) -> None:
        """Free it."""
        self.ram.close()
        os.close(self.fd)


class GuestMemory(Memory):
    """The memory of a virtual machine in the machine: what its extended page tables map (SDM vol. 3, 29.3)."""

    def __init__(self, memory: Memory, eptp: int) -> None:
        """`eptp`: its VMCS's EPT pointer; `memory`: the machine's, which stays its owner's."""
        self.size, self.low, self.fd, self.ram = memory.size, memory.low, memory.fd, memory.ram
        self._host = memory
        self._root = eptp & _ADDRESS

    def offset(self, physical: int) -> int | None:
        """Where in `ram` a guest-physical address lies."""
        table = self._root
        for shift in (39, 30, 21, 12):
            at = self._host.offset(table + (physical >> shift & 511) * 8)
            if at is None or at + 8 > self.size:
                return None
            (entry,) = _U64.unpack_from(self.ram, at)
            if not entry & _EPT_ANY:
                return None
            if shift == 12 or (shift < 39 and entry & _LARGE):
                mask = (1 << shift) - 1
                return self._host.offset(int(entry & _ADDRESS & ~mask | physical & mask))
            table = entry & _ADDRESS
        return None

    def read(self, physical: int, size: int) -> bytes | None:
        """So many bytes at a guest-physical address, None where they are not all there."""
        parts = []
        for here, length in _pages(physical, size):
            part = super().read(here, length)
            if part is None:
                return None
            parts.append(part)
        return b"".join(parts)

    def span(self, physical: int, size: int) -> bytes:
        """As much as there is, up to the first page that is not."""
        parts = []
        for here, length in _pages(physical, size):
            at = self.offset(here)
            if at is None:
                break
            parts.append(os.pread(self.fd, length, at))
        return b"".join(parts)

    def close(self) -> None:
        """Nothing: it is the machine's."""


class Space:
    """Virtual memory: what `cr3` maps, 4 or 5 levels as `cr4` says (SDM vol. 3A, 4.5). Long mode only."""

    def __init__(self, memory: Memory, cr3: int, cr4: int) -> None:
        self.memory = memory
        self._root = cr3 & _ADDRESS
        self._levels = 5 if cr4 & _LA57 else 4

    def physical(self, address: int) -> int | None:
        """The physical address, None where nothing is mapped."""
        found = self._walk(address)
        return None if found is None else found[0]

    def writable(self, address: int, *, user: bool) -> bool:
        """Whether it is memory that can be written, by a program if `user` (SDM vol. 3A, 4.6; with CR0.WP set)."""
        wanted = _WRITABLE | (_USER if user else 0)
        found = self._walk(address)
        return found is not None and found[1] & wanted == wanted and self.memory.offset(found[0]) is not None

    def mark_written(self, address: int) -> None:
        """Note in the page tables that it has been written (SDM vol. 3A, 4.8)."""
        found = self._walk(address)
        if found is not None:
            self.memory.ram[found[2]] |= _ACCESSED | _DIRTY

    def _walk(self, address: int) -> tuple[int, int, int] | None:
        """The physical address, the rights that all levels grant, and where in `ram` the last level's entry is."""
        table, rights = self._root, _WRITABLE | _USER
        for level in range(self._levels - 1, -1, -1):
            shift = 12 + 9 * level
            at = self.memory.offset(table + (address >> shift & 511) * 8)
            if at is None or at + 8 > self.memory.size:
                return None
            (entry,) = _U64.unpack_from(self.memory.ram, at)
            if not entry & _PRESENT:
                return None
            rights &= entry
            if level == 0 or (level <= 2 and entry & _LARGE):
                mask = (1 << shift) - 1
                return int(entry & _ADDRESS & ~mask | address & mask), rights, at
            table = entry & _ADDRESS
        return None

    def read(self, address: int, size: int) -> bytes:
        """So many bytes at a virtual address. Raises LookupError where they are not all there."""
        parts = []
        for at, length in _pages(address, size):
            physical = self.physical(at & (1 << 64) - 1)
            part = None if physical is None else self.memory.read(physical, length)
            if part is None:
                raise LookupError(f"{at:#x}: not in the guest's memory")
            parts.append(part)
        return b"".join(parts)

    def number(self, address: int, size: int = 8) -> int:
        """An unsigned number of `size` bytes at a virtual address. Raises LookupError."""
        return int.from_bytes(self.read(address, size), "little")

    def text(self, address: int, limit: int) -> str:
        """A NUL-terminated string of at most so many bytes. Raises LookupError where it does not begin in memory."""
        first = min(limit, PAGE - address % PAGE)
        data = self.read(address, first)
        if b"\0" not in data and first < limit:
            data += self.read(address + first, limit - first)
        return data.partition(b"\0")[0].decode("utf-8", "surrogateescape")
