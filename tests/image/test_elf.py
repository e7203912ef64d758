"""The ELF reader against pyelftools, on installed libraries and on files linked for it in several ways."""

from __future__ import annotations

import io
import mmap
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.enums import ENUM_E_MACHINE, ENUM_E_TYPE, ENUM_P_TYPE_BASE, ENUM_SH_TYPE_AMD64, ENUM_ST_INFO_TYPE
from elftools.elf.sections import NoteSection, SymbolTableSection
from x86.building import CRYPTO, LIBC, LIBSTDCXX, LOADER, PYTHON, assemble, function, link, run

from splitlock._errors import ImageError
from splitlock.image.elf import PT_LOAD, Elf, Symbol, elf_class

SOURCE = (
    function("first", "lock inc dword ptr [rip+data]\ncall second@PLT\nret")
    + function("second", "xchg [rdi], eax\nret")
    + '.data\ndata: .quad first, 1\n.bss\nroom: .skip 8192\n.section .tbss,"awT",@nobits\nlocal: .skip 16\n'
)
PROGRAM = '#include <stdio.h>\nint main(void) { return puts("x") < 0; }\n'


def without_sections(raw: bytes) -> bytes:
    """The file as `objcopy --strip-section-headers` of newer binutils leaves it, but for the bytes at its end."""
    return raw[:40] + bytes(8) + raw[48:58] + struct.pack("<HHH", 0, 0, 0) + raw[64:]


def without_symbols(raw: bytes) -> bytes:
    """The file with its symbol tables turned into sections of no known kind."""
    (shoff,) = struct.unpack_from("<Q", raw, 40)
    made = bytearray(raw)
    for at in range(shoff, shoff + 64 * struct.unpack_from("<H", raw, 60)[0], 64):
        if raw[at + 4 : at + 8] in (b"\2\0\0\0", b"\x0b\0\0\0"):
            made[at + 4 : at + 8] = b"\xff\xff\xff\x7f"
    return bytes(made)


def _program(directory: Path, *flags: str) -> Path:
    (directory / "program.c").write_text(PROGRAM)
    made = directory / "program"
    run("gcc", "-O2", *flags, "-o", made, directory / "program.c")
    return made


def _stripped(directory: Path) -> Path:
    made = _program(directory)
    run("strip", "-s", made)
    return made


def _gold(directory: Path) -> Path:
    return _program(directory, "-fuse-ld=gold")


BUILDS: dict[str, Callable[[Path], Path]] = {
    "libc": lambda _: LIBC,
    "libstdc++": lambda _: LIBSTDCXX,
    "ld.so": lambda _: LOADER,
    "libcrypto": lambda _: CRYPTO,
    "python": lambda _: PYTHON,
    "pie": lambda directory: _program(directory, "-pie", "-g"),
    "no-pie": lambda directory: _program(directory, "-no-pie"),
    "static": lambda directory: _program(directory, "-static"),
    "static-pie": lambda directory: _program(directory, "-static-pie"),
    "stripped": _stripped,
    "gold": _gold,
    "shared": lambda directory: link(directory, SOURCE),
    "object": lambda directory: assemble(directory, SOURCE),
    "one-segment": lambda directory: link(directory, SOURCE, "-Wl,-N", shared=False),
}


