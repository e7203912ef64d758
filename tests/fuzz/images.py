"""ELF files for the fuzzers: small ones that hold all the readers look at, and damage that knows the format.

Nothing here needs a compiler: a file is a list of sections, and a test can make the one it wants.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from fuzz.mutate import damage, number, put

from splitlock.image.signature import MARKER

ET_REL, ET_EXEC = 1, 2
PROGBITS, SYMTAB, STRTAB, RELA, NOBITS = 1, 2, 3, 4, 8
ALLOC, EXEC = 2, 4
BASE = 0x400000  # where linked files are loaded

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_SHDR = struct.Struct("<IIQQQQIIQQ")
_PHDR = struct.Struct("<IIQQQQQQ")
_WIDTHS = {
    "file": (4, 1, 1, 1, 9, 2, 2, 4, 8, 8, 8, 4, 2, 2, 2, 2, 2, 2),
    "segment": (4, 4, 8, 8, 8, 8, 8, 8),
    "section": (4, 4, 8, 8, 8, 8, 4, 4, 8, 8),
    "symbol": (4, 1, 1, 2, 8, 8),
    "relocation": (8, 4, 4, 8),
}


@dataclass
class Section:
    """One section. `like`: the name of another, whose place in the file it has."""

    name: str
    kind: int
    data: bytes = b""
    flags: int = 0
    link: int = 0
    info: int = 0
    like: str = ""


def elf(sections: list[Section], kind: int = ET_REL, *, headers: bool = True, eh_frame_hdr: str = "") -> bytes:
    """A file with these sections behind an empty first one, and .shstrtab behind them.

    A linked one is loaded at BASE by one executable segment; `headers`: with section headers; `eh_frame_hdr`: the
    section that PT_GNU_EH_FRAME names.
    """
    names = bytearray(b"\0")
    offsets: dict[str, int] = {}
    places: list[tuple[int, int, int]] = []  # name, offset, size
    segments = 0 if kind == ET_REL else 1 + bool(eh_frame_hdr)
    at = _EHDR.size + segments * _PHDR.size
    body = b""
    known: dict[str, int] = {}  # a name is there once
    for section in (*sections, Section(".shstrtab", STRTAB)):
        if section.name not in known:
            known[section.name] = len(names)
            names += section.name.encode() + b"\0"
        data = bytes(names) if section.name == ".shstrtab" and not section.data else section.data
        if section.like:
            offset = offsets[section.like]
            size = next(len(s.data) for s in sections if s.name == section.like)
        else:
            data += bytes(-len(data) % 8)
            offset, size = at + len(body), len(data) - (-len(section.data) % 8 if section.data else 0)
            body += data
        offsets.setdefault(section.name, offset)
        places.append((known[section.name], offset, size))
    shoff = at + len(body)
    table = bytes(_SHDR.size)
    for section, (name, offset, size) in zip([*sections, Section(".shstrtab", STRTAB)], places, strict=True):
        address = 0 if kind == ET_REL else BASE + offset
        table += _SHDR.pack(
            name, section.kind, section.flags, address, offset, size, section.link, section.info, 1, 0
        )  # fmt: skip
    program = b""
    if segments:
        whole = shoff + len(table) * headers
        program = _PHDR.pack(1, 5, 0, BASE, BASE, whole, whole, 0x1000)
        if eh_frame_hdr:
            place = offsets[eh_frame_hdr]
            program += _PHDR.pack(0x6474E550, 4, place, BASE + place, BASE + place, 12, 12, 4)
    count = min(len(sections) + 2, 0xFFFF)
    ident = b"\x7fELF\2\1\1" + bytes(9)
    head = _EHDR.pack(
        ident, kind, 62, 1, 0, _EHDR.size if segments else 0, shoff if headers else 0, 0, _EHDR.size, _PHDR.size,
        segments, _SHDR.size, count if headers else 0, count - 1 if headers else 0,
    )  # fmt: skip
    return head + program + body + (table if headers else b"")


def symbols(*entries: tuple[str, int, int, int, int]) -> tuple[bytes, bytes]:
    """.symtab and .strtab of (name, info, section, value, size)."""
    table, strings = bytes(24), b"\0"
    for name, info, section, value, size in entries:
        table += struct.pack("<IBBHQQ", len(strings) if name else 0, info, 0, section, value, size)
        strings += name.encode() + b"\0" if name else b""
    return table, strings


# Signatures


def der(tag: int, *parts: bytes) -> bytes:
    """One element of DER."""
    body = b"".join(parts)
    if len(body) < 0x80:
        return bytes([tag, len(body)]) + body
    size = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(size)]) + size + body


_SHA512 = bytes.fromhex("608648016503040203")


def message(name: bytes = b"Debian Secure Boot CA", *, algorithm: bytes = _SHA512, keyed: bool = False) -> bytes:
    """A PKCS#7 message as sign-file makes it, of one signer and without a signature's bytes."""
    signed, data = bytes.fromhex("2a864886f70d010702"), bytes.fromhex("2a864886f70d010701")
    country = der(0x31, der(0x30, der(6, bytes.fromhex("550406")), der(0x13, b"XY")))
    common = der(0x31, der(0x30, der(6, bytes.fromhex("550403")), der(0x0C, name)))
    who = der(0x80, bytes(range(20))) if keyed else der(0x30, der(0x30, country, common), der(2, b"\x32\xa0\x28\x7f"))
    hashed = der(0x30, der(6, algorithm), der(5))
    signer = der(0x30, der(2, b"\1"), who, hashed, der(0x30, der(6, b"*\x86H")), der(4, bytes(16)))
    inner = der(0x30, der(2, b"\1"), der(0x31, hashed), der(0x30, der(6, data)), der(0x31, signer))
    return der(0x30, der(6, signed), der(0xA0, inner))


