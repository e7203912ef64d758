"""ELF64 little-endian files: header, segments, sections, symbols, notes.

Only what finding and patching code needs, read with `struct` because speed at start-up counts
(facts in docs/how-it-works.md). Field names are those of elf(5). All addresses are virtual
addresses of the file, in bytes, before any load bias.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from splitlock._errors import ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from mmap import mmap

    Buffer = bytes | mmap

ET_REL, ET_EXEC, ET_DYN = 1, 2, 3
EM_X86_64 = 62
PT_LOAD, PT_DYNAMIC, PT_NOTE = 1, 2, 4
PT_GNU_EH_FRAME = 0x6474E550
PF_X, PF_W = 1, 2
SHT_SYMTAB, SHT_NOBITS, SHT_DYNSYM = 2, 8, 11
SHF_EXECINSTR = 4
STT_OBJECT, STT_FUNC, STT_GNU_IFUNC = 1, 2, 10
DT_TEXTREL, DT_FLAGS, DF_TEXTREL = 22, 30, 4
NT_GNU_BUILD_ID = 3
_NAME = 4096

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
PHDR = struct.Struct("<IIQQQQQQ")  #: a program header: type, flags, offset, vaddr, paddr, filesz, memsz, align
SHDR = struct.Struct("<IIQQQQIIQQ")  #: a section header: name, type, flags, addr, offset, size, link, info, ...
_SYM = struct.Struct("<IBBHQQ")
_DYN = struct.Struct("<QQ")
_NHDR = struct.Struct("<III")


class Segment(NamedTuple):
    """A program header."""

    type: int
    flags: int
    offset: int
    vaddr: int
    filesz: int
    memsz: int


class Section(NamedTuple):
    """A section header, with its name."""

    name: str
    type: int
    flags: int
    addr: int
    offset: int
    size: int
    link: int


class Symbol(NamedTuple):
    """A symbol, with its name; `type` is of its st_info."""

    name: str
    type: int
    value: int
    size: int


def elf_class(head: bytes) -> tuple[int, int]:
    """Word size in bits (32, 64, or 0 when this is no ELF file) and e_machine of a file's head."""
    if len(head) < 20 or head[:4] != b"\x7fELF" or head[4] not in (1, 2):
        return 0, 0
    return 32 * head[4], int.from_bytes(head[18:20], "little")


def read_header(data: Buffer) -> tuple[int, ...]:
    """The fields of the file header from e_type on, as numbers. Raises ImageError where there is none, or not ELF64."""
    if len(data) < _EHDR.size or data[:4] != b"\x7fELF":
        raise ImageError("not an ELF file")
    if data[4] != 2 or data[5] != 1:
        raise ImageError("not a 64-bit little-endian ELF file")
    return _EHDR.unpack_from(data)[1:]


def text_at(strings: Buffer, at: int) -> str:
    """The NUL-terminated string at an offset of a string table, up to 4,096 bytes of it: strings may overlap."""
    end = strings.find(b"\0", at, at + _NAME)
    return strings[at : end if end >= 0 else at + _NAME].decode("utf-8", "replace")


