"""Runs: every site in exactly one, and no way into one but at its start.

Who may jump where is told by others: a sweep over every function, objdump's listing, the relocations a linker was
asked to keep, and the landing pads of the exception tables.
"""

from __future__ import annotations

import bisect
import io
import itertools
import re
import struct
from dataclasses import dataclass
from pathlib import Path

import pytest
from elftools.dwarf.callframe import FDE
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import SymbolTableSection
from iced_x86 import Decoder, FlowControl, Mnemonic, OpKind
from x86.building import (
    CRYPTO,
    LIBC,
    LIBSTDCXX,
    LOADER,
    PYTHON,
    function,
    link,
    listing,
    symbols,
)
from x86.building import run as tool

from splitlock.image.elf import Elf
from splitlock.image.functions import function_ranges
from splitlock.process.functions import Text
from splitlock.process.runs import Run, choose_runs
from splitlock.x86.locked import decided, split_size

BRANCH_KINDS = {OpKind.NEAR_BRANCH16, OpKind.NEAR_BRANCH32, OpKind.NEAR_BRANCH64}
MAY_MOVE = {
    FlowControl.NEXT,
    FlowControl.CONDITIONAL_BRANCH,
    FlowControl.UNCONDITIONAL_BRANCH,
    FlowControl.INDIRECT_BRANCH,
    FlowControl.RETURN,
}
LEAVE = {FlowControl.UNCONDITIONAL_BRANCH, FlowControl.INDIRECT_BRANCH, FlowControl.RETURN}
# Cannot be encoded with a 32-bit displacement, or mean something where they are.
STAY = {
    getattr(Mnemonic, name)
    for name in (
        "LOOP",
        "LOOPE",
        "LOOPNE",
        "JCXZ",
        "JECXZ",
        "JRCXZ",
        "SYSCALL",
        "SYSENTER",
        "INT",
        "INT3",
        "UD2",
        "HLT",
    )
}


