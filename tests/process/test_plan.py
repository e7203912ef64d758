"""Plans: right wherever the arena lands, nothing changed but the runs, and honest about what is not watched."""

from __future__ import annotations

import itertools
import re
import struct
from dataclasses import dataclass
from pathlib import Path

import pytest
from iced_x86 import Decoder, Instruction, Mnemonic, OpKind
from image.test_elf import RELOCATED, without_sections
from x86.building import (
    CRYPTO,
    LIBC,
    LIBSTDCXX,
    LOCKS,
    function,
    link,
    listing,
    locked_width,
    symbols,
)

from splitlock.image.elf import Elf
from splitlock.process.abi import SEEN, data_layout
from splitlock.process.cache import decode, encode
from splitlock.process.functions import Text
from splitlock.process.plan import Plan, Sites, build
from splitlock.process.runs import Run, choose_runs

BIAS = 0x7F00_0000_0000  # where the image is thought to be loaded
DELTAS = [0, 4096, -4096, -0x7F000, 0x0123_4000, -0x4000_0000, 0x3000_0000]


@dataclass(frozen=True)
class Planned:
    """An image, its runs, and its plan."""

    path: Path
    elf: Elf
    runs: list[Run]
    hot: Plan
    cold: Sites


@pytest.fixture(scope="module", params=[LIBC, LIBSTDCXX, CRYPTO], ids=lambda path: path.name)
def planned(request: pytest.FixtureRequest) -> Planned:
    """An installed library."""
    raw = request.param.read_bytes()
    elf = Elf(raw)
    return Planned(request.param, elf, choose_runs(Text(elf)), *build(raw))


def outside(x: Instruction, low: int, high: int) -> int | None:
    """The address outside of [low, high) that an instruction goes to or reads, if any."""
    target = None
    if x.is_ip_rel_memory_operand:
        target = x.ip_rel_memory_address
    elif x.op_count and x.op0_kind == OpKind.NEAR_BRANCH64:
        target = x.near_branch_target
    return target if target is not None and not low <= target < high else None


def test_the_arena_reaches_the_same_places_from_wherever_it_is(planned: Planned) -> None:
    hot = planned.hot
    first = min(hot.arena + at for at in entries(hot)) - hot.arena
    reached: list[dict[int, int]] = []
    inner: list[list[int]] = []
    for delta in DELTAS:
        code, _ = hot.moved(delta)
        base = BIAS + hot.arena + delta
        low, high = base, base + hot.code_size + hot.data_size
        assert code[: hot.flag + 1] == hot.code[: hot.flag + 1]  # the check routine looks at the arena only
        outer: dict[int, int] = {}
        inside: list[int] = []
        for x in Decoder(64, code[first:], ip=base + first):
            target = outside(x, low, high)
            if target is not None:
                outer[x.ip - base] = target
            elif x.op_count and x.op0_kind == OpKind.NEAR_BRANCH64:
                inside.append(x.near_branch_target - base)
        reached.append(outer)
        inner.append(inside)
    assert len(reached[0]) == len(hot.fields)
    assert all(outer == reached[0] for outer in reached)
    assert all(inside == inner[0] for inside in inner)
    low, high = planned.elf.span()
    assert all(low <= target - BIAS < high for target in reached[0].values())


def entries(hot: Plan) -> list[int]:
    """Where the patched text jumps to, and where breakpoints go on: offsets in the arena."""
    found = list(hot.traps.values())
    for address, text, fields in hot.chunks:
        for field in fields:
            x = Decoder(64, text[field - 1 :], ip=BIAS + address + field - 1).decode()
            assert (x.mnemonic, len(x)) == (Mnemonic.JMP, 5)
            found.append(x.near_branch_target - BIAS - hot.arena)
    return found


