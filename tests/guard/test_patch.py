"""Tables by which the kernel writes to code as it links: what they may name, in modules made up here."""

from __future__ import annotations

import pytest
from guard.elves import ALLOC, CLEAN, TEXT, Relocation, linked
from guard.native import Native, native
from guard.test_judge import ALLOWED, MALFORMED, REFUSED, gate_config

from splitlock.guard import layout
from splitlock.modules.policy import load

PC32, WIDE, PC64 = 2, 1, 24
HALVES = b"\x0f\x01\xd0" + b"\x90" * 8 + b"\xc3"  # xgetbv; nop...
FAR = 300_000  # beyond the first window of marks


@pytest.fixture(scope="module")
def gate() -> Native:
    return native()


def said(gate: Native, data: bytes) -> tuple[str, str | None]:
    decision = gate.judge(data, gate_config(load("refuse")))
    return layout.VERDICTS[decision.verdict], layout.DOUBTS[decision.doubt]


def alternatives(*entries: tuple[int, int, int, int], text: bytes, new: bytes, size: int = 12, **more: object) -> bytes:
    """A module with alternatives (from, bytes, replacement's place, bytes)."""
    table, relocations = b"", []
    for at, (where, length, replacement, bytes_) in enumerate(entries):
        table += bytes(size - 2) + bytes([length, bytes_])
        relocations += [(at * size, PC32, 1, where), (at * size + 4, PC32, 2, replacement)]
    return linked(
        (b".text", TEXT, text, ()), (b".altinstr_replacement", TEXT, new, ()),
        (b".altinstructions", ALLOC, table, relocations), **more,  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize("size", [12, 14])
def test_alternatives(gate: Native, size: int) -> None:
    new = b"\x0f\x01\xd0\x90\xc2\0\0"  # xgetbv; nop; ret 0

    def of(*entries: tuple[int, int, int, int], text: bytes = HALVES, new: bytes = new) -> tuple[str, str | None]:
        return said(gate, alternatives(*entries, text=text, new=new, size=size))

    assert of((0, 3, 0, 3)) == of((3, 8, 0, 4)) == of((0, 3, 7, 0)) == of((0, 4, 3, 4)) == ALLOWED
    assert of((0, 3, 0, 3), (0, 3, 4, 3), (3, 3, 0, 3)) == ALLOWED  # ALTERNATIVE_2
    assert of((0, 3, 0, 3), (0, 5, 0, 4)) == ALLOWED  # nested
    for entry in (
        (2, 1, 4, 1), (2, 1, 3, 1), (0, 2, 0, 0), (0, 3, 1, 1), (0, 3, 0, 2), (0, 3, 0, 4), (11, 2, 0, 0),
        (12, 1, 0, 1), (0, 3, 5, 3), (4000, 1, 0, 1),
    ):  # fmt: skip
        assert of(entry) == MALFORMED, entry
    for pair in (
        ((0, 5, 0, 4), (0, 3, 0, 3)), ((0, 5, 0, 3), (4, 3, 0, 3)), ((4, 3, 0, 3), (0, 5, 0, 3)),
        ((0, 8, 0, 3), (4, 1, 3, 1)), ((4, 1, 3, 1), (0, 8, 0, 3)),
    ):  # fmt: skip
        assert of(*pair) == MALFORMED, pair
    assert of((0, 3, 0, 3), new=b"\x0f\x01\xc2") == REFUSED


def test_alternatives_that_do_not_say_it_all(gate: Native) -> None:
    entry = bytes(10) + b"\3\3"
    new = b"\x0f\x01\xd0"

    def of(table: bytes, *relocations: Relocation, flags: int = ALLOC) -> tuple[str, str | None]:
        return said(gate, linked(
            (b".text", TEXT, HALVES, ()), (b".altinstr_replacement", TEXT, new, ()),
            (b".altinstructions", flags, table, relocations), (b".data", 3, bytes(64), ()),
        ))  # fmt: skip

    both = (0, PC32, 1, 0), (4, PC32, 2, 0)
    assert of(entry, *both) == of(b"") == ALLOWED
    for table, relocations in (
        (entry, ()), (entry, both[:1]), (entry, both[1:]), (entry, both[::-1]), (entry[:-1], both), (entry * 2, both),
        (entry, (both[0], (4, PC32, 4, 0))), (entry, ((0, PC32, 4, 0), both[1])), (entry, ((0, 10, 1, 0), both[1])),
        (entry, (both[0], (4, PC32, 0, 0))), (entry, (both[0], (4, PC32, 99, 0))), (entry, (*both, (8, 10, 1, 0))),
        (entry, ((0, 0, 1, 0), both[1])), (entry + entry, (*both, (12, PC32, 1, 3), (17, PC32, 2, 0))),
    ):  # fmt: skip
        assert of(table, *relocations) == MALFORMED, (table, relocations)
    assert of(entry, *both, flags=0) == MALFORMED


SITES = (b".smp_locks", b".retpoline_sites", b".return_sites", b".call_sites", b".ibt_endbr_seal")


@pytest.mark.parametrize("name", SITES)
def test_sites(gate: Native, name: bytes) -> None:
    rdrand = b"\x0f\xc7\xf0" + b"\x90" * 4 + b"\xc3"  # with a 3E for the F0, as on one processor: VMPTRST [rsi]
    for at, wanted in ((0, ALLOWED), (3, ALLOWED), (2, MALFORMED), (1, MALFORMED), (8, MALFORMED), (-1, MALFORMED)):
        made = linked((b".text", TEXT, rdrand, ()), (name, ALLOC, bytes(4), [(0, PC32, 1, at)]))
        assert said(gate, made) == wanted, at
    far = linked((b".text", TEXT, b"\x90" * FAR + rdrand, ()), (name, ALLOC, bytes(4), [(0, PC32, 1, FAR + 2)]))
    assert said(gate, far) == MALFORMED
    far = linked((b".text", TEXT, b"\x90" * FAR + rdrand, ()), (name, ALLOC, bytes(4), [(0, PC32, 1, FAR + 3)]))
    assert said(gate, far) == ALLOWED
    assert said(gate, linked((b".text", TEXT, rdrand, ()), (name, ALLOC, bytes(4), ()))) == MALFORMED


def test_tables_of_more_than_one_field(gate: Native) -> None:
    text = b"\x0f\x1f\x44\0\0\xe8\0\0\0\0\xc3\x90\x90\x90\x90"  # nop; call; ret

    def of(name: bytes, size: int, *relocations: Relocation) -> tuple[str, str | None]:
        data = b".data", 3, bytes(8), ()
        return said(gate, linked((b".text", TEXT, text, ()), (name, 3, bytes(size), relocations), data))

    for at, wanted in ((0, ALLOWED), (5, ALLOWED), (1, MALFORMED), (6, MALFORMED)):
        assert of(b"__jump_table", 16, (0, PC32, 1, at), (4, PC32, 1, 0), (8, PC64, 3, 0)) == wanted
        assert of(b"__mcount_loc", 8, (0, WIDE, 1, at)) == wanted
        assert of(b".static_call_sites", 8, (0, PC32, 1, at), (4, PC32, 3, 0)) == wanted
    assert of(b".static_call_sites", 8, (0, PC32, 1, 10), (4, PC32, 3, 0)) == MALFORMED  # ret: four more bytes would go
    assert of(b"__jump_table", 16, (0, PC32, 1, 0), (4, PC32, 1, 0)) == MALFORMED
    assert of(b"__mcount_loc", 8, (0, PC32, 1, 0)) == MALFORMED
    assert of(b".cfi_sites", 4, (0, PC32, 1, 0)) == MALFORMED  # sixteen bytes, more than there are


def test_calls_through_pv_ops_are_what_the_code_says(gate: Native) -> None:
    """The loader makes a call of .parainstructions' own operation, whatever the code's relocation says."""
    text = b"\xff\x15\0\0\0\0\xc3"

    def of(operation: int, length: int = 6, at: int = 0, text: bytes = text) -> tuple[str, str | None]:
        entry = bytes(8) + bytes([operation, length]) + bytes(6)
        return said(gate, linked((b".text", TEXT, text, ()), (b".parainstructions", ALLOC, entry, [(0, WIDE, 1, at)])))

    assert of(0) == ALLOWED
    assert of(0xC0 // 8) == MALFORMED  # write_msr
    assert of(0, 5) == of(0, 7) == of(0, at=6) == of(0, at=1) == of(0, text=b"\x90" * 7) == MALFORMED


def test_what_a_table_names_within_what_alternatives_replace(gate: Native) -> None:
    def of(at: int) -> tuple[str, str | None]:
        return said(gate, linked(
            (b".text", TEXT, HALVES, ()), (b".altinstr_replacement", TEXT, b"\x90", ()),
            (b".smp_locks", ALLOC, bytes(4), [(0, PC32, 1, at)]),
            (b".altinstructions", ALLOC, bytes(10) + b"\6\1", [(0, PC32, 1, 3), (4, PC32, 2, 0)]),
        ))  # fmt: skip

    assert of(0) == of(3) == of(9) == ALLOWED
    assert of(4) == of(8) == MALFORMED


def test_code_that_only_a_symbol_leads_to_is_not_patched_in_its_middle(gate: Native) -> None:
    hidden = b"\x48\xb8" + b"\x0f\x01\xd0\x90" + b"\x90" * 9 + b"\xc3"  # mov rax, imm64; within it: xgetbv
    symbols = [(b"f", 1, 2)]
    assert said(gate, alternatives((10, 1, 0, 1), text=hidden, new=b"\x90", symbols=symbols)) == ALLOWED
    assert said(gate, alternatives((4, 1, 0, 1), text=hidden, new=b"\x90", symbols=symbols)) == MALFORMED
    apart = b"\x3d\x05\0\x3d\0\x05\0\x3d\0" + CLEAN  # two decodings that do not meet
    assert said(gate, linked((b".text", TEXT, apart, ()), (b".smp_locks", ALLOC, bytes(4), [(0, PC32, 1, 5)]),
                             symbols=[(b"f", 1, 1)])) == MALFORMED  # fmt: skip


def test_no_relocation_lies_behind_its_section(gate: Native) -> None:
    """The loader would apply it, to what comes behind: code, it may be."""
    for offset, kind, wanted in ((4, 10, ALLOWED), (5, 10, MALFORMED), (0, WIDE, ALLOWED), (1, WIDE, MALFORMED),
                                 (-64 & (1 << 64) - 1, 10, MALFORMED), (4096, 2, MALFORMED)):  # fmt: skip
        made = linked((b".text", TEXT, CLEAN, ()), (b".data", 3, bytes(8), [(offset, kind, 1, 0)]))
        assert said(gate, made) == wanted, offset
    assert said(gate, linked((b".text", TEXT, CLEAN, ()), (b".debug_x", 0, bytes(8), [(4096, 10, 1, 0)]))) == ALLOWED
