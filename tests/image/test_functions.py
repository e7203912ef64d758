"""Function ranges: every frame description entry as pyelftools reads it, every function symbol, and nothing else."""

from __future__ import annotations

import io
import itertools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from elftools.dwarf.callframe import FDE
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from image.test_elf import SOURCE, without_sections, without_symbols
from x86.building import LIBC, LIBSTDCXX, LOADER, function, link, listing, run, symbols

from splitlock._errors import ImageError
from splitlock.image import functions
from splitlock.image.elf import Elf
from splitlock.image.functions import handler_starts
from splitlock.image.scan.library import library
from splitlock.image.scan.scan import Scan

PROGRAM = """
#include <stdexcept>
#include <string>
int work(const std::string &s) { if (s.empty()) throw std::runtime_error(s); return (int)s.size(); }
int main(int argc, char **argv) { try { return work(argv[0]); } catch (const std::exception &e) { return argc; } }
"""
PLAIN = """
static int n;
int bump(void) { return __atomic_fetch_add(&n, 1, 5); }
int swap(int *p) { return __atomic_exchange_n(p, 3, 5); }
"""


def _program(directory: Path, *flags: str) -> Path:
    source, made = directory / "program.cc", directory / "program"
    source.write_text(PROGRAM)
    run("g++", "-O2", *flags, "-o", made, source)
    return made


def _no_frames(directory: Path) -> Path:
    source, made = directory / "code.c", directory / "code.so"
    source.write_text(PLAIN)
    run("gcc", "-O2", "-shared", "-fPIC", "-nostdlib", "-fno-asynchronous-unwind-tables", "-o", made, source)
    return made


BUILDS: dict[str, Callable[[Path], Path]] = {
    "libc": lambda _: LIBC,
    "libstdc++": lambda _: LIBSTDCXX,
    "ld.so": lambda _: LOADER,
    "program": _program,
    "static": lambda directory: _program(directory, "-static"),
    "stripped": lambda directory: _program(directory, "-s"),
    "shared": lambda directory: link(directory, SOURCE),
    "no-frames": _no_frames,
}


@dataclass(frozen=True)
class Image:
    """A file and what pyelftools says of it: functions with a frame entry, function symbols."""

    raw: bytes
    frames: list[tuple[int, int]]
    symbols: list[tuple[int, int]]
    has_frame_header: bool


def judged(path: Path) -> Image:
    """`path` as pyelftools reads it: .eh_frame, and sized functions of .symtab, else of .dynsym.

    A signal handler's frame has an entry that begins a byte before its code, for unwinders that look up pc - 1.
    """
    raw = path.read_bytes()
    judge = ELFFile(io.BytesIO(raw))
    entries = []
    if judge.get_section_by_name(".eh_frame") is not None:
        entries = [e for e in judge.get_dwarf_info().EH_CFI_entries() if isinstance(e, FDE)]
    tables = [s for s in judge.iter_sections() if isinstance(s, SymbolTableSection)]
    tables = [s for s in tables if s["sh_type"] == "SHT_SYMTAB"] or tables
    return Image(
        raw,
        [
            (e["initial_location"] + (b"S" in e.cie["augmentation"]), e["initial_location"] + e["address_range"])
            for e in entries
            if e.cie
        ],
        [
            (s["st_value"], s["st_value"] + s["st_size"])
            for table in tables
            for s in table.iter_symbols()
            if s["st_info"]["type"] in ("STT_FUNC", "STT_LOOS") and s["st_shndx"] != "SHN_UNDEF" and s["st_size"]
        ],
        any(s["p_type"] == "PT_GNU_EH_FRAME" for s in judge.iter_segments()),
    )


@pytest.fixture(scope="module", params=BUILDS)
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """One of `BUILDS`."""
    return judged(BUILDS[request.param](tmp_path_factory.mktemp("functions")))


def joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same addresses in as few ranges as possible."""
    made: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if made and start <= made[-1][1]:
            made[-1] = made[-1][0], max(end, made[-1][1])
        else:
            made.append((start, end))
    return made


def frame_ranges(elf: Elf) -> list[tuple[int, int]]:
    """What Python finds, and what the C library must find as well."""
    found = functions.frame_ranges(elf)
    bounds, handlers = Scan(elf).frames()
    assert list(zip(bounds[::2], bounds[1::2], strict=True)) == found
    assert len(handlers) == len(found)
    return found


def function_ranges(elf: Elf) -> list[tuple[int, int]]:
    """What Python finds, and what the C library must find as well."""
    found = functions.function_ranges(elf)
    scan = Scan(elf)
    assert list(zip(scan.starts, scan.ends, strict=True)) == found
    return found


def test_every_frame_description_entry_is_found(image: Image) -> None:
    assert sorted(frame_ranges(Elf(image.raw))) == sorted(image.frames)


def test_frames_are_found_without_section_headers(image: Image) -> None:
    expected = sorted(image.frames) if image.has_frame_header else []
    assert sorted(frame_ranges(Elf(without_sections(image.raw)))) == expected


def test_function_ranges_cover_what_is_known_and_begin_where_it_begins(image: Image) -> None:
    elf = Elf(image.raw)
    code = [(s.vaddr, s.vaddr + s.filesz) for s in elf.executable()]
    known = [
        (start, end)
        for start, end in image.frames + image.symbols
        if any(low <= start and end <= high for low, high in code)
    ]
    ranges = function_ranges(elf)
    assert all(start < end for start, end in ranges)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(ranges))
    assert {start for start, _ in ranges} == {start for start, _ in known}
    assert joined(ranges) == joined(known)
    assert known


def test_functions_begin_where_objdump_sees_an_instruction() -> None:
    instructions = {line.address for line in listing(LOADER)}
    assert {start for start, _ in function_ranges(Elf(LOADER.read_bytes()))} <= instructions


def test_without_any_frames_or_symbols_there_are_no_functions(tmp_path: Path) -> None:
    assert function_ranges(Elf(without_sections(_no_frames(tmp_path).read_bytes()))) == []


def test_an_indirect_function_counts(tmp_path: Path) -> None:
    source = function("chosen", "mov eax, 1\nret", frame=False).replace("@function", "@gnu_indirect_function")
    image = judged(link(tmp_path, source))
    assert function_ranges(Elf(image.raw)) == image.symbols != []


def test_overlapping_functions_are_cut_at_each_known_start(tmp_path: Path) -> None:
    source = """
        .text
        .type outer, @function; outer: .cfi_startproc
        nop; nop
        .type alias, @function; .type inner, @function; alias: inner: nop; nop
        .size inner, . - inner
        nop; nop
        .cfi_endproc; .size outer, . - outer; .size alias, . - alias
        .skip 8, 0x90
        .type around, @function; around: nop; nop
        .type within, @function; within: nop
        .size within, . - within
        nop; nop; nop
        .size around, . - around
        .skip 2, 0x90
        .type last, @function; last: .cfi_startproc; ret; .cfi_endproc
        .type beyond, @function; beyond: ret; .size beyond, 100000
        .type empty, @function; empty: ret
    """
    path = link(tmp_path, source)
    low = symbols(path)["outer"]
    expected = [(0, 2), (2, 6), (14, 16), (16, 20), (22, 23)]
    assert function_ranges(Elf(path.read_bytes())) == [(low + start, low + end) for start, end in expected]


# -- pointer encodings --------------------------------------------------------------------------

# DW_EH_PE: 0x10 is relative to the pointer; then absptr, udata4, udata8, sdata4, sdata8
_WORDS = {0x00: ".quad", 0x03: ".long", 0x04: ".quad", 0x0B: ".long", 0x0C: ".quad"}
# A personality routine and its encoding, the encoding of the language data, the FDE's own; another order of the same.
_DATA = {
    "": "",
    "zR": ".uleb128 1; .byte {}",
    "zRS": ".uleb128 1; .byte {}",
    "zPLR": ".uleb128 7; .byte 0x03; .long 0x1234; .byte 0x03; .byte {}",
    "zPLR8": ".uleb128 11; .byte 0x04; .quad 0x1234; .byte 0x1b; .byte {}",
    "zRLP": ".uleb128 7; .byte {}; .byte 0x03; .byte 0x03; .long 0x1234",
}
ENCODINGS = [
    ("zR", 0x1B), ("zR", 0x00), ("zR", 0x03), ("zR", 0x0B), ("zR", 0x04), ("zR", 0x0C), ("zR", 0x1C),
    ("zRS", 0x1B), ("zPLR", 0x1B), ("zPLR", 0x03), ("zPLR8", 0x1C), ("zPLR8", 0x1B), ("zRLP", 0x1B), ("", 0x00),
]  # fmt: skip


def entry(label: str, augmentation: str, encoding: int, wide: bool) -> str:
    """A CIE with an FDE pointer encoding, and one FDE with it for the function `label`."""
    letters = augmentation.rstrip("8")
    word = _WORDS[encoding & 0x0F]
    language = ".uleb128 4; .long 0x10" if "L" in letters else ".uleb128 0" if letters else ""
    early = int("S" in letters)
    length = ".long 0xffffffff; .quad" if wide else ".long"
    return f"""
        {label}_cie: {length} {label}_ce - {label}_cb
        {label}_cb: .long 0; .byte 1; .asciz "{letters}"
        .uleb128 1; .sleb128 -8; .byte 16; {_DATA[augmentation].format(encoding)}
        .byte 0x0c, 7, 8, 0x90, 1
        .balign 8, 0
        {label}_ce: {length} {label}_fe - {label}_fb
        {label}_fb: .long {label}_fb - {label}_cie
        {word} {label} - {early}{" - ." if encoding & 0x10 else ""}
        {word} {label}_end - {label} + {early}
        {language}
        .balign 8, 0
        {label}_fe:
    """


def odd_frames(
    directory: Path, how: list[tuple[str, int]], wide: bool = False, between: str = ""
) -> tuple[bytes, list[tuple[int, int]]]:
    """A program with one function for each of the encodings `how`, and where nm says that they are."""
    names = [f"f{i}" for i in range(len(how))]
    code = "".join(function(n, f"ret; .skip {i}, 0x90; {n}_end:", frame=False) for i, n in enumerate(names))
    entries = between.join(entry(name, *pair, wide) for name, pair in zip(names, how, strict=True))
    source = f'{code}\n.section .eh_frame,"a",@progbits\n{entries}\n.long 0\n'
    # --traditional-format: ld leaves .eh_frame as it is, instead of making all entries alike
    path = link(directory, source, "-no-pie", "-Wl,--traditional-format,--eh-frame-hdr", shared=False)
    at = symbols(path)
    return path.read_bytes(), [(at[name], at[f"{name}_end"]) for name in names]


@pytest.mark.parametrize("encodings", [ENCODINGS, [e for e in ENCODINGS if e[1] == 0x1B]], ids=["all", "linkers'"])
@pytest.mark.parametrize("wide", [False, True], ids=["32-bit-lengths", "64-bit-lengths"])
@pytest.mark.parametrize("between", ["", ".long 0\n", ".long 0, 0, 0\n"], ids=["plain", "terminator", "terminators"])
def test_frames_in_every_pointer_encoding(
    tmp_path: Path, encodings: list[tuple[str, int]], wide: bool, between: str
) -> None:
    raw, expected = odd_frames(tmp_path, encodings, wide, between)
    assert frame_ranges(Elf(raw)) == expected


@pytest.mark.parametrize("wide", [False, True], ids=["32-bit-lengths", "64-bit-lengths"])
def test_what_linkers_write_is_read_in_c(tmp_path: Path, wide: bool) -> None:
    encodings = [e for e in ENCODINGS if e[1] == 0x1B]
    raw, expected = odd_frames(tmp_path, encodings, wide, ".long 0\n")
    section, address = functions.frame_section(Elf(raw))
    assert library().scan_frames(section, len(section), address, None, None, 0) == len(expected) == len(encodings)


@pytest.mark.parametrize("encoding", [0x10, 0x14], ids=hex)
def test_an_unsigned_relative_pointer_wraps(tmp_path: Path, encoding: int) -> None:
    raw, expected = odd_frames(tmp_path, [("zR", encoding)])
    assert frame_ranges(Elf(raw)) == expected


_FIRST_CIE = b"\0\0\0\0\x01zR\0\x01\x78\x10\x01\x1b"


@pytest.mark.parametrize("encoding", [0x01, 0x09, 0x9B, 0x0F], ids=hex)
def test_an_encoding_that_no_linker_writes_is_refused(tmp_path: Path, encoding: int) -> None:
    raw, _ = odd_frames(tmp_path, ENCODINGS)
    assert _FIRST_CIE in raw
    with pytest.raises(ImageError):
        frame_ranges(Elf(raw.replace(_FIRST_CIE, _FIRST_CIE[:-1] + bytes([encoding]), 1)))


def test_omitted_pointers_say_nothing(tmp_path: Path) -> None:
    raw, expected = odd_frames(tmp_path, ENCODINGS)
    assert frame_ranges(Elf(raw.replace(_FIRST_CIE, _FIRST_CIE[:-1] + b"\xff", 1))) == expected[1:]


# -- malformed ----------------------------------------------------------------------------------


def test_frames_without_code_are_left_out(tmp_path: Path) -> None:
    source = function("f", "ret") + ".cfi_startproc\n.cfi_endproc\n" + function("g", "ret")
    path = link(tmp_path, source)
    at = symbols(path)
    assert frame_ranges(Elf(path.read_bytes())) == [(at["f"], at["f"] + 1), (at["g"], at["g"] + 1)]


def test_functions_with_exception_handlers() -> None:
    raw = LIBSTDCXX.read_bytes()
    entries = ELFFile(io.BytesIO(raw)).get_dwarf_info().EH_CFI_entries()
    with_tables = {e["initial_location"] for e in entries if isinstance(e, FDE) and e.lsda_pointer}
    assert len(with_tables) > 500
    assert with_tables <= handler_starts(Elf(raw))


def test_an_augmentation_without_an_end_is_malformed(tmp_path: Path) -> None:
    raw = bytearray(link(tmp_path, SOURCE).read_bytes())
    section = Elf(bytes(raw)).section(".eh_frame")
    assert section is not None
    at, end = section.offset + 9, section.offset + section.size
    raw[at:end] = b"z" * (end - at)
    with pytest.raises(ImageError):
        frame_ranges(Elf(bytes(raw)))


def test_frames_cut_short_are_malformed_or_fewer() -> None:
    raw = bytearray(LOADER.read_bytes())
    whole = frame_ranges(Elf(bytes(raw)))
    judge = ELFFile(io.BytesIO(raw))
    number = judge.get_section_index(".eh_frame")
    assert number is not None
    at = judge["e_shoff"] + number * 64 + 32
    outcomes = set()
    for length in range(1, 100):
        raw[at : at + 8] = struct.pack("<Q", length)
        try:
            found = frame_ranges(Elf(bytes(raw)))
        except ImageError:
            outcomes.add(-1)
        else:
            assert found == whole[: len(found)]
            outcomes.add(len(found))
    assert outcomes >= {-1, 0, 1, 2}


def test_a_frame_header_that_points_nowhere_is_malformed() -> None:
    raw = bytearray(without_sections(LOADER.read_bytes()))
    header = next(s for s in ELFFile(io.BytesIO(raw)).iter_segments() if s["p_type"] == "PT_GNU_EH_FRAME")
    at = header["p_offset"] + 4
    raw[at : at + 4] = struct.pack("<i", 0x7000_0000)
    with pytest.raises(ImageError):
        frame_ranges(Elf(bytes(raw)))


def test_a_negative_address_gives_no_range(tmp_path: Path) -> None:
    raw, ((start, end),) = odd_frames(tmp_path, [("zR", 0x0B)])
    at = raw.index(struct.pack("<Ii", start, end - start))
    elf = Elf(without_symbols(raw[:at] + struct.pack("<i", -start) + raw[at + 4 :]))
    assert functions.function_ranges(elf) == []
    assert not Scan(elf).starts


def test_a_negative_length_gives_no_range(tmp_path: Path) -> None:
    raw, ((start, end),) = odd_frames(tmp_path, [("zR", 0x0B)])
    at = raw.index(struct.pack("<Ii", start, end - start)) + 4
    raw = without_symbols(raw[:at] + struct.pack("<i", -1) + raw[at + 4 :])
    assert all(low < high for low, high in function_ranges(Elf(raw)))