@dataclass(frozen=True)
class Image:
    """An image, its runs, and what a sweep over all of its functions finds."""

    elf: Elf
    ranges: list[tuple[int, int]]
    runs: list[Run]
    #: addresses of sites whose operand is known at run time only
    sites: set[int]
    #: source and target of every direct branch, calls and xbegin too
    branches: list[tuple[int, int]]
    #: every address that `lea` computes from rip
    computed: set[int]

    def around(self, address: int) -> Run | None:
        """The run that an address lies strictly inside of."""
        at = bisect.bisect_left(self.runs, address, key=lambda r: r.start) - 1
        if at >= 0 and not self.runs[at].trap and address < self.runs[at].start + self.runs[at].size:
            return self.runs[at]
        return None

    def intrusions(self, targets: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """The (source, target) pairs that enter a run elsewhere than at its start, and not from itself."""
        entered = ((source, target, self.around(target)) for source, target in targets)
        return [(s, t) for s, t, run in entered if run and not run.start <= s < run.end]


def analysed(raw: bytes) -> Image:
    elf = Elf(raw)
    ranges = function_ranges(elf)
    sites, branches, computed = set(), [], set()
    for start, end in ranges:
        for x in Decoder(64, elf.read(start, end - start), ip=start):
            if x.op_count and x.op0_kind in BRANCH_KINDS:
                branches.append((x.ip, x.near_branch_target))
            elif x.mnemonic == Mnemonic.LEA and x.is_ip_rel_memory_operand:
                computed.add(x.ip_rel_memory_address)
            elif (size := split_size(x)) and not decided(x, size):
                sites.add(x.ip)
    return Image(elf, ranges, choose_runs(Text(elf)), sites, branches, computed)


def check(image: Image) -> None:
    """What must hold for the runs of every image."""
    covered = [x.ip for run in image.runs for x in run.instructions if x.ip in image.sites]
    assert sorted(covered) == sorted(image.sites)
    assert all(a.start + a.size <= b.start for a, b in itertools.pairwise(image.runs))
    for run in image.runs:
        first, last = run.instructions[0], run.instructions[-1]
        assert (run.start, run.end) == (first.ip, last.next_ip)
        assert all(a.next_ip == b.ip for a, b in itertools.pairwise(run.instructions))
        raw = image.elf.read(run.start, run.end - run.start)
        assert list(Decoder(64, raw, ip=run.start)) == run.instructions
        if run.trap:
            assert run.start in image.sites
            assert len(run.instructions) == 1
            continue
        assert run.size >= 5
        for x in run.instructions:
            assert x.flow_control in MAY_MOVE, f"{x.ip:#x}: {x}"
            assert x.mnemonic not in STAY, f"{x.ip:#x}: {x}"
        assert not any(x.flow_control in LEAVE for x in run.instructions[:-1])
        if run.size > run.end - run.start:
            assert last.flow_control in LEAVE
            behind = min((low for low, _ in image.ranges if low >= run.end), default=run.start + run.size)
            filler = Decoder(64, image.elf.read(run.end, behind - run.end), ip=run.end)
            used = [x.mnemonic for x in filler if x.ip < run.start + run.size]
            assert set(used) <= {Mnemonic.NOP, Mnemonic.INT3}
            assert not any(low < run.start + run.size and run.end < high for low, high in image.ranges)
    assert image.intrusions(image.branches) == []
    boundaries = {x.ip for run in image.runs for x in run.instructions}
    behind_lock = {x.ip + 1 for run in image.runs for x in run.instructions if x.has_lock_prefix}
    for _, target in image.branches:
        assert not image.around(target) or target in boundaries or target in behind_lock


@pytest.fixture(scope="module", params=[LIBC, LIBSTDCXX, LOADER, PYTHON, CRYPTO], ids=lambda path: path.name)
def library(request: pytest.FixtureRequest) -> Image:
    """An installed library or program."""
    return analysed(request.param.read_bytes())


def test_libraries(library: Image) -> None:
    assert library.sites
    check(library)


def test_traps_are_rare_in_libraries(library: Image) -> None:
    assert sum(run.trap for run in library.runs) < max(1, len(library.runs) / 100)


_BRANCH = r"\t(?:[a-z,]+ )*(?:j|call|loop|xbegin)"
_TARGET = re.compile(r"^(?:bnd |notrack |[a-z]+,p[nt] )*(?:j[a-z]+|call|loop[a-z]*|xbegin)(?:,p[nt])? +([0-9a-f]+) <")


def test_no_branch_that_objdump_lists_enters_a_run() -> None:
    image = analysed(LIBC.read_bytes())
    matches = ((line.address, _TARGET.match(line.text)) for line in listing(LIBC, _BRANCH))
    branches = [(address, int(match[1], 16)) for address, match in matches if match]
    assert len(branches) > 0.95 * len(image.branches) > 50_000
    assert image.intrusions(branches) == []


# -- entries that no branch instruction tells of ----------------------------------------------------


def _uleb(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (raw[at] & 0x7F) << shift
        shift += 7
        at += 1
        if raw[at - 1] < 0x80:
            return value, at


def landing_pads(raw: bytes) -> list[tuple[int, int]]:
    """(function, landing pad) for every call site that has one, from the tables of the Itanium C++ ABI."""
    judge = ELFFile(io.BytesIO(raw))
    section = judge.get_section_by_name(".gcc_except_table")
    assert section is not None
    found = []
    for frame in judge.get_dwarf_info(relocate_dwarf_sections=False).EH_CFI_entries():
        if not isinstance(frame, FDE) or not frame.lsda_pointer:
            continue
        at = frame.lsda_pointer - section["sh_addr"] + section["sh_offset"]
        assert raw[at] == 0xFF  # DW_EH_PE_omit: landing pads count from the function's start
        at = at + 2 if raw[at + 1] == 0xFF else _uleb(raw, at + 2)[1]  # types of exceptions
        assert raw[at] == 0x01  # the table is of uleb128
        length, at = _uleb(raw, at + 1)
        end = at + length
        while at < end:
            _, at = _uleb(raw, at)
            _, at = _uleb(raw, at)
            pad, at = _uleb(raw, at)
            _, at = _uleb(raw, at)
            if pad:
                found.append((frame["initial_location"], frame["initial_location"] + pad))
    return found


def test_no_landing_pad_lies_within_a_run_of_the_cxx_library() -> None:
    raw = LIBSTDCXX.read_bytes()
    pads = landing_pads(raw)
    assert len(pads) > 1000
    image = analysed(raw)
    assert [hex(pad) for _, pad in pads if image.around(pad)] == []


# Small, but with iostreams and threads a third of libc.a and libstdc++.a comes along.
PROGRAM = """
#include <iostream>
#include <thread>
int main(int argc, char **argv) {
    std::thread t([&] { std::cout << argv[0] << argc; });
    t.join();
}
"""


def referenced_code(raw: bytes, computed: set[int]) -> tuple[list[tuple[int, int]], int]:
    """(place, code address) of what relocations of data name, in a program linked with --emit-relocs.

    Entries of jump tables too, whose number is the second result: they hold `address - table`, and their relocation
    has `address - place`; the table is at the last address before the place that some code computes.
    """
    judge = ELFFile(io.BytesIO(raw))
    bases = sorted(computed)
    found, tables = [], 0
    for section in judge.iter_sections():
        if not isinstance(section, RelocationSection) or not section.name.startswith((".rela.rodata", ".rela.data")):
            continue
        names = judge.get_section(section["sh_link"])
        assert isinstance(names, SymbolTableSection)
        values = [value for _, _, _, _, value, _ in struct.iter_unpack("<IBBHQQ", names.data())]
        for place, info, addend in struct.iter_unpack("<QQq", section.data()):
            target = values[info >> 32] + addend
            if info & 0xFFFF_FFFF == 2:  # R_X86_64_PC32
                table = bases[bisect.bisect_right(bases, place) - 1]
                found.append((place, target - (place - table)))
                tables += 1
            elif info & 0xFFFF_FFFF == 1:  # R_X86_64_64
                found.append((place, target))
    return found, tables


def test_no_jump_table_or_pointer_that_the_linker_knows_leads_into_a_run(tmp_path: Path) -> None:
    (tmp_path / "program.cc").write_text(PROGRAM)
    made = tmp_path / "program"
    tool("g++", "-O2", "-static", "-Wl,--emit-relocs", "-o", made, tmp_path / "program.cc")
    raw = made.read_bytes()
    image = analysed(raw)
    check(image)
    assert len(image.runs) > 500
    references, tables = referenced_code(raw, image.computed)
    text = image.elf.section(".text")
    assert text is not None
    assert tables > 1000
    inside = {target for _, target in references if text.addr <= target < text.addr + text.size}
    assert len(inside) > 1000
    starts = {x.ip for low, high in image.ranges for x in Decoder(64, image.elf.read(low, high - low), ip=low)}
    assert inside <= starts  # so the tables were understood
    assert [(hex(place), hex(target)) for place, target in references if image.around(target)] == []
    assert [hex(address) for address in image.computed if image.around(address)] == []
    assert [hex(pad) for _, pad in landing_pads(raw) if image.around(pad)] == []


# -- made by hand ---------------------------------------------------------------------------------


def made(directory: Path, source: str, *flags: str, shared: bool = True) -> tuple[Image, dict[str, int]]:
    """The analysed image of some assembly, and its labels."""
    path = link(directory, source, *flags, shared=shared)
    image = analysed(path.read_bytes())
    assert image.sites
    return image, symbols(path)


INC = "site: lock inc dword ptr [rdi]"  # 3 bytes: two too few
SPLIT = ".data; .balign 64; .skip 62; .hidden split; split: .quad 0\n"  # an operand there lies on two lines
FILLER = "nop; nop; nop; nop; nop; nop; nop; nop; nop; nop; nop; nop; nop; nop; nop; nop"


@pytest.mark.parametrize(
    ("body", "texts"),
    [
        pytest.param(f"{INC}; mov eax, 1; ret", ["lock inc", "mov"], id="with-what-follows"),
        pytest.param(f"mov eax, 1; {INC}; ret", ["mov", "lock inc"], id="with-what-precedes"),
        pytest.param(f"mov eax, 1; {INC}; call f; ret", ["mov", "lock inc"], id="calls-stay"),
        pytest.param(f"mov ecx, 1; {INC}; call [rax]; ret", ["mov", "lock inc"], id="indirect-calls-stay"),
        pytest.param(f"mov ecx, 1; {INC}; syscall; ret", ["mov", "lock inc"], id="system-calls-stay"),
        pytest.param(f"mov ecx, 1; {INC}; jrcxz f; ret", ["mov", "lock inc"], id="jrcxz-stays"),
        pytest.param(f"mov ecx, 1; {INC}; loop f; ret", ["mov", "lock inc"], id="loop-stays"),
        pytest.param(f"mov ecx, 1; {INC}; int3; ret", ["mov", "lock inc"], id="breakpoints-stay"),
        pytest.param(f"call f; {INC}; mov eax, [rsi]; ret", ["lock inc", "mov"], id="what-may-fault-if-need-be"),
        pytest.param(f"mov eax, 1; {INC}; mov eax, [rsi]; ret", ["mov", "lock inc"], id="what-cannot-fault-first"),
        pytest.param(f"test eax, eax; {INC}; je f; mov eax, 1; ret", ["lock inc", "je"], id="branches-move"),
        pytest.param(f"{INC}; lock dec dword ptr [rsi]; ret", ["lock inc", "lock dec"], id="two-short-sites"),
        pytest.param(
            f"{INC}; xchg [rsi], eax; lock dec dword ptr [rdx]; mov eax, 1; ret",
            ["lock inc", "xchg", "lock dec", "mov"],
            id="three-short-sites",
        ),
        pytest.param("lock add dword ptr [rdi+8], 1; ret", ["lock add"], id="long-enough-alone"),
        pytest.param("lock add dword ptr [rip+split], 1000; ret", ["lock add"], id="relative-to-rip-alone"),
    ],
)
def test_which_neighbours_move_along(tmp_path: Path, body: str, texts: list[str]) -> None:
    image, _ = made(tmp_path, function("f", body) + function("g", "ret", padding="") + SPLIT)
    check(image)
    moved = [str(x) for run in image.runs for x in run.instructions]
    assert not any(run.trap for run in image.runs)
    if "dec" not in body:
        assert len(image.runs) == 1
        assert len(moved) == len(texts)
        assert all(text.startswith(start) for text, start in zip(moved, texts, strict=True)), moved
    else:  # one run or two, as long as they hold the sites between them
        assert [t.split()[0] for t in moved][: len(texts) - 1] == [t.split()[0] for t in texts][: len(texts) - 1]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(f"{INC}; call f; ret", id="before-a-call"),
        pytest.param(f"call f; {INC}; call f; ret", id="between-calls"),
        pytest.param(f"je 1f; ret; 1: {INC}; ret", id="before-ret-without-padding"),
        pytest.param("nop; site: xchg [rdi], eax", id="at-the-end-of-a-function-that-falls-through"),
        pytest.param(
            f"test eax, eax; je 1f; jmp 2f; 1: {INC}; 2: mov eax, 1; ret; {FILLER}; jmp 2b", id="between-targets"
        ),
    ],
)
def test_without_room_there_is_a_trap(tmp_path: Path, body: str) -> None:
    image, labels = made(tmp_path, function("f", body) + function("g", "mov ecx, 1\nret", padding=""))
    check(image)
    assert [(run.start, run.trap) for run in image.runs] == [(labels["site"], True)]