def test_text_changes_at_runs_only_and_jumps_to_their_trampolines(planned: Planned) -> None:
    hot, cold = planned.hot, planned.cold
    runs = {run.start: run for run in planned.runs}
    patched = set()
    for delta in DELTAS:
        _, chunks = hot.moved(delta)
        assert [(address, len(text), fields) for address, text, fields in chunks] == [
            (address, len(text), fields) for address, text, fields in hot.chunks
        ]
        for (address, text, fields), original in zip(chunks, cold.original, strict=True):
            assert original == planned.elf.read(address, len(text))
            here = [run for start, run in runs.items() if address <= start < address + len(text)]
            assert fields == [run.start - address + 1 for run in here if not run.trap]
            expected = bytearray(original)
            for run in here:
                at = run.start - address
                if run.trap:
                    expected[at] = 0xCC
                    continue
                x = Decoder(64, text[at : at + 5], ip=BIAS + run.start).decode()
                offset = x.near_branch_target - BIAS - hot.arena - delta
                # the trampoline's first moved instruction is the run's first
                first = min(copy for copy in cold.copies if copy >= offset)
                assert cold.copies[first] == run.start
                assert set(hot.code[offset - offset % 16 : offset]) <= {0xCC}
                expected[at : at + run.size] = text[at : at + 5] + b"\xcc" * (run.size - 5)
                patched.add(run.start)
            assert text == bytes(expected)
    assert patched == {run.start for run in planned.runs if not run.trap}
    assert set(hot.traps) == {run.start for run in planned.runs if run.trap}
    spans = sorted((address, address + len(text)) for address, text, _ in hot.chunks)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))


def test_chunks_lie_within_one_segment_each(planned: Planned) -> None:
    assert planned.hot.segments == [
        (s.vaddr, s.offset, s.filesz) for s in planned.elf.segments if s.type == 1 and s.flags & 1
    ]
    for address, text, _ in planned.hot.chunks:
        assert any(low <= address and address + len(text) <= low + size for low, _, size in planned.hot.segments)


def spelled(text: str) -> str:
    """An instruction without what objdump and iced-x86 are free to write or not, and with decimal numbers."""
    text = re.sub(r"\b[a-z]+ ptr ", "", text.lower()).replace(", ", ",").replace("+0x0]", "]").replace("*1", "")
    text = re.sub(r"0x[0-9a-f]+", lambda number: str(int(number[0], 16)), text)
    return " ".join(re.sub(r":\[(\d+)\]", r":\1", text).split())


def test_sites_are_those_objdump_lists() -> None:
    hot, cold = build(LIBC.read_bytes())
    lines = {line.address: line for line in listing(LIBC, LOCKS)}
    for address, following, size, text in cold.sites:
        line = lines[address]
        assert following == address + len(line.code)
        assert size == locked_width(line.text)
        assert spelled(text) == spelled(line.text)
    counted = {address for address, line in lines.items() if 1 < locked_width(line.text) < 16}
    assert hot.watched == len(counted)
    assert hot.sites == len(cold.sites) <= hot.watched
    assert {site[0] for site in cold.sites} <= counted


def test_a_plan_is_whole_pages_right_below_its_image(planned: Planned) -> None:
    hot = planned.hot
    assert hot.span == planned.elf.span()
    assert hot.arena + hot.code_size + hot.data_size == hot.span[0]
    assert hot.arena % 4096 == hot.code_size % 4096 == hot.data_size % 4096 == 0
    assert len(hot.code) <= hot.code_size < len(hot.code) + 4096


def test_where_a_task_is_while_it_asks(planned: Planned) -> None:
    hot = planned.hot
    assert hot.code[hot.asked - 2 : hot.asked] == b"\x0f\x05"  # syscall
    assert hot.code[hot.trapped - 1] == 0xCC
    assert hot.code[hot.flag] == 0


def test_plans_depend_on_nothing_but_the_file(planned: Planned) -> None:
    hot, cold = build(planned.path.read_bytes())
    assert hot.values() == planned.hot.values()
    assert cold.values() == planned.cold.values()


def test_both_halves_can_be_stored(planned: Planned) -> None:
    hot, cold = decode(encode(planned.hot.values())), decode(encode(planned.cold.values()))
    assert hot == planned.hot.values()
    assert cold == planned.cold.values()
    assert Plan(hot).values() == hot
    assert Sites(*cold).values() == cold  # type: ignore[arg-type]


@pytest.mark.parametrize("values", [(), (1,), tuple(range(13)), tuple(range(15))])
def test_a_plan_of_another_shape_is_refused(values: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match="zip"):
        Plan(values)


@pytest.mark.parametrize("sites", [0, 1, 7, 8, 9, 63, 64, 500, 512, 513, 5000])
def test_the_data_area_has_room_for_counters_and_the_seen_table(sites: int) -> None:
    seen, size = data_layout(sites)
    assert 8 * sites <= seen < 8 * sites + 64
    assert seen % 64 == size % 4096 == 0
    assert seen + 8 * SEEN <= size < seen + 8 * SEEN + 4096


# -- what is not watched --------------------------------------------------------------------------------

SITE = function("f", "lock inc dword ptr [rdi]; mov eax, 1; ret")


