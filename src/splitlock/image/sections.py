"""The section headers of an x86-64 ELF file, read as columns: thousands of files with 70 sections each are many.

Field names are those of elf(5). Every structure that is read lies within the file, or ImageError is raised.
"""

from __future__ import annotations

from splitlock._errors import ImageError
from splitlock.image.elf import EM_X86_64, ET_DYN, ET_EXEC, ET_REL, SHDR, SHT_NOBITS, read_header, text_at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.image.elf import Buffer

SHT_NULL = 0
_SHN_XINDEX = 0xFFFF


class Sections:
    """Header and sections of one x86-64 ELF file. ImageError when it is none, or does not hold together."""

    def __init__(self, data: Buffer) -> None:
        self.data = data
        self.size = len(data)
        (self.type, machine, _, _, self.phoff, shoff, _, _,
         self.phentsize, self.phnum, shentsize, shnum, shstrndx) = read_header(data)  # fmt: skip
        if machine != EM_X86_64:
            raise ImageError(f"not x86-64 code (e_machine {machine})")
        if self.type not in (ET_REL, ET_EXEC, ET_DYN):
            raise ImageError(f"not a module, program or library (e_type {self.type})")
        self.kinds: list[int] = []  # of each section sh_name, with sh_type in the upper half
        self.flags: list[int] = []  # and its sh_flags
        self._shoff = shoff
        self.names = b""
        if shoff:
            if shentsize != SHDR.size:
                raise ImageError(f"section headers of {shentsize} bytes, not {SHDR.size}")
            if shnum == 0 or shstrndx == _SHN_XINDEX:  # 65,280 sections or more: the numbers are in section 0
                first = SHDR.unpack(self.bytes_at(shoff, SHDR.size, "section header 0"))
                shnum, shstrndx = shnum or first[5], first[6] if shstrndx == _SHN_XINDEX else shstrndx
            quads = memoryview(self.bytes_at(shoff, shnum * SHDR.size, "the section headers")).cast("Q")
            self.kinds, self.flags = quads[0::8].tolist(), quads[1::8].tolist()
            sizes = quads[4::8].tolist()
            if sum(sizes) > self.size:  # else nothing can be read twice
                pairs = zip(self.kinds, sizes, strict=True)
                if sum(size for both, size in pairs if both >> 32 not in (SHT_NULL, SHT_NOBITS)) > self.size:
                    raise ImageError("the sections are larger than the file (truncated, or they overlap)")
            if shstrndx:
                self.names = self.contents(shstrndx)
        elif self.type == ET_REL:
            raise ImageError("no section headers (truncated?)")

    def bytes_at(self, offset: int, size: int, what: str) -> bytes:
        """`size` bytes of the file; `what` they are, for the error when they are not all there."""
        if offset + size > self.size:
            raise ImageError(f"{what} outside the file (truncated?)")
        return self.data[offset : offset + size]

    def contents(self, index: int) -> bytes:
        """The bytes of a section by its number; none for SHT_NOBITS."""
        _, kind, _, _, offset, size, *_ = self.header(index)
        if kind == SHT_NOBITS:
            return b""
        return self.bytes_at(offset, size, f"section {index}")

    def header(self, index: int) -> tuple[int, ...]:
        """sh_name, sh_type, sh_flags, sh_addr, sh_offset, sh_size, sh_link, sh_info, sh_addralign, sh_entsize."""
        if index >= len(self.kinds):
            raise ImageError(f"section {index} of {len(self.kinds)} is referred to")
        return SHDR.unpack_from(self.data, self._shoff + index * SHDR.size)

    def of_type(self, kind: int) -> list[int]:
        """Numbers of the sections with that sh_type."""
        return [i for i, both in enumerate(self.kinds) if both >> 32 == kind]

    def section_name(self, index: int) -> str:
        """The name of a section by its number."""
        return text_at(self.names, self.header(index)[0])

    def named(self, name: bytes) -> list[int]:
        """Numbers of the sections of that name: its places among the names first, as sections are many."""
        places = set()
        name += b"\0"
        at = self.names.find(name)
        while at >= 0:  # one name can be the end of another
            places.add(at)
            at = self.names.find(name, at + 1)
        return [i for i, both in enumerate(self.kinds) if both & 0xFFFFFFFF in places] if places else []