def messages() -> list[bytes]:
    """One that names its signer, one that names the key."""
    return [message(), message(keyed=True)]


def signed(raw: bytes, message: bytes, kind: int = 2) -> bytes:
    """A module with a signature behind it."""
    return raw + message + bytes([0, 0, kind]) + bytes(5) + len(message).to_bytes(4, "big") + MARKER


def unsigned(raw: bytes) -> tuple[bytes, bytes]:
    """The module and the message behind it."""
    if not raw.endswith(MARKER) or len(raw) < 40:
        return raw, b""
    end = len(raw) - 40
    start = max(0, end - int.from_bytes(raw[end + 8 : end + 12], "big"))
    return raw[:start], raw[start:end]


# The files to start from

_TEXT = bytes.fromhex(
    "0f30 0f01c4 0f22e0 ff1500000000 e800000000"  # wrmsr; vmxoff; mov cr4; calls of pv_ops, cr4_update_irqsoff
    "48b80f01c20000000000 ebf5 c3"  # movabs rax, ... with a vmlaunch in it; jmp into it; ret
    "06 0f01c1 90 0f01d8 0f23f8 660f78c00102 0f78c3 cf f4 9d c3"  # no instruction; vmcall; a function: vmrun ...
)
_MODINFO = (
    b"license=GPL\0vermagic=6.1.0-56-amd64 SMP preempt mod_unload modversions \0name=toy\0intree=Y\0sld_safe=Y\0"
    b"depends=kvm,irqbypass\0parm=a:b\0srcversion=ABC\0parm=c:d\0"
)
_VMX = bytes.fromhex("90 0f01c2 0f01c3 c70424f00f0000 0f013c24 f30fc73424 c3")