@pytest.mark.parametrize(
    ("filler", "trap"),
    [
        (".byte 0x90, 0x90", False),
        (".byte 0xcc, 0xcc", False),
        (".byte 0x66, 0x90", False),
        (".byte 0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0", False),
        (".byte 0x90", True),
        (".byte 0, 0, 0, 0", True),
        (".byte 0x90, 0, 0, 0", True),
        ("", True),
    ],
    ids=["nops", "int3s", "nop2", "nopw", "one-nop", "zeroes", "nop-then-zeroes", "nothing"],
)
def test_xchg_and_ret_take_the_padding_behind_them(tmp_path: Path, filler: str, trap: bool) -> None:
    source = function("f", "site: xchg [rdi], eax\nret") + filler + function("g", "ret", padding="")
    image, labels = made(tmp_path, source)
    check(image)
    assert [(run.start, run.size, run.trap) for run in image.runs] == [(labels["site"], 2 if trap else 5, trap)]


def test_padding_is_not_taken_from_a_function_that_is_jumped_to(tmp_path: Path) -> None:
    hidden = "hidden: nop; nop; mov eax, 1; ret\n.p2align 4"
    source = function("f", f"{INC}; ret") + hidden + function("g", "jmp hidden", padding="")
    image, labels = made(tmp_path, source)
    check(image)
    assert image.around(labels["hidden"]) is None
    assert image.intrusions([(labels["g"], labels["hidden"])]) == []