class Elf:
    """One ELF64 file in memory. Raises ImageError on anything that does not hold together."""

    def __init__(self, data: Buffer) -> None:
        self.data = data
        self.size = len(data)
        (self.type, self.machine, _, self.entry, phoff, self._shoff, _, _,
         phentsize, phnum, self._shentsize, self._shnum, self._shstrndx) = read_header(data)  # fmt: skip
        if phnum and phentsize != PHDR.size:
            raise ImageError(f"program headers of {phentsize} bytes, not {PHDR.size}")
        self.segments: list[Segment] = []
        for i in range(phnum):
            p_type, flags, offset, vaddr, _, filesz, memsz, _ = self._unpack(PHDR, phoff + i * phentsize)
            if p_type == PT_LOAD and (offset + filesz > self.size or vaddr + memsz >= 1 << 64):
                raise ImageError(f"segment {i} lies outside the file (truncated?)")
            self.segments.append(Segment(p_type, flags, offset, vaddr, filesz, memsz))
        self._sections: list[Section] | None = None

    def _unpack(self, layout: struct.Struct, offset: int) -> tuple[int, ...]:
        try:
            return layout.unpack_from(self.data, offset)
        except (struct.error, OverflowError):
            raise ImageError(f"no room for a header at file offset {offset:#x} (truncated?)") from None

    @property
    def sections(self) -> list[Section]:
        """The section headers; empty when the file carries none."""
        if self._sections is None:
            self._sections = self._read_sections()
        return self._sections

    def _read_sections(self) -> list[Section]:
        if not self._shoff or not self._shnum:
            return []
        if self._shentsize != SHDR.size:
            raise ImageError(f"section headers of {self._shentsize} bytes, not {SHDR.size}")
        raw = [self._unpack(SHDR, self._shoff + i * self._shentsize) for i in range(self._shnum)]
        names = b""
        if self._shstrndx < len(raw):
            _, _, _, _, offset, size, *_ = raw[self._shstrndx]
            names = self.data[offset : offset + size]
        found = []
        for name, sh_type, flags, addr, offset, size, link, _, _, _ in raw:
            found.append(Section(text_at(names, name), sh_type, flags, addr, offset, size, link))
        return found

    def section(self, name: str) -> Section | None:
        """The first section called `name`."""
        return next((s for s in self.sections if s.name == name), None)

    def read(self, vaddr: int, size: int) -> bytes:
        """`size` bytes of the file's contents at a virtual address; ImageError when not there."""
        start = self.offset(vaddr, size)
        return self.data[start : start + size]

    def offset(self, vaddr: int, size: int) -> int:
        """Where in the file `size` bytes at a virtual address begin; ImageError when not there."""
        for s in self.segments:
            if s.type == PT_LOAD and s.vaddr <= vaddr and vaddr + size <= s.vaddr + s.filesz:
                return int(s.offset + vaddr - s.vaddr)
        raise ImageError(f"no contents at address {vaddr:#x}")

    def executable(self) -> list[Segment]:
        """The segments that are mapped executable."""
        return [s for s in self.segments if s.type == PT_LOAD and s.flags & PF_X and s.filesz]

    def code_ranges(self) -> list[tuple[int, int]]:
        """`(start, end)` of the executable sections, or of the executable segments of a file without sections.

        Older linkers put read-only data into the executable segment, too.
        """
        sections = [
            (s.addr, s.addr + s.size)
            for s in self.sections
            if s.flags & SHF_EXECINSTR and s.type != SHT_NOBITS and s.size
        ]
        segments = [(s.vaddr, s.vaddr + s.filesz) for s in self.executable()]
        inside = [c for c in sections if any(low <= c[0] and c[1] <= high for low, high in segments)]
        return inside or segments

    def span(self) -> tuple[int, int]:
        """The lowest and the highest address that is loaded, page by page."""
        loaded = [s for s in self.segments if s.type == PT_LOAD]
        low = min((s.vaddr & ~0xFFF for s in loaded), default=0)
        return low, max((s.vaddr + s.memsz + 0xFFF & ~0xFFF for s in loaded), default=low)

    def symbols(self) -> Iterator[Symbol]:
        """Entries of .symtab, or of .dynsym when the file was stripped of the former."""
        names, raw = self._symbols()
        for name, info, _, shndx, value, size in _SYM.iter_unpack(raw):
            if shndx and value:
                yield Symbol(text_at(names, name), info & 15, value, size)

    def sized(self, *types: int) -> Iterator[tuple[int, int]]:
        """Address and size of the symbols of these types that have one, without a look at their names."""
        for _, info, _, shndx, value, size in _SYM.iter_unpack(self._symbols()[1]):
            if size and shndx and value and info & 15 in types:
                yield value, size

    def _symbols(self) -> tuple[Buffer, Buffer]:
        """The string table and the whole entries of the symbol table."""
        kinds = {s.type: s for s in reversed(self.sections)}  # a file has one of each (gABI)
        table = kinds.get(SHT_SYMTAB) or kinds.get(SHT_DYNSYM)
        if not table:
            return b"", b""
        if table.link >= len(self.sections):
            raise ImageError(f"section {table.name} names no string table")
        strings = self.sections[table.link]
        names = self.data[strings.offset : strings.offset + strings.size]
        raw = self.data[table.offset : table.offset + table.size]
        return names, raw[: len(raw) // _SYM.size * _SYM.size]

    def addresses(self, names: Collection[bytes]) -> dict[bytes, int]:
        """Where symbols of these names are, whatever their version; of those that are defined here.

        As `symbols`, but without a look at the names of the others.
        """
        held, raw = map(bytes, self._symbols())
        # a string may be the end of another one's
        places = {m.start(): name for name in names for m in re.finditer(re.escape(name) + rb"(?=[\0@])", held)}
        first = memoryview(raw).cast("I")[:: _SYM.size // 4]
        found = {}
        for i, name in enumerate(first):
            if name in places:
                _, _, _, shndx, value, _ = _SYM.unpack_from(raw, i * _SYM.size)
                if shndx and value:
                    found[places[name]] = value
        return found

    def build_id(self) -> str | None:
        """The GNU build-id in hex, where the linker left one."""
        found = self._build_id()
        return None if found is None else found[1].hex()

    def build_id_at(self) -> tuple[int, bytes] | None:
        """The address of the GNU build-id in what is loaded, and itself."""
        found = self._build_id()
        if found is None:
            return None
        at = found[0]
        holder = next((s for s in self.segments if s.type == PT_LOAD and s.offset <= at < s.offset + s.filesz), None)
        return None if holder is None else (holder.vaddr + at - holder.offset, found[1])

    def _build_id(self) -> tuple[int, bytes] | None:
        """Its place in the file, and itself."""
        for s in self.segments:
            if s.type == PT_NOTE:
                note = self._note(self.data[s.offset : s.offset + s.filesz])
                if note is not None:
                    return s.offset + note[0], note[1]
        return None

    @staticmethod
    def _note(raw: bytes) -> tuple[int, bytes] | None:
        at = 0
        while at + _NHDR.size <= len(raw):
            namesz, descsz, kind = _NHDR.unpack_from(raw, at)
            name = at + _NHDR.size
            desc = name + (namesz + 3 & ~3)
            if kind == NT_GNU_BUILD_ID and raw[name : name + 4] == b"GNU\0":
                return desc, raw[desc : desc + descsz]
            at = desc + (descsz + 3 & ~3)
        return None

    def has_text_relocations(self) -> bool:
        """Whether the dynamic linker will write into the text (DT_TEXTREL)."""
        for s in self.segments:
            if s.type == PT_DYNAMIC:
                raw = self.data[s.offset : s.offset + s.filesz]
                for tag, value in _DYN.iter_unpack(raw[: len(raw) // 16 * 16]):
                    if tag == DT_TEXTREL or (tag == DT_FLAGS and value & DF_TEXTREL):
                        return True
        return False
