"""What is at an address of a file that is mapped to run: ELF of 64 or 32 bits, or PE as Wine loads it.

Addresses are the file's own: as addr2line(1) takes them, of PE relative to its base (RVA). Sources: elf(5); Microsoft's
"PE Format".
"""

from __future__ import annotations

import mmap
import os
import struct
from bisect import bisect_right

from splitlock._errors import ImageError
from splitlock.image.apart import Symbols
from splitlock.image.demangle import demangle
from splitlock.image.elf import PF_X, PT_LOAD, Elf, elf_class
from splitlock.image.functions import function_ranges
from splitlock.image.symbols import Frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_EHDR32 = struct.Struct("<16sHHIIIIIHHHHHH")
_PHDR32 = struct.Struct("<IIIIIIII")  # type, offset, vaddr, paddr, filesz, memsz, flags, align
_MEM_EXECUTE = 0x20000000  # of a PE's section
_PARTS = 256  # segments: programs have some ten
_SPARSE = 1 << 32  # bytes: no program has a larger file


class Loaded:
    """One file. `bits`: 64 or 32; `segments`: (address, file offset, bytes there); `span`: first address, and last.

    `code`: (address, bytes there) of what is to be run; `base`: where its first page is, where nobody moves it.
    `descriptor`: the open file, which is kept and closed by this; `path`: its name. `debug`: opens a
    file where this one is from, to look for debug information there, by build ID; None: it is from here, and looked for
    as libdw does, by name as well. ImageError where it is neither ELF nor PE; OSError where it cannot be read.
    """

    def __init__(self, path: str, descriptor: int, debug: Callable[[str], int] | None = None) -> None:
        self.path = path
        self._descriptors = [descriptor]
        self._symbols: Symbols | None = None
        size = os.fstat(descriptor).st_size
        if not 0 < size < _SPARSE:
            raise ImageError("empty, or too large for a program")
        self._data = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        self.bits = 64
        self.build_id: str | None = None
        self.segments: list[tuple[int, int, int]] = []
        self.code: list[tuple[int, int]] = []
        self._names: list[tuple[int, str]] = []
        self._ranges: list[tuple[int, int]] | None = None
        self._elf: Elf | None = None
        self.is_pe = self._data[:2] == b"MZ"
        if self.is_pe:
            self._read_pe()
        elif elf_class(self._data[:20])[0] == 32:
            self._read_elf32()
        else:
            self._elf = Elf(self._data)
            self.build_id = self._elf.build_id()
            loads = [s for s in self._elf.segments if s.type == PT_LOAD]
            self.segments = [(s.vaddr, s.offset, s.filesz) for s in loads]
            self.code = [(s.vaddr, s.filesz) for s in loads if s.flags & PF_X]
            self.span = self._elf.span()
        if len(self.segments) > _PARTS:
            raise ImageError(f"{len(self.segments):,} segments: more than a program has")
        if not self.is_pe:
            self.base = self.span[0]
            self._symbols = Symbols(path, self._debug(debug) or descriptor, beside=debug is None)

    def __del__(self) -> None:
        if self._symbols is not None:
            self._symbols.close()
        for descriptor in self._descriptors:
            os.close(descriptor)

    def _debug(self, opened: Callable[[str], int] | None) -> int | None:
        """The file of separate debug information, which has the same addresses."""
        if opened is None or not self.build_id:
            return None
        try:
            self._descriptors.append(opened(f"/usr/lib/debug/.build-id/{self.build_id[:2]}/{self.build_id[2:]}.debug"))
        except OSError:
            return None
        return self._descriptors[-1]

    def address(self, offset: int) -> int | None:
        """The address of a file offset, None where it is loaded nowhere."""
        return next((a + offset - o for a, o, size in self.segments if o <= offset < o + max(size, 1)), None) or next(
            (a + offset - o for a, o, size in self.segments if o & ~0xFFF <= offset < (o + size + 0xFFF) & ~0xFFF), None
        )

    def mapped(self, size: int) -> list[int]:
        """The addresses where a mapping of so many bytes, in whole pages, may begin.

        A mapping is a segment, or several: the kernel makes one of neighbours that are neighbours in the file as well,
        and may be run alike.
        """
        found = []
        parts = [_pages(address, offset, held) for address, offset, held in self.segments if held]
        for number, (first, moved, end) in enumerate(parts):
            for start, also_moved, stop in parts[number:]:
                if also_moved != moved or start > end:
                    break
                end = max(end, stop)
                if end - first == size:
                    found.append(first)
        return found

    def read(self, address: int, size: int) -> bytes:
        """Up to `size` bytes at an address; fewer at a segment's end."""
        for start, offset, held in self.segments:
            if start <= address < start + held:
                return self._data[offset + address - start : offset + min(address - start + size, held)]
        return b""

    def read_before(self, address: int, size: int) -> bytes:
        """Up to `size` bytes before an address; fewer at a segment's start."""
        start = max((s for s, _, held in self.segments if s <= address - 1 < s + held), default=address)
        low = max(start, address - size)
        return self.read(low, address - low)

    def frames(self, address: int) -> list[Frame]:
        """The functions at an address, innermost first; PE: the export before it."""
        if self._symbols is not None:
            return self._symbols.frames(address)
        at = bisect_right(self._names, (address, "\U0010ffff")) - 1
        return [Frame(f"{self._names[at][1]}+{address - self._names[at][0]:#x}", None, False)] if at >= 0 else []

    @property
    def trouble(self) -> str:
        """Why `frames` knows less than the file may hold, and what to do; empty: it does not."""
        return self._symbols.trouble if self._symbols is not None else ""

    def start(self, address: int) -> int | None:
        """Where the function begins that an address is in or just behind; None where that is not known."""
        if self._elf is None:
            return None
        if self._ranges is None:
            try:
                self._ranges = function_ranges(self._elf)
            except ImageError:
                self._ranges = []
        at = bisect_right(self._ranges, (address - 1, 1 << 64)) - 1
        return self._ranges[at][0] if at >= 0 and address - 1 < self._ranges[at][1] else None

    def _read_elf32(self) -> None:
        if len(self._data) < _EHDR32.size:
            raise ImageError("not an ELF file (truncated?)")
        fields = _EHDR32.unpack_from(self._data)
        phoff, phnum = fields[5], fields[10]
        self.bits = 32
        if phoff + phnum * _PHDR32.size > len(self._data):
            raise ImageError("program headers outside the file (truncated?)")
        high = 0
        for number in range(phnum):
            kind, offset, vaddr, _, filesz, memsz, flags, _ = _PHDR32.unpack_from(
                self._data, phoff + number * _PHDR32.size
            )
            if kind == PT_LOAD:
                self.segments.append((vaddr, offset, filesz))
                self.code += [(vaddr, filesz)] if flags & PF_X else []
                high = max(high, vaddr + memsz)
        self.span = min((vaddr & ~0xFFF for vaddr, _, _ in self.segments), default=0), high

    def _read_pe(self) -> None:
        import pefile

        try:
            pe = pefile.PE(data=self._data, fast_load=True)
            pe.parse_data_directories([pefile.DIRECTORY_ENTRY["IMAGE_DIRECTORY_ENTRY_EXPORT"]])
        except (pefile.PEFormatError, struct.error, ValueError) as error:
            raise ImageError(f"no PE file: {error}") from None
        self.bits = 64 if pe.FILE_HEADER.Machine == 0x8664 else 32
        self.segments = [(s.VirtualAddress, s.PointerToRawData, s.SizeOfRawData) for s in pe.sections]
        self.code = [(s.VirtualAddress, s.SizeOfRawData) for s in pe.sections if s.Characteristics & _MEM_EXECUTE]
        self.span, self.base = (0, pe.OPTIONAL_HEADER.SizeOfImage), pe.OPTIONAL_HEADER.ImageBase
        exports = getattr(pe, "DIRECTORY_ENTRY_EXPORT", None)
        for entry in exports.symbols if exports else ():
            if entry.name:
                self._names.append((entry.address, demangle(entry.name.decode("latin-1"))))
        self._names.sort()


def _pages(address: int, offset: int, size: int) -> tuple[int, int, int]:
    """The whole pages that hold a segment: their first address, how far they are from the file's, their end."""
    return address & ~0xFFF, address - offset, address + size + 0xFFF & ~0xFFF
