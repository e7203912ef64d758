#!/usr/bin/env python3
"""Writes src/splitlock/image/scan/tables.h: what the decoder there must know of x86's opcode maps, asked of iced-x86.

    scripts/scan_tables.py [FILE]

How long an instruction is comes from iced's opcode descriptions; whether bytes are one, and where control goes after
it, is tried out: every legacy opcode with every ModRM byte and every prefix that matters is decoded. A test writes
the file anew and compares.
"""

from __future__ import annotations

import sys
from pathlib import Path

from guard_tables import MODRM, immediate_lengths, modrm_lengths, opcodes, prefixes
from iced_x86 import Decoder, FlowControl

TARGET = Path(__file__).parents[1] / "src" / "splitlock" / "image" / "scan" / "tables.h"

# What an entry of a row says: decode.h has the same as an enumeration.
INVALID, NEXT, CONDITIONAL, JUMP, CALL, TRANSACTION, INDIRECT, END, ASK = range(9)
_FLOWS = {
    FlowControl.CONDITIONAL_BRANCH: CONDITIONAL,
    FlowControl.UNCONDITIONAL_BRANCH: JUMP,
    FlowControl.CALL: CALL,
    FlowControl.XBEGIN_XABORT_XEND: TRANSACTION,
    FlowControl.INDIRECT_BRANCH: INDIRECT,
    FlowControl.RETURN: END,
    FlowControl.EXCEPTION: END,
}
# Prefixes in the order of the states: 66h counts 2, F3h 4, F2h 8, REX.W 1.
_STATES = [
    (operand + repeat, rex) for repeat in (b"", b"\xf3", b"\xf2") for operand in (b"", b"\x66") for rex in (0x40, 0x48)
]
_ESCAPES = [b"", b"\x0f", b"\x0f\x38", b"\x0f\x3a"]
_FORMS = [reg << 3 for reg in range(8)] + [0xC0 | low for low in range(64)]  # of ModRM: memory by /reg, then registers
_3DNOW = 0x10F  # its opcode is the last byte


def _flow(raw: bytes) -> int:
    """What an entry says of an instruction; INVALID for what is none."""
    instruction = Decoder(64, raw).decode()
    return _FLOWS.get(instruction.flow_control, NEXT) if instruction else INVALID


def _entry(prefix: bytes, rex: int, opcode: bytes) -> int:
    """The flow of an opcode; ASK where further registers, addressing forms or an address size change the answer."""
    plain = {
        _flow(more + prefix + bytes([rex | extended]) + opcode + bytes(12))
        for more in (b"", b"\x67")
        for extended in (0, 1, 2, 4, 7)
    }
    if len(plain) == 1:
        return plain.pop()
    assert plain <= {INVALID, NEXT}  # decode.c takes what it asks about for one that goes on
    return ASK


def _row(at: int, has_modrm: bool, prefix: bytes, rex: int) -> bytes:
    """An opcode's 72 entries: 8 for memory operands by the ModRM byte's middle field, 64 for registers."""
    opcode = _ESCAPES[at >> 8] + bytes([at & 255])
    if not has_modrm:
        return bytes([_entry(prefix, rex, opcode)] * len(_FORMS))
    row = bytearray()
    for form in _FORMS:
        # Every way of addressing memory must give the same answer.
        ways = [form] if form >= 0xC0 else [form, form | 4, form | 5, form | 0x40, form | 0x80, form | 0x84]
        entries = {_entry(prefix, rex, opcode + bytes([way])) for way in ways}
        row.append(entries.pop() if len(entries) == 1 else ASK)
    return bytes(row)


def rows(shapes: dict[int, int]) -> tuple[list[bytes], list[bytes], list[int]]:
    """The distinct rows, the distinct lists of a row for each state, and the number of that list for each opcode."""
    distinct = {bytes(len(_FORMS)): 0}
    lists = {bytes(len(_STATES)): 0}
    numbers = []
    for at in range(4 * 256):
        made = bytearray(len(_STATES))
        if at == _3DNOW:
            made = bytearray([distinct.setdefault(bytes([ASK] * len(_FORMS)), len(distinct))] * len(_STATES))
        elif at in shapes:
            for number, (prefix, rex) in enumerate(_STATES):
                row = _row(at, bool(shapes[at] & MODRM), prefix, rex)
                made[number] = distinct.setdefault(row, len(distinct))
        numbers.append(lists.setdefault(bytes(made), len(lists)))
    return list(distinct), list(lists), numbers


def _table(name: str, size: str, values: list[int]) -> str:
    text = [str(value) for value in values]
    lines = [",".join(text[at : at + 40]) for at in range(0, len(text), 40)]
    return f"static const uint8_t {name}[{size}] = {{\n" + ",\n".join(lines) + "\n};\n"


def made() -> str:
    """The whole file."""
    shapes = opcodes()
    distinct, lists, numbers = rows(shapes)
    assert max(len(distinct), len(lists)) <= 256
    keep, add = prefixes()
    tables = max(shapes) // 256 + 1
    parts = [
        "/* Made by scripts/scan_tables.py from iced-x86; decode.c says what the tables mean. Do not edit. */\n"
        "#ifndef SPLITLOCK_SCAN_TABLES_H\n#define SPLITLOCK_SCAN_TABLES_H\n#include <stdint.h>\n\n"
        f"enum {{ TABLES = {tables}, FORMS = {len(_FORMS)}, STATES = {len(_STATES)} }};\n\n",
        _table("prefix_keep", "256", keep),
        _table("prefix_add", "256", add),
        _table("modrm_length", "256", modrm_lengths()),
        _table("immediate_length", "64", immediate_lengths()),
        _table("shapes", "TABLES * 256", [shapes.get(at, 0) for at in range(tables * 256)]),
        _table("row_lists", "4 * 256", numbers),
        _table("row_of_state", f"{len(lists)} * STATES", [number for each in lists for number in each]),
        _table("rows", f"{len(distinct)} * FORMS", [entry for row in distinct for entry in row]),
        "#endif\n",
    ]
    return "".join(parts)


if __name__ == "__main__":
    (Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET).write_text(made())