def module() -> bytes:
    """A module: two functions in .text with a gap, relocations, exports, .text.unlikely, and a signature."""
    table, strings = symbols(
        ("", 3, 1, 0, 0), ("first", 0x12, 1, 0, 33), ("second", 2, 1, 38, 20), ("cold", 0x12, 3, 0, 16),
        ("pv_ops", 0x10, 0, 0, 0), ("cr4_update_irqsoff", 0x10, 0, 0, 0), ("handle_guest_split_lock", 0x10, 0, 0, 0),
        ("register_kprobe", 0x20, 0, 0, 0), ("vmap", 0x10, 0, 0, 0), ("__ksymtab_toy", 0, 5, 0, 0),
    )  # fmt: skip
    places = (10, 2, 5, 0xC0 - 4), (15, 4, 6, -4), (4, 11, 5, 8)
    relocations = b"".join(struct.pack("<QIIq", *place) for place in places)
    sections = [
        Section(".text", PROGBITS, _TEXT, ALLOC | EXEC),
        Section(".rela.text", RELA, relocations, 0x40, 7, 1),
        Section(".text.unlikely", PROGBITS, _VMX, ALLOC | EXEC),
        Section(".modinfo", PROGBITS, _MODINFO, ALLOC),
        Section("__ksymtab", PROGBITS, bytes(12), ALLOC),
        Section("__ksymtab_strings", PROGBITS, b"toy\0\0", ALLOC),
        Section(".symtab", SYMTAB, table, 0, 8, 5),
        Section(".strtab", STRTAB, strings),
        Section(".bss", NOBITS, b"", ALLOC),
    ]
    return signed(elf(sections), message())


def frames(functions: list[tuple[int, int]], address: int) -> bytes:
    """.eh_frame at an address: a CIE and an entry for each (start, size)."""
    found = struct.pack("<II", 20, 0) + b"\1zR\0\1\x78\x10\1\x1b" + bytes(7)
    for start, size in functions:
        at = len(found)
        found += struct.pack("<IIiI", 20, at + 4, start - address - at - 8, size) + bytes(8)
    return found + bytes(4)


def linked(*, headers: bool = True, orc: bool = False) -> bytes:
    """A kernel, as a vmlinuz holds it: linked and stripped, with exports that name themselves by distance.

    `orc`: with an unwind table instead of call frames; `headers`: with section headers.
    """
    sections = [
        Section(".text", PROGBITS, _TEXT, ALLOC | EXEC),
        Section(".eh_frame", PROGBITS, bytes(96), ALLOC),
        Section("__ksymtab", PROGBITS, bytes(24), ALLOC),
        Section("__ksymtab_gpl", PROGBITS, bytes(12), ALLOC),
        Section("__ksymtab_strings", PROGBITS, b"vmap\0printk\0pv_ops\0", ALLOC),
        Section(".eh_frame_hdr", PROGBITS, bytes(12), ALLOC),
        *([Section(".orc_unwind_ip", PROGBITS, bytes(12), ALLOC)] if orc else []),
    ]
    hdr = ".eh_frame_hdr" if not headers else ""
    rough = elf(sections, ET_EXEC, eh_frame_hdr=hdr)
    at = {section.name: place[4] for section, place in zip(sections, section_headers(rough)[1:], strict=False)}
    text, eh_frame = BASE + at[".text"], BASE + at[".eh_frame"]
    if orc:
        places = (text + place - (BASE + at[".orc_unwind_ip"]) - 4 * n for n, place in enumerate((0, 38, 49)))
        sections[6].data = b"".join(struct.pack("<i", place) for place in places)
    else:
        sections[1].data = frames([(text, 33), (text + 38, 20)], eh_frame).ljust(96, b"\0")
    for number_, (table, where) in enumerate((("__ksymtab", 0), ("__ksymtab", 12), ("__ksymtab_gpl", 0))):
        section = next(s for s in sections if s.name == table)
        name = at["__ksymtab_strings"] + (0, 5, 12)[number_]
        section.data = put(section.data, where + 4, name - at[table] - where - 4, 4)
    sections[5].data = b"\1\x1b\3\x3b" + struct.pack("<iI", eh_frame - (BASE + at[".eh_frame_hdr"] + 4), 0)
    return elf(sections, ET_EXEC, headers=headers, eh_frame_hdr=hdr)