def test_an_image_without_sites(tmp_path: Path) -> None:
    raw = link(tmp_path, function("f", "ret"), "-Wl,--build-id=sha1").read_bytes()
    hot, cold = build(raw)
    assert (hot.watched, hot.sites, hot.unmonitored, hot.chunks, hot.code) == (0, 0, [], [], b"")
    assert hot.span == Elf(raw).span()
    assert cold.build_id == Elf(raw).build_id() is not None


def test_an_image_whose_sites_never_split(tmp_path: Path) -> None:
    source = function("f", "lock inc dword ptr [rip+data]; ret") + ".data; .balign 64; data: .quad 0"
    hot, _ = build(link(tmp_path, source).read_bytes())
    assert (hot.watched, hot.sites, hot.unmonitored, hot.chunks) == (1, 0, [], [])


def test_text_relocations_are_a_reason(tmp_path: Path) -> None:
    raw = link(tmp_path, RELOCATED, "-Wl,-z,notext").read_bytes()
    hot, cold = build(raw)
    assert (hot.watched, hot.chunks, cold.sites) == (0, [], [])
    ((reason, size, count),) = hot.unmonitored
    assert "text relocations" in reason
    assert size == sum(s.filesz for s in Elf(raw).executable())
    assert count is None


@pytest.mark.parametrize("machine", [3, 183, 243], ids=["i386", "aarch64", "riscv"])
def test_code_for_another_machine_is_a_reason(tmp_path: Path, machine: int) -> None:
    raw = link(tmp_path, SITE).read_bytes()
    hot, _ = build(raw[:18] + struct.pack("<H", machine) + raw[20:])
    assert hot.watched == 0
    assert [reason for reason, _, _ in hot.unmonitored] == ["not x86-64 code"]


def test_a_truncated_image_is_a_reason(tmp_path: Path) -> None:
    raw = link(tmp_path, SITE).read_bytes()
    hot, _ = build(raw[: len(raw) // 4])
    assert hot.watched == 0
    ((reason, size, _),) = hot.unmonitored
    assert re.match("malformed image: .*truncated", reason)
    assert size == len(raw) // 4


def test_code_outside_of_functions_is_a_reason_and_the_rest_is_watched(tmp_path: Path) -> None:
    raw = link(tmp_path, SITE + ".p2align 4; lock inc dword ptr [rsi]; lock dec dword ptr [rsi]; ret").read_bytes()
    hot, _ = build(raw)
    assert hot.watched == 1
    ((reason, size, count),) = hot.unmonitored
    assert (reason, count) == ("code outside known functions", 2)
    assert size > 0


def test_nothing_is_known_of_code_without_frames_and_symbols(tmp_path: Path) -> None:
    source = SITE.replace(".cfi_startproc", "").replace(".cfi_endproc", "")
    hot, _ = build(without_sections(link(tmp_path, source).read_bytes()))
    assert (hot.watched, hot.sites) == (0, 0)
    ((reason, size, count),) = hot.unmonitored
    assert (reason, count) == ("code outside known functions", 1)
    assert size >= 9


def test_section_headers_are_not_needed() -> None:
    raw = LIBC.read_bytes()
    whole, bare = build(raw), build(without_sections(raw))
    frames_only = {site[0] for site in bare[1].sites}
    assert frames_only <= {site[0] for site in whole[1].sites}
    assert len(frames_only) > 0.99 * len(whole[1].sites)
    assert bare[1].build_id == whole[1].build_id


def test_functions_at_the_seam_of_two_executable_segments(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(
        """
        PHDRS { one PT_LOAD FILEHDR PHDRS FLAGS(5); two PT_LOAD FLAGS(7); dynamic PT_DYNAMIC; }
        SECTIONS {
            . = SIZEOF_HEADERS;
            .eh_frame : { *(.eh_frame) } :one
            .dynamic : { *(.dynamic) } :one :dynamic
            .rest : { *(.dynsym) *(.dynstr) *(.hash) *(.gnu.hash) } :one
            . = 0x1fc0; .text : { *(.text) } :one
            . = 0x2000; .writable : { *(.writable) } :two
        }
        """
    )
    source = function("f", "lock inc dword ptr [rdi]; ret; .fill 48, 1, 0x90", padding="")
    source += function("g", "lock inc dword ptr [rdi]; mov eax, 1; ret").replace(".text", '.section .writable, "awx"')
    path = link(tmp_path, source, f"-Wl,-T,{script}")
    assert symbols(path)["g"] == 0x2000
    hot, _ = build(path.read_bytes())
    assert hot.unmonitored == []
    assert hot.watched == 2
