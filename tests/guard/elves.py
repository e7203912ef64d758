"""ELF files made up here: what no compiler makes."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

CLEAN = b"\x31\xc0\xc3"  # xor eax, eax; ret
LAUNCH = b"\x0f\x01\xc2\xc3"
ALLOC, TEXT = 2, 6  # flags of sections
FUNCTION = 0x12  # a symbol's info: global, STT_FUNC
E_SHNUM = 60  # offset in the ELF header

Symbol = tuple[bytes, int, int, int]  # name, info, section, value
Relocation = tuple[int, int, int, int]  # offset, type, symbol (a section's, by its number, in `linked`), addend
_SHDR = struct.Struct("<IIQQQQIIQQ")
_SYM = struct.Struct("<IBBHQQ")


def module(
    sections: Sequence[tuple[bytes, int, int, bytes]],
    symbols: Sequence[Symbol] = (),
    relocations: Sequence[Relocation] = (),
    modinfo: bytes = b"name=made\0",
) -> bytes:
    """A module: sections (name, type, flags, contents) from number 1 on, symbols likewise, relocations of the first
    section. Its string table is the last section but one."""
    whole = [(*each, 0, 0) for each in sections]
    whole.append((b".modinfo", 1, 2, modinfo, 0, 0))
    whole.append((b".rela", 4, 0x40, _relocations(relocations), len(whole) + 2, 1))
    return _file(whole, symbols)


def linked(
    *sections: tuple[bytes, int, bytes, Sequence[Relocation]],
    symbols: Sequence[tuple[bytes, int, int]] = (),
) -> bytes:
    """A module of sections (name, flags, contents, relocations), from number 1 on, and of symbols (name, section,
    value); a symbol for each section is there."""
    whole = [(name, 1, flags, contents, 0, 0) for name, flags, contents, _ in sections]
    relocated = [(number, name, each) for number, (name, _, _, each) in enumerate(sections, 1) if each]
    symtab = len(sections) + len(relocated) + 1
    whole += [(b".rela" + name, 4, 0x40, _relocations(each), symtab, number) for number, name, each in relocated]
    own = [(b"", 3, number, 0) for number in range(1, len(sections) + 1)]
    return _file(whole, [*own, *((name, FUNCTION, section, value) for name, section, value in symbols)])


def _relocations(relocations: Iterable[Relocation]) -> bytes:
    return b"".join(struct.pack("<QIIq", *each) for each in relocations)


def _file(sections: Sequence[tuple[bytes, int, int, bytes, int, int]], symbols: Iterable[Symbol]) -> bytes:
    """A file of sections (name, type, flags, contents, link, info), with the symbols' table and strings behind them."""
    strings, table = b"\0", bytes(24)
    for name, info, section, value in symbols:
        table += _SYM.pack(len(strings) if name else 0, info, 0, section, value, 0)
        strings += name and name + b"\0"
    whole = [
        *sections,
        (b".symtab", 2, 0, table, len(sections) + 2, 1),
        (b".strtab", 3, 0, strings, 0, 0),
    ]
    names = b"\0" + b"".join(name + b"\0" for name, *_ in whole) + b".shstrtab\0"
    whole.append((b".shstrtab", 3, 0, names, 0, 0))
    out, headers = bytearray(64), [bytes(64)]
    for name, kind, flags, contents, link, info in whole:
        where = names.index(b"\0" + name + b"\0") + 1
        headers.append(_SHDR.pack(where, kind, flags, 0, len(out), len(contents), link, info, 1, 0))
        if kind != 8:  # SHT_NOBITS
            out += contents
    struct.pack_into(
        "<16sHHIQQQIHHHHHH", out, 0, b"\x7fELF\2\1\1", 1, 62, 1, 0, 0, len(out), 0, 64, 0, 0, 64, len(headers),
        len(headers) - 1,
    )  # fmt: skip
    return bytes(out + b"".join(headers))