@dataclass(frozen=True)
class Way:
    """Assembly in which control comes from somewhere to the label `in`, which no run may have inside."""

    source: str
    position_independent: bool = True

    def is_closed(self, directory: Path) -> bool:
        """Whether the runs leave the label alone."""
        flags = ("-Wl,-z,notext",) if self.position_independent else ("-no-pie",)
        image, labels = made(directory, self.source, *flags, shared=self.position_independent)
        check(image)
        return image.around(labels["in"]) is None


ENTERED = f"{INC}; in: mov eax, 1; ret"
ELSEWHERE = function("f", ENTERED)
TABLE = ".section .rodata; .balign 8; table:"
LOAD = "lea rdx, [rip+table]; movsxd rax, dword ptr [rdx+rdi*4];"
JUMP = f"{LOAD} add rax, rdx; jmp rax;"
WAYS = {
    "loop-back": Way(function("f", f"{INC}; in: dec ecx; {FILLER}; jne in; ret")),
    "branch-from-before": Way(function("f", f"test eax, eax; je in; {FILLER}; {ENTERED}")),
    "behind-the-prefix": Way(function("f", "test eax, eax; je 1f; nop; lock; 1: inc dword ptr [rdi]; in: ret; jmp in")),
    "jump-table": Way(function("f", JUMP + ENTERED) + f"{TABLE} .long in-table, site-table"),
    "long-jump-table": Way(function("f", JUMP + ENTERED) + f"{TABLE} .long {'site-table, ' * 500} in-table"),
    "pointer-table": Way(
        function("f", f"lea rdx, [rip+table]; jmp [rdx+rdi*8]; {ENTERED}") + f"{TABLE} .quad site, in"
    ),
    "pointer-table-no-pie": Way(function("f", f"jmp [rdi*8+table]; {ENTERED}") + f"{TABLE} .quad site, in", False),
    "pointer-elsewhere": Way(ELSEWHERE + ".data; .quad in"),
    "computed": Way(function("f", f"lea rax, [rip+in]; jmp rax; {ENTERED}")),
    "computed-no-pie": Way(function("f", f"mov eax, offset in; jmp rax; {ENTERED}"), False),
    "jump-from-another-function": Way(ELSEWHERE + function("g", "jmp in")),
    "branch-from-another-function": Way(ELSEWHERE + function("g", "jc in; ret")),
    "far-branch-from-another-function": Way(ELSEWHERE + function("g", ".skip 999, 0x90; jc in; ret")),
    "call-from-another-function": Way(ELSEWHERE + function("g", "call in; ret")),
    "loop-from-another-function": Way(ELSEWHERE + function("g", "loop in; ret")),
    "xbegin-from-another-function": Way(ELSEWHERE + function("g", "xbegin in; ret")),
    "jump-from-outside-of-functions": Way(ELSEWHERE + ".p2align 4; jmp in"),
    # what gcc makes of a switch some of whose cases are cold
    "jump-table-of-another-function": Way(
        function("f", JUMP) + function("cold", ENTERED) + f"{TABLE} .long in-table, site-table"
    ),
    "computed-in-another-function": Way(ELSEWHERE + function("g", "lea rax, [rip+in]; jmp rax")),
    "computed-in-another-function-no-pie": Way(ELSEWHERE + function("g", "mov eax, offset in; jmp rax"), False),
    # what glibc's vfprintf does: a table of distances from one of the labels
    "distances-from-a-label": Way(
        function("f", f"{LOAD} lea rdx, [rip+base]; add rax, rdx; jmp rax; base: ret; {ENTERED}")
        + f"{TABLE} .long in-base, base-base"
    ),
    "table-of-32-bit-pointers-no-pie": Way(
        function("f", f"mov eax, [rdi*4+table]; jmp rax; {ENTERED}") + f"{TABLE} .long site, in", False
    ),
    "pushed-no-pie": Way(function("f", f"jc site; push offset in; ret; {ENTERED}"), False),
    "hinted-branch-from-another-function": Way(ELSEWHERE + function("g", ".byte 0x2e; jc in; ret")),
    "bnd-jump-from-another-function": Way(ELSEWHERE + function("g", ".byte 0xf2; jmp in")),
    "call-within": Way(function("f", f"call in; {ENTERED}")),
    "xbegin-within": Way(function("f", f"jc site; xbegin in; ret; {ENTERED}")),
    "branch-behind-data": Way(function("f", f"{ENTERED}; .byte 0x06; je in; ret")),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_no_run_is_entered_inside(tmp_path: Path, way: Way) -> None:
    assert way.is_closed(tmp_path)


LANDING_PAD = Way(
    function(
        "f",
        f".cfi_personality 0x9b, data; .cfi_lsda 0x1b, lsda; f2: call f@PLT; called: ret; {ENTERED}",
    )
    + """.section .gcc_except_table, "a"; lsda: .byte 0xff, 0xff, 1; .uleb128 te-tb
        tb: .uleb128 0; .uleb128 called-f2; .uleb128 in-f2; .uleb128 0
        te: .data; data: .quad 0"""
)


@pytest.mark.xfail(strict=True, raises=AssertionError, reason="not looked for, since nothing falls through to one")
def test_no_run_is_entered_inside_at_a_landing_pad(tmp_path: Path) -> None:
    assert LANDING_PAD.is_closed(tmp_path)


@pytest.mark.parametrize(
    ("body", "together"),
    [
        pytest.param("je 1f; lock; 1: cmpxchg [rdi], ecx; ret", True, id="adjacent"),
        pytest.param("je 1f; nop; lock; 1: cmpxchg [rdi], ecx; ret", True, id="a-nop-between"),
        pytest.param("je 1f; lock; 1: cmpxchg [rip+split], ecx; ret", True, id="adjacent-and-long"),
        pytest.param(f"je 1f; {FILLER}; lock; 1: cmpxchg [rdi], ecx; mov eax, 1; ret", False, id="far"),
        pytest.param(f"je 1f; {FILLER}; lock; 1: cmpxchg [rip+split], ecx; ret", False, id="far-and-long"),
        pytest.param("je 1f; call f; lock; 1: cmpxchg [rdi], ecx; mov eax, 1; ret", False, id="a-call-between"),
    ],
)
def test_a_branch_around_the_lock_prefix(tmp_path: Path, body: str, together: bool) -> None:
    """glibc skips the prefix in a process with one thread."""
    image, _ = made(tmp_path, function("f", f"cmp dword ptr [rip+split], 0; {body}") + SPLIT)
    check(image)
    (only,) = image.runs
    assert only.trap is not together
    assert together == any(x.flow_control == FlowControl.CONDITIONAL_BRANCH for x in only.instructions)


def test_a_loop_may_move_as_a_whole(tmp_path: Path) -> None:
    image, labels = made(tmp_path, function("f", f"call g@PLT; {INC}; in: dec ecx; jne in; ret") + function("g", "ret"))
    check(image)
    (only,) = image.runs
    assert not only.trap
    assert only.start == labels["site"]
    assert image.around(labels["in"]) is only


def test_a_branch_into_the_middle_of_an_instruction_is_no_way_to_move(tmp_path: Path) -> None:
    body = f"call f@PLT; {INC}; other: mov eax, 0x90909090; jne other+1; ret"
    image, labels = made(tmp_path, function("f", body))
    check(image)
    assert image.around(labels["other"] + 1) is None


def test_functions_that_cannot_be_decoded_to_the_end_say_so(tmp_path: Path) -> None:
    source = function(
        "f", f"{INC}; mov eax, 1; ret; .byte 0x06; lock inc dword ptr [rsi]; lock dec dword ptr [rsi]; ret"
    )
    path = link(tmp_path, source)
    elf = Elf(path.read_bytes())
    text = Text(elf)
    assert sum(len(f.sites) for f in text.functions) == 1
    assert text.outside_sites == 2
    assert text.outside == 8


DATA = "jmp 1f; site: lock inc dword ptr [rdi]; lock dec dword ptr [rdi]; 1: mov eax, 1; ret"  # 6 bytes of it


@pytest.mark.parametrize(
    ("source", "sites"),
    [
        pytest.param(function("f", DATA), 0, id="nothing-goes-there"),
        pytest.param(function("f", DATA) + ".data; .quad site", 0, id="a-pointer-is-no-branch"),
        pytest.param(function("f", f"jc site; {DATA}"), 2, id="a-branch"),
        pytest.param(function("f", f"call site; {DATA}"), 2, id="a-call"),
        pytest.param(function("f", DATA) + function("g", "jmp site"), 2, id="a-branch-from-another-function"),
        pytest.param(function("f", DATA) + ".p2align 4; jmp site", 2, id="a-branch-from-outside-of-functions"),
        pytest.param(function("f", f"jc 2f; {DATA}; 2: jmp rax"), 2, id="who-knows-where-a-jump-goes"),
        pytest.param(function("f", f"jc 2f; {DATA}; 2: jmp [rax*8]"), 2, id="who-knows-what-a-table-holds"),
        pytest.param(  # what gcc makes of a switch some of whose cases are cold
            function("f", f"jc cold; {JUMP}") + function("cold", DATA) + f"{TABLE} .long site-table, f-table",
            2,
            id="the-jump-table-of-another-function",
        ),
    ],
)
def test_data_behind_a_jump_is_left_alone(tmp_path: Path, source: str, sites: int) -> None:
    raw = link(tmp_path, source).read_bytes()
    elf = Elf(raw)
    text = Text(elf)
    moved = {x.ip for run in choose_runs(text) for x in run.instructions if split_size(x)}
    assert len(moved) == sites
    assert (text.outside_sites, text.outside) == ((0, 0) if sites else (2, 6))


def test_locked_instructions_outside_of_functions_are_counted(tmp_path: Path) -> None:
    source = (
        function("f", "ret") + f".p2align 4; lock inc dword ptr [rsi]; {FILLER}; ret" + function("g", f"{INC}; ret")
    )
    path = link(tmp_path, source)
    elf = Elf(path.read_bytes())
    ranges = function_ranges(elf)
    text = Text(elf)
    assert text.outside_sites == 1
    assert text.outside == ranges[1][0] - ranges[0][1]


def test_sites_whose_address_says_that_they_never_split_are_only_counted(tmp_path: Path) -> None:
    source = function("f", "lock inc dword ptr [rip+data]; lock inc dword ptr [rip+data+62]; ret")
    image, labels = made(tmp_path, source + ".data; .balign 64; data: .skip 128")
    check(image)
    assert image.sites == {labels["f"] + 7}
    assert Text(image.elf).decided == 1