def seeds() -> list[bytes]:
    """What the fuzzer starts from: some 2,000 bytes each."""
    plain, _ = unsigned(module())
    return [
        module(), plain, signed(plain, message(keyed=True)), signed(plain, b"", 1),
        linked(), linked(headers=False), linked(orc=True),
        elf([Section(".text", PROGBITS, _VMX, EXEC)], ET_EXEC), elf([]),
    ]  # fmt: skip


# Damage


def section_headers(raw: bytes) -> list[tuple[int, ...]]:
    """The section headers, as far as they are there."""
    if len(raw) < _EHDR.size:
        return []
    shoff, shnum = int.from_bytes(raw[40:48], "little"), int.from_bytes(raw[60:62], "little")
    places = (shoff + _SHDR.size * i for i in range(min(shnum, 200)))
    return [_SHDR.unpack_from(raw, at) for at in places if at + _SHDR.size <= len(raw)]


def _field(raw: bytes, at: int, layout: str, chance: Random) -> bytes:
    """One field of a structure set to something that matters."""
    widths = _WIDTHS[layout]
    index = chance.randrange(len(widths))
    at += sum(widths[:index])
    width, some = widths[index], chance.randrange(max(1, len(raw) - 8))
    if at + width > len(raw):
        return raw
    others = (int.from_bytes(raw[place : place + size], "little") for place, size in ((some, 4), (at, width)))
    return put(raw, at, number(chance, len(raw), *others), width)


def _headers(raw: bytes, chance: Random) -> bytes:
    """A field of the file header, a segment or a section; or one section's header in place of another's."""
    table, count = int.from_bytes(raw[40:48], "little"), len(section_headers(raw))
    kind = chance.choice(("file", "segment", "section", "section", "section", "copy"))
    if kind == "file":
        return _field(raw, 0, kind, chance)
    if kind == "segment":
        return _field(raw, int.from_bytes(raw[32:40], "little") + _PHDR.size * chance.randrange(2), kind, chance)
    if not count:
        return raw
    one, other = (table + _SHDR.size * chance.randrange(count) for _ in range(2))
    if kind == "section":
        return _field(raw, one, kind, chance)
    return raw[:one] + raw[other : other + _SHDR.size] + raw[one + _SHDR.size :]


def replaced(raw: bytes, index: int, data: bytes) -> bytes:
    """The file with other contents in a section: they go to the end, in front of the signature."""
    raw, said = unsigned(raw)
    at = int.from_bytes(raw[40:48], "little") + _SHDR.size * index
    where = len(raw) + -len(raw) % 8
    raw = put(put(raw, at + 24, where, 8), at + 32, len(data), 8).ljust(where, b"\0") + data
    return signed(raw, said) if said else raw


_WORDS = (
    b"vermagic=", b"name=", b"=", b"\0", b"", b"intree", b"sld_safe=", b"depends=a,,b", b"vermagic=6.17.0", b"6.1",
    b".", b"vermagic=6.9 ", b"9" * 5000, b"\xff\xfe", b"\xed\xa0\x80", b"\x1b[2J", b"name=" + b"n" * 300, b"depends=",
    b"\n", "vermagic=٦.١".encode(), b"srcversion=", b"vermagic=" + b"9" * 5000 + b".1",
)  # fmt: skip
# Whole instructions, first bytes of instructions, prefixes, opcodes that are none
_INSTRUCTIONS = b"".join((
    b"0f30 0f01c1 0f01c2 0f01c4 0f01d8 0f22e0 0f23f8 0f06 0f09 f30fc73424 660fc73424 0f017d00 0f0110 0fb0 06 ",
    b"0f78c3 660f78c00102 f20f78c10203 eb00 ebfd 7501 0f84f8ffffff e8fcffffff ff1500000000 48b8 c3 cc cf f4 9d 0f 66 ",
    b"f2 f3 48 c4e2 c5f8 62f1 0f3880 0f01cf 0f01f8 ea 9a 0fae f0 2e 65 67 0f0b 0fff 0f1f8400 c8 c2",
)).split()  # fmt: skip


