"""Kernel images: modules, the kernel itself, and any other x86-64 ELF file as far as an audit needs it.

Read with `struct` and `memoryview.cast`, a whole kernel's modules in well under a second: a reader that
builds an object for every section and symbol takes ten to fifty times as long, and the gate at load time
has a fifth of a millisecond. Nothing is read before it is asked for. Offsets are bytes, relative to the
file or to the section as said. Every structure lies within the file or ImageError is raised.

Sources: elf(5); the psABI for relocations; include/linux/module_signature.h and
include/linux/export.h of Linux 6.1 for what only modules have.
"""

from __future__ import annotations

import re
import struct
from bisect import bisect_left, bisect_right
from functools import cached_property
from itertools import accumulate
from operator import add
from typing import NamedTuple

from splitlock._errors import ImageError
from splitlock.image.elf import (
    ET_REL,
    PF_X,
    PHDR,
    PT_LOAD,
    SHF_EXECINSTR,
    SHT_DYNSYM,
    SHT_NOBITS,
    SHT_SYMTAB,
    STT_FUNC,
    STT_GNU_IFUNC,
    text_at,
)
from splitlock.image.sections import Sections
from splitlock.image.signature import Signature, read_signature
from splitlock.linux.text import one_line

__all__ = ["ET_REL", "Code", "KernelImage", "Relocation", "Signature"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from splitlock.image.elf import Buffer

SHT_RELA = 4
SHF_COMPRESSED = 0x800

_RELA = struct.Struct("<QIIq")
_KSYMTAB = struct.Struct("<iii")
_KSYMTAB_NAME = re.compile(rb"\0__ksymtab_([^\0]+)(?=\0)")

_SYMBOL = 24  # bytes of a symbol: two 32-bit words (name; info, other, section), two of 64 bits (value, size)
# st_info and st_other of functions, as the low half of the second word
_FUNCTION_SYMBOLS = frozenset(
    other << 8 | bind << 4 | kind for kind in (STT_FUNC, STT_GNU_IFUNC) for bind in (0, 1, 2) for other in range(4)
)
# What a damaged or hostile file can make us read again and again, or keep, has limits far above any real one's.
_MODINFO = 4 << 20  # bytes; a driver with thousands of aliases has some 200,000
_NAMES = 64 << 20  # names times bytes of the string table: below this it does not matter how they overlap
_NAME = 1 << 16  # bytes of an undefined symbol's name that are looked at for that
_ALIKE = 16  # undefined symbols of one name; there is one


class Relocation(NamedTuple):
    """One against a symbol that is known."""

    offset: int  #: in the section
    type: int
    addend: int


class Code:
    """An executable section, or an executable segment of a file that has no section headers.

    section  its name ("segment N" where there are no sections)
    address  where it is linked to be, 0 in a module
    offset   where it starts in the file, bytes
    size     bytes
    index    section or segment number
    """

    __slots__ = ("address", "image", "index", "offset", "section", "size")

    def __init__(self, image: KernelImage, index: int, section: str, address: int, offset: int, size: int) -> None:
        self.image, self.index, self.section = image, index, section
        self.address, self.offset, self.size = address, offset, size

    @property
    def data(self) -> bytes:
        """Its bytes (a copy)."""
        return self.image.data[self.offset : self.offset + self.size]

    @property
    def starts(self) -> list[int]:
        """Where functions are known to start: sorted offsets relative to the section."""
        return self.image.functions(self)[0]

    def covered(self, offset: int) -> bool:
        """Whether `offset` lies within a function whose size is known."""
        starts, ends, _ = self.image.functions(self)
        at = bisect_right(starts, offset) - 1
        return at >= 0 and offset < ends[at]

    def relocations(self, symbol: str) -> list[Relocation]:
        """The relocations against one undefined symbol, by offset in the section."""
        return self.image.relocations(self, symbol)


class KernelImage(Sections):
    """One x86-64 ELF file. ImageError when it is none, or does not hold together."""

    def __init__(self, data: Buffer) -> None:
        super().__init__(data)
        self._functions: dict[int, tuple[list[int], list[int], list[int]]] = {}
        self._numbers: dict[str, list[int]] = {}  # of undefined symbols, by name

    @property
    def code(self) -> list[Code]:
        """The sections that are executable; the executable segments where there are no sections.

        Not kept: in a circle with it the file's contents would stay in memory until a garbage collection.
        """
        if not self.kinds:
            return self._segments()
        found = []
        for index in [i for i, flags in enumerate(self.flags) if flags & SHF_EXECINSTR]:
            at, kind, flags, address, offset, size, *_ = self.header(index)
            if kind == SHT_NOBITS or not size:
                continue
            name = text_at(self.names, at)
            if offset + size > self.size:
                raise ImageError(f"section {one_line(name)} outside the file (truncated?)")
            if flags & SHF_COMPRESSED:
                raise ImageError(f"executable section {one_line(name)} is compressed")
            found.append(Code(self, index, name, address, offset, size))
        return found

    def _segments(self) -> list[Code]:
        if self.phnum and self.phentsize != PHDR.size:
            raise ImageError(f"program headers of {self.phentsize} bytes, not {PHDR.size}")
        raw = self.bytes_at(self.phoff, self.phnum * PHDR.size, "the program headers")
        found = []
        for index, (kind, flags, offset, vaddr, _, filesz, _, _) in enumerate(PHDR.iter_unpack(raw)):
            if kind == PT_LOAD and flags & PF_X and filesz:
                if offset + filesz > self.size:
                    raise ImageError(f"segment {index} outside the file (truncated?)")
                found.append(Code(self, index, f"segment {index}", vaddr, offset, filesz))
        if sum(code.size for code in found) > self.size:
            raise ImageError("segments overlap in the file")
        return found

    @cached_property
    def modinfo(self) -> dict[str, list[str]]:
        """What MODULE_INFO() and its like left: key to values, in the file's order."""
        found: dict[str, list[str]] = {}
        for index in self.named(b".modinfo"):
            raw = self.contents(index)
            if len(raw) > _MODINFO:
                raise ImageError(f".modinfo of {len(raw):,} bytes")
            for entry in raw.decode("utf-8", "replace").split("\0"):
                key, separator, value = entry.partition("=")
                if key in found:
                    found[key].append(value)
                elif separator:
                    found[key] = [value]
        return found

    @cached_property
    def _symbols(self) -> tuple[memoryview, memoryview, bytes]:
        """The symbol table as 32-bit and as 64-bit words, and its strings. .dynsym where there is no .symtab."""
        for wanted in (SHT_SYMTAB, SHT_DYNSYM):
            for index in self.of_type(wanted):
                raw = memoryview(self.contents(index))
                raw = raw[: len(raw) // _SYMBOL * _SYMBOL]
                return raw.cast("I"), raw.cast("Q"), self.contents(self.header(index)[6])
        return memoryview(b"").cast("I"), memoryview(b"").cast("Q"), b""

    def symbol(self, number: int) -> tuple[str, int, int, int, int] | None:
        """A symbol by its number: name, kind, section's number, value, size. None where there is no such."""
        words, quads, strings = self._symbols
        if not 0 <= 6 * number < len(words):
            return None
        info = words[6 * number + 1]
        return text_at(strings, words[6 * number]), info & 15, info >> 16, quads[3 * number + 1], quads[3 * number + 2]

    def symbols(self) -> Iterator[tuple[str, int, int, int, int]]:
        """All of them, as `symbol` gives them."""
        for number in range(len(self._symbols[0]) // 6):
            found = self.symbol(number)
            assert found is not None
            yield found

    @cached_property
    def imports(self) -> frozenset[str]:
        """Names of the undefined symbols that something else must provide."""
        words, _, strings = self._symbols
        # A symbol's second word is st_info, st_other, st_shndx: below 10000h means undefined. The first symbol is
        # none, whatever is in it: the loader begins with the second (simplify_symbols).
        names = [n for n, info in zip(words[6::6].tolist(), words[7::6].tolist(), strict=True) if info < 0x10000 and n]
        if len(names) * len(strings) > _NAMES:
            _check_names(strings, names)
        text = strings.decode("utf-8", "replace") + "\0" if strings.isascii() else ""
        if not text:
            return frozenset([text_at(strings, name) for name in names])
        end = text.find
        return frozenset([text[name : end("\0", name)] for name in names])

    @cached_property
    def exports(self) -> frozenset[str]:
        """Names of the symbols exported to modules: every X of a `__ksymtab_X`."""
        if b"__ksymtab" not in self.names or not (self.named(b"__ksymtab") or self.named(b"__ksymtab_gpl")):
            return frozenset()
        found = _KSYMTAB_NAME.findall(self._symbols[2])
        if found:
            return frozenset([name.decode("utf-8", "replace") for name in found])
        return self._linked_exports() if self.type != ET_REL else frozenset()

    def _linked_exports(self) -> frozenset[str]:
        """Those of a linked and stripped kernel: each entry holds its own distance from the name."""
        tables = self.named(b"__ksymtab_strings")
        if not tables:
            return frozenset()
        start, strings = self.header(tables[0])[3], self.contents(tables[0])
        places = set()
        for index in (*self.named(b"__ksymtab"), *self.named(b"__ksymtab_gpl")):
            at = self.header(index)[3] + 4 - start
            raw = self.contents(index)
            distances = _KSYMTAB.iter_unpack(raw[: len(raw) // _KSYMTAB.size * _KSYMTAB.size])
            places |= {at + _KSYMTAB.size * entry + distance for entry, (_, distance, _) in enumerate(distances)}
        names = [place for place in places if 0 <= place < len(strings)]
        if len(names) * len(strings) > _NAMES:
            _check_names(strings, names)
        return frozenset([text_at(strings, name) for name in names]) - {""}

    def functions(self, code: Code) -> tuple[list[int], list[int], list[int]]:
        """Of a section: sorted starts of functions, the end that counts from each one on, and places of names.

        From symbols, and from call frame entries in files that are linked. An end is the farthest of the
        functions that have begun so far, so that aliases and nested symbols cover what their outermost does.
        A stripped kernel has neither: the places in its unwind table serve as well, nearly all being instructions.
        """
        known = self._functions.get(code.index)
        if known is None:
            known = self._functions[code.index] = self._find_functions(code)
        return known

    def _find_functions(self, code: Code) -> tuple[list[int], list[int], list[int]]:
        base = 0 if self.type == ET_REL else code.address
        found: list[tuple[int, int, int]] = []  # start, size, where the name is
        if self.kinds:
            found = [(value - base, size, name) for value, size, name in self._function_symbols.get(code.index, ())]
        if self.type != ET_REL:
            frames = self._frames
            inside = slice(bisect_left(frames, (base,)), bisect_left(frames, (base + code.size,)))
            found += [(low - base, high - low, 0) for low, high in frames[inside]]
        found = sorted([each for each in found if 0 <= each[0] < code.size])
        if not found:
            known = self._unwind_places
            inside = slice(bisect_left(known, code.address), bisect_left(known, code.address + code.size))
            places = [at - code.address for at in known[inside]]
            return places, [*places[1:], code.size][: len(places)], [0] * len(places)
        # of several at one start the longest, which comes last, and one with a name
        spans = {start: (size, name) for start, size, name in found}
        ends = accumulate([min(start + size, code.size) for start, (size, _) in spans.items()], max)
        return list(spans), list(ends), [name for _, name in spans.values()]

    @cached_property
    def _function_symbols(self) -> dict[int, list[tuple[int, int, int]]]:
        """Value, size and place of the name of each function symbol, by section number."""
        words, quads, _ = self._symbols
        names, infos, values, sizes = words[0::6], words[1::6].tolist(), quads[1::3], quads[2::3]
        found: dict[int, list[tuple[int, int, int]]] = {}
        for at in [at for at, info in enumerate(infos) if info & 0xFFFF in _FUNCTION_SYMBOLS]:
            found.setdefault(infos[at] >> 16, []).append((values[at], sizes[at], names[at]))
        return found

    @cached_property
    def _frames(self) -> list[tuple[int, int]]:
        from splitlock.image.elf import Elf
        from splitlock.image.functions import frame_ranges

        try:
            return sorted(frame_ranges(Elf(self.data)))
        except ImageError:
            return []  # malformed call frames only cost us starts

    @cached_property
    def _unwind_places(self) -> list[int]:
        """Addresses in the ORC unwind table of a linked kernel, sorted: starts of instructions.

        A few are those of alternatives, which may fall within the instruction that they are to replace.
        Each entry of .orc_unwind_ip is its distance from the code (Documentation/arch/x86/orc-unwinder.rst).
        """
        found: list[int] = []
        for index in self.named(b".orc_unwind_ip") if self.type != ET_REL else ():
            start = self.header(index)[3]
            raw = memoryview(self.contents(index))
            distances = raw[: len(raw) // 4 * 4].cast("i").tolist()
            found += map(add, distances, range(start, start + 4 * len(distances), 4))
        return sorted(set(found))

    def function(self, code: Code, offset: int) -> str | None:
        """The name of the function over an offset in a section, None when no symbol tells."""
        starts, ends, names = self.functions(code)
        at = bisect_right(starts, offset) - 1
        return text_at(self._symbols[2], names[at]) or None if at >= 0 and offset < ends[at] and names[at] else None

    def functions_named(self, name: str) -> list[tuple[Code, int, int]]:
        """The functions of a name: section, offset in it, and size in bytes. Static ones can have it in common."""
        strings, wanted, found = self._symbols[2], name.encode() + b"\0", []
        for code in self.code if self.kinds else ():
            base = 0 if self.type == ET_REL else code.address
            for value, size, at in self._function_symbols.get(code.index, ()):
                if strings.startswith(wanted, at) and 0 <= value - base < code.size:
                    found.append((code, value - base, size))
        return found

    def relocations(self, code: Code, symbol: str) -> list[Relocation]:
        """A section's relocations against an undefined symbol; empty in files that are linked."""
        if self.type != ET_REL:
            return []
        numbers = self._numbers.get(symbol)
        if numbers is None:
            words, _, strings = self._symbols
            name = symbol.encode() + b"\0"
            columns = enumerate(zip(words[0::6].tolist(), words[1::6].tolist(), strict=True))
            numbers = [n for n, (at, info) in columns if info < 0x10000 and at and strings.startswith(name, at)]
            self._numbers[symbol] = numbers
        found = []
        for index in self.of_type(SHT_RELA):
            if self.header(index)[7] == code.index:
                raw = self.contents(index)
                if len(numbers) > _ALIKE:
                    wanted = frozenset(numbers)
                    table = _RELA.iter_unpack(raw[: len(raw) // _RELA.size * _RELA.size])
                    found += [Relocation(at, kind, addend) for at, kind, n, addend in table if n in wanted]
                    continue
                for number in numbers:
                    found += _against(raw, number)
        return sorted(r for r in found if r.offset < code.size)

    @property
    def signature(self) -> Signature | None:
        """Who signed the module, from what is appended to it; None when nothing is."""
        return read_signature(self.data)


def _against(raw: bytes, symbol: int) -> list[Relocation]:
    """The relocations against one symbol number: found as bytes, since a section can have 200,000."""
    number = struct.pack("<I", symbol)
    found = []
    at = raw.find(number, 12)
    while at >= 0:
        if at % 24 == 12 and at + 12 <= len(raw):
            offset, kind, _, addend = _RELA.unpack_from(raw, at - 12)
            found.append(Relocation(offset, kind, addend))
        at = raw.find(number, at + 1)
    return found


def _check_names(strings: bytes, names: list[int]) -> None:
    """Whether names keep to themselves, as far as linkers let them (one can be the end of another)."""
    find = strings.find
    ends = [(at, find(b"\0", at, at + _NAME)) for at in names]
    if sum(end - at if end >= 0 else _NAME for at, end in ends) > 4 * len(strings) + _NAME:
        raise ImageError("names of symbols overlap")