@pytest.fixture(scope="module", params=BUILDS)
def raw(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The contents of one of `BUILDS`."""
    return BUILDS[request.param](tmp_path_factory.mktemp("elf")).read_bytes()


def _number(value: int | str, names: Mapping[str, int]) -> int:
    return value if isinstance(value, int) else names[value]


def test_header(raw: bytes) -> None:
    elf, judge = Elf(raw), ELFFile(io.BytesIO(raw))
    assert elf.type == _number(judge["e_type"], ENUM_E_TYPE)
    assert elf.machine == _number(judge["e_machine"], ENUM_E_MACHINE) == 62
    assert elf.entry == judge["e_entry"]
    assert elf_class(raw[:64]) == (64, 62)


def test_segments(raw: bytes) -> None:
    judge = [
        (
            _number(s["p_type"], {**ENUM_P_TYPE_BASE, "PT_GNU_PROPERTY": 0x6474E553}),
            *(s[field] for field in ("p_flags", "p_offset", "p_vaddr", "p_filesz", "p_memsz")),
        )
        for s in ELFFile(io.BytesIO(raw)).iter_segments()
    ]
    assert Elf(raw).segments == judge


def test_sections(raw: bytes) -> None:
    fields = ("sh_flags", "sh_addr", "sh_offset", "sh_size", "sh_link")
    judge = [
        (s.name, _number(s["sh_type"], ENUM_SH_TYPE_AMD64), *(s[field] for field in fields))
        for s in ELFFile(io.BytesIO(raw)).iter_sections()
    ]
    elf = Elf(raw)
    assert elf.sections == judge
    for name, *_ in judge:
        found = elf.section(name)
        assert found is not None
        assert found == next(s for s in judge if s[0] == name)
    assert elf.section(".no such") is None


def test_symbols(raw: bytes) -> None:
    tables = [s for s in ELFFile(io.BytesIO(raw)).iter_sections() if isinstance(s, SymbolTableSection)]
    tables = [s for s in tables if s["sh_type"] == "SHT_SYMTAB"] or tables
    judge = [
        Symbol(s.name, _number(s["st_info"]["type"], ENUM_ST_INFO_TYPE), s["st_value"], s["st_size"])
        for table in tables
        for s in table.iter_symbols()
        if s["st_shndx"] != "SHN_UNDEF" and s["st_value"]
    ]
    assert list(Elf(raw).symbols()) == judge


def test_build_id_with_and_without_sections(raw: bytes) -> None:
    judge = None
    for section in ELFFile(io.BytesIO(raw)).iter_sections():
        if isinstance(section, NoteSection):
            for note in section.iter_notes():
                if note["n_name"] == "GNU" and note["n_type"] == "NT_GNU_BUILD_ID":
                    judge = note["n_desc"]
    assert Elf(raw).build_id() == judge
    assert Elf(without_sections(raw)).build_id() == judge


def test_loaded_contents_and_what_is_not_there(raw: bytes) -> None:
    elf = Elf(raw)
    loads = [s for s in ELFFile(io.BytesIO(raw)).iter_segments() if s["p_type"] == "PT_LOAD"]
    for s in loads:
        low, size, offset = s["p_vaddr"], s["p_filesz"], s["p_offset"]
        for start in {0, 1, size // 2, max(0, size - 7)}:
            count = min(7, size - start)
            assert elf.read(low + start, count) == raw[offset + start : offset + start + count]
        assert elf.read(low, size) == s.data()
        if not any(o["p_vaddr"] <= low + size < o["p_vaddr"] + o["p_filesz"] for o in loads):
            with pytest.raises(ImageError):
                elf.read(low + size, 1)  # zeroes when loaded, but not in the file
            with pytest.raises(ImageError):
                elf.read(low, size + 1)
    pages = {page for s in loads for page in (s["p_vaddr"] // 4096, (s["p_vaddr"] + s["p_memsz"] - 1) // 4096)}
    assert elf.span() == ((min(pages) * 4096, max(pages) * 4096 + 4096) if pages else (0, 0))
    assert [(s.vaddr, s.filesz) for s in elf.executable()] == [
        (s["p_vaddr"], s["p_filesz"]) for s in loads if s["p_flags"] & 1 and s["p_filesz"]
    ]


def test_a_mapped_file_is_read_like_bytes(tmp_path: Path) -> None:
    path = _program(tmp_path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        lazy, eager = Elf(mapped), Elf(path.read_bytes())
        assert lazy.sections == eager.sections
        assert list(lazy.symbols()) == list(eager.symbols())
        assert lazy.build_id() == eager.build_id()
        assert lazy.has_text_relocations() == eager.has_text_relocations()
        low = next(s for s in lazy.segments if s.type == PT_LOAD).vaddr
        assert lazy.read(low, 64) == eager.read(low, 64)


# -- text relocations ---------------------------------------------------------------------------

RELOCATED = function("first", "movabs rax, offset data\nlock inc dword ptr [rax]\nret") + ".data\ndata: .quad 0\n"


def test_text_relocations_of_code_that_is_not_position_independent(tmp_path: Path) -> None:
    path = link(tmp_path, RELOCATED, "-Wl,-z,notext")
    assert "TEXTREL" in run("readelf", "-dW", path)
    assert Elf(path.read_bytes()).has_text_relocations()


def test_no_text_relocations_elsewhere(raw: bytes) -> None:
    assert not Elf(raw).has_text_relocations()


@pytest.mark.parametrize("kept", ["DT_TEXTREL", "DT_FLAGS"])
def test_either_way_of_saying_text_relocations_counts(tmp_path: Path, kept: str) -> None:
    raw = bytearray(link(tmp_path, RELOCATED, "-Wl,-z,notext").read_bytes())
    dynamic = next(s for s in ELFFile(io.BytesIO(raw)).iter_segments() if s["p_type"] == "PT_DYNAMIC")
    at, end = dynamic["p_offset"], dynamic["p_offset"] + dynamic["p_filesz"]
    entries = [(tag, value) for tag, value in struct.iter_unpack("<QQ", raw[at:end]) if tag not in (22, 30)]
    entries.insert(0, (22, 0) if kept == "DT_TEXTREL" else (30, 4 | 8))
    entries = entries[: (end - at) // 16]
    raw[at:end] = b"".join(struct.pack("<QQ", *entry) for entry in entries).ljust(end - at, b"\0")
    assert Elf(bytes(raw)).has_text_relocations()
    raw[at : at + 16] = struct.pack("<QQ", 30, 8)  # DF_BIND_NOW alone
    assert not Elf(bytes(raw)).has_text_relocations()


# -- files that are something else, or not whole ---------------------------------------------------


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"", (0, 0)),
        (b"\x7fELF", (0, 0)),
        (b"#!/bin/sh\n" * 4, (0, 0)),
        (b"\x7fELF\x01\x01".ljust(18, b"\0") + b"\x03\x00", (32, 3)),
        (b"\x7fELF\x02\x01".ljust(18, b"\0") + b"\x3e\x00", (64, 62)),
        (b"\x7fELF\x02\x01".ljust(18, b"\0") + b"\xb7\x00", (64, 183)),
        (b"\x7fELF\x03\x01".ljust(18, b"\0") + b"\x3e\x00", (0, 0)),
    ],
)
def test_elf_class(head: bytes, expected: tuple[int, int]) -> None:
    assert elf_class(head) == expected


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A shared object of a few thousand bytes."""
    return link(tmp_path_factory.mktemp("small"), SOURCE, "-Wl,-z,noseparate-code").read_bytes()


@pytest.mark.parametrize(
    ("at", "value"),
    [
        pytest.param(0, b"\x7fELG", id="magic"),
        pytest.param(4, b"\x01", id="32-bit"),
        pytest.param(5, b"\x02", id="big-endian"),
        pytest.param(54, b"\x20\x00", id="e_phentsize"),
        pytest.param(32, b"\xff" * 8, id="e_phoff"),
        pytest.param(32, b"\xff" * 7 + b"\x7f", id="e_phoff-signed"),
        pytest.param(56, b"\xff\xff", id="e_phnum"),
    ],
)
def test_a_header_that_does_not_hold_is_refused(small: bytes, at: int, value: bytes) -> None:
    with pytest.raises(ImageError):
        Elf(small[:at] + value + small[at + len(value) :])


@pytest.mark.parametrize(
    ("at", "value"),
    [
        pytest.param(40, b"\xff" * 8, id="e_shoff"),
        pytest.param(40, b"\xff" * 7 + b"\x7f", id="e_shoff-signed"),
        pytest.param(58, b"\x00\x00", id="e_shentsize-0"),
        pytest.param(58, b"\xff\xff", id="e_shentsize-65535"),
        pytest.param(60, b"\xff\xff", id="e_shnum"),
    ],
)
def test_section_headers_that_do_not_hold_are_refused_when_asked_for(small: bytes, at: int, value: bytes) -> None:
    elf = Elf(small[:at] + value + small[at + len(value) :])
    with pytest.raises(ImageError):
        _ = elf.sections
    with pytest.raises(ImageError):
        list(elf.symbols())


def test_section_names_out_of_reach_are_empty(small: bytes) -> None:
    elf = Elf(small[:62] + b"\xff\xff" + small[64:])
    assert {s.name for s in elf.sections} == {""}
    assert [s[1:] for s in elf.sections] == [s[1:] for s in Elf(small).sections]


def test_a_truncated_file_is_refused_or_read_as_far_as_it_goes(small: bytes) -> None:
    last = max(s.offset + s.filesz for s in Elf(small).segments if s.type == PT_LOAD)
    for length in [*range(300), *range(300, len(small), 61)]:
        part = small[:length]
        if length < last:
            with pytest.raises(ImageError):
                Elf(part)
        else:  # what is loaded is whole; the section headers come last
            with pytest.raises(ImageError):
                _ = Elf(part).sections


@pytest.mark.parametrize("field", [16, 40], ids=["p_vaddr", "p_memsz"])
def test_a_segment_past_the_end_of_the_address_space_is_refused(small: bytes, field: int) -> None:
    (phoff,) = struct.unpack_from("<Q", small, 32)
    last = max(i for i, s in enumerate(Elf(small).segments) if s.type == PT_LOAD)
    at = phoff + 56 * last + field
    with pytest.raises(ImageError):
        Elf(small[:at] + b"\xff" * 8 + small[at + 8 :])


def test_symbols_are_no_more_than_the_file_can_hold(small: bytes) -> None:
    # 65,535 headers that all name the whole file would be hours of work; here 40.
    count, size = 40, len(small) + 64 * 40
    header = struct.pack("<IIQQQQIIQQ", 0, 2, 0, 0, 0, size, 0, 0, 8, 24)
    raw = small[:40] + struct.pack("<Q", len(small)) + small[48:60] + struct.pack("<HH", count, 0) + small[64:]
    found = Counter(type(s) for s in Elf(raw + header * count).symbols())
    assert found.total() <= size // 24


@pytest.mark.parametrize("path", [LIBC, LIBSTDCXX, PYTHON, "/bin/bash"])
def test_addresses_of_some_symbols(path: str | Path) -> None:
    """As by a look at all of them, which readelf agrees with; names that are the end of others among them."""
    elf = Elf(Path(path).read_bytes())
    every = {symbol.name.partition("@")[0].encode(): symbol.value for symbol in elf.symbols()}
    names = [*list(every)[::7], *(name[1:] for name in list(every)[::11]), b"no such name", b"_exit"]
    assert elf.addresses(names) == {name: every[name] for name in names if name in every and name}