def _contents(raw: bytes, chance: Random) -> bytes:
    """What is in a section, going by what it is: symbols, relocations, modinfo, text."""
    found = section_headers(raw)
    if not found:
        return raw
    index = chance.randrange(len(found))
    _, kind, flags, _, offset, size, *_ = found[index]
    data = raw[offset : offset + size][:4096]
    if kind in (SYMTAB, RELA):
        layout = "symbol" if kind == SYMTAB else "relocation"
        entries = [data[at : at + 24] for at in range(0, len(data), 24)] or [b""]
        at = chance.randrange(len(entries))
        entries[at] = _field(entries[at], 0, layout, chance)
        if chance.random() < 0.2:
            entries.insert(at, chance.choice(entries))
        data = b"".join(entries)
    elif flags & EXEC:
        new = bytes.fromhex(b"".join(chance.choices(_INSTRUCTIONS, k=chance.randrange(1, 6))).decode())
        at = chance.randrange(len(data) + 1)
        data = data[:at] + new + data[at + chance.choice((0, len(new))) :]
    elif b"license=" in data or chance.random() < 0.1:
        words = data.split(b"\0")
        at = chance.randrange(len(words))
        words[at] = chance.choice((chance.choice(_WORDS), words[at] + chance.choice(_WORDS), damage(words[at], chance)))
        data = b"\0".join(words)
    else:
        data = damage(data, chance)
    return replaced(raw, index, data)


def elements(raw: bytes, at: int = 0, end: int | None = None, depth: int = 0) -> list[int]:
    """Where the elements of DER start."""
    found: list[int] = []
    end = len(raw) if end is None else end
    while at + 2 <= end and depth < 12:
        found.append(at)
        tag, size, start = raw[at], raw[at + 1], at + 2
        if size & 0x80:
            start += size & 0x7F
            size = int.from_bytes(raw[at + 2 : start], "big")
        if tag & 0x20:
            found += elements(raw, start, min(end, start + size), depth + 1)
        at = start + size
    return found


def damaged_message(raw: bytes, chance: Random) -> bytes:
    """A PKCS#7 message with tags, lengths or contents changed."""
    at = chance.choice(elements(raw) or [0])
    match chance.randrange(5):
        case 0:
            return put(raw, at, chance.choice((0x30, 0x31, 2, 6, 0xA0, 0x80, 0x0C, 4)), 1)
        case 1:
            return put(raw, at + 1, chance.choice((0, 1, 0x7F, 0x80, 0x81, 0x82, 0x84, 0x88, 0xFF)), 1)
        case 2:
            wide = bytes([0x84]) + chance.choice((0, 5, len(raw), 0xFFFF_FFFF)).to_bytes(4, "big")
            return raw[: at + 1] + wide + raw[at + 2 :]
        case 3:
            name = chance.choice((b"", b"\xff" * 9, b"n" * 200, b"\0", b"\x1b]0;x\x07"))
            algorithm = chance.choice((b"", b"\x80" * 40, b"\xff\x7f", b"\x2b"))
            return message(name, algorithm=algorithm, keyed=chance.random() < 0.5)
        case _:
            return damage(raw, chance)


def _signature(raw: bytes, chance: Random) -> bytes:
    plain, said = unsigned(raw)
    return signed(plain, damaged_message(said or message(), chance), chance.choice((2, 2, 2, 2, 0, 1, 255)))


_WAYS: tuple[Callable[[bytes, Random], bytes], ...] = (_headers, _headers, _contents, _contents, _signature, damage)


def mutate(raw: bytes, chance: Random) -> bytes:
    """A file with some of it changed."""
    for _ in range(chance.choice((1, 1, 2, 3, 6))):
        raw = chance.choice(_WAYS)(raw, chance)
    return raw[: 1 << 16]
