#!/usr/bin/env python3
"""Writes src/splitlock/guard/bpf/tables.h: what the gate's decoder must know of x86's opcode maps, asked of iced-x86.

    scripts/guard_tables.py [FILE]

How an instruction is put together comes from iced's opcode descriptions; which prefixes and ModRM bytes make one, and
of which kind it is (splitlock.x86.privileged), is tried out: every one of them is decoded. A test writes the
file anew and compares.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from iced_x86 import Code, Decoder, EncodingKind, OpCodeInfo, OpCodeOperandKind, OpCodeTableKind

from splitlock.x86.privileged import DEFAULT, KINDS, classify

TARGET = Path(__file__).parents[1] / "src" / "splitlock" / "guard" / "bpf" / "tables.h"

# An entry of gate_opcodes: how many immediate bytes, as the type in the lowest three bits, and flags.
NONE, ONE, TWO, WORD, FULL, ADDRESS, THREE, BRANCH = range(8)
MODRM, REGISTER, RELATIVE, ROW, VALID = 8, 16, 32, 64, 128
# Where the map starts in it, in units of 256 entries: legacy maps 0 to 3, VEX maps n at 4 + n, EVEX at 8 + n, XOP's
# maps 8 to 10 from 16 on; the others stay empty, that is, invalid.
TABLES = 20
_BASES = {
    EncodingKind.LEGACY: 0, EncodingKind.D3NOW: 0, EncodingKind.VEX: 4, EncodingKind.EVEX: 8, EncodingKind.XOP: 16
}  # fmt: skip
_MAPS = {
    OpCodeTableKind.NORMAL: 0, OpCodeTableKind.T0F: 1, OpCodeTableKind.T0F38: 2, OpCodeTableKind.T0F3A: 3,
    OpCodeTableKind.MAP5: 5, OpCodeTableKind.MAP6: 6,
    OpCodeTableKind.MAP8: 0, OpCodeTableKind.MAP9: 1, OpCodeTableKind.MAP10: 2,
}  # fmt: skip
_OPERANDS = {value: name for name, value in vars(OpCodeOperandKind).items() if isinstance(value, int)}
_PREFIXES = [b"", b"\x66", b"\xf3", b"\xf2"]  # those that select an instruction; the order is gate_rows'
_ESCAPES = [b"", b"\x0f", b"\x0f\x38", b"\x0f\x3a"]
_INVALID = 255


def immediate(operands: set[str]) -> int:
    """The type of an opcode's immediate, from all operands that instructions of this opcode have."""
    if "MEM_OFFS" in operands:
        return ADDRESS
    if "IMM64" in operands:
        return FULL
    if operands & {"BR64_4"}:
        return BRANCH  # 66h does not make it 16 bits: SDM vol. 2, CALL, JMP and Jcc, 64-bit mode
    if operands & {"IMM32", "IMM32SEX64", "XBEGIN_4"}:
        return WORD
    small = {name for name in operands if (name.startswith("IMM8") and name != "IMM8_CONST_1") or "_IS" in name}
    if "IMM16" in operands:
        return THREE if small else TWO
    return ONE if small or "BR64_1" in operands else NONE


def has_modrm(code: OpCodeInfo, operands: set[str]) -> bool:
    """Does a ModRM byte follow the opcode?"""
    if code.op_code_len == 2 or code.group_index >= 0 or code.rm_group_index >= 0:
        return True
    coded = {name for name in operands if name.startswith("MEM") or "SIBMEM" in name or name.endswith(("_MEM", "_RM"))}
    coded |= {name for name in operands if name.endswith(("_REG", "_REG_MEM", "_MPX")) or "VSIB" in name}
    return bool(coded - {"MEM_OFFS"})


def opcodes() -> dict[int, int]:
    """The entries of gate_opcodes that are not invalid, without ROW."""
    operands: dict[int, set[str]] = defaultdict(set)
    flags: dict[int, int] = defaultdict(int)
    for number in (value for value in vars(Code).values() if isinstance(value, int)):
        code = OpCodeInfo(number)  # type: ignore[arg-type]  # the stubs' Code is what its values are at run time
        if not code.mode64 or code.decoder_option or code.encoding not in _BASES or not code.is_instruction:
            continue
        if code.encoding == EncodingKind.D3NOW:  # the opcode stands where an immediate byte would
            flags[0x10F] = MODRM | VALID
            operands[0x10F] = {"IMM8"}
            continue
        first = code.op_code >> 8 if code.op_code_len == 2 else code.op_code
        at = 256 * (_BASES[code.encoding] + _MAPS[code.table]) + first
        names = {_OPERANDS[kind] for kind in code.op_kinds()}
        # three bits of an opcode can name a register
        in_opcode = code.op_code_len == 1 and any(name.endswith("_OPCODE") for name in names)
        for place in range(at, at + (8 if in_opcode else 1)):
            operands[place] |= names
            flags[place] |= VALID | MODRM * has_modrm(code, names) | REGISTER * code.ignores_mod_bits
            flags[place] |= RELATIVE * bool(names & {"BR64_1", "BR64_4"})
    # In one table are opcodes and prefixes: what leads to another map, or stands before an opcode, is no opcode.
    found = {at: flag | immediate(operands[at]) for at, flag in flags.items()}
    found[0xF6] = found[0xF6] & ~7 | ONE  # of these two groups only TEST has one: decode.h
    found[0xF7] = found[0xF7] & ~7 | WORD
    found[0x178] &= ~7  # EXTRQ and INSERTQ have two, VMREAD none: decode.h
    return found


def rows(found: dict[int, int]) -> tuple[list[bytes], dict[int, list[int]]]:
    """What prefix and ModRM byte make of an opcode: 0 an instruction, a kind + 1, or 255 for nothing.

    The distinct rows of 256 ModRM bytes, and for each legacy opcode that needs some the four of its prefixes. The
    first row is that of opcodes for which any will do.
    """
    numbers = {kind: number for number, kind in enumerate(KINDS)}
    distinct = {bytes(256): 0}
    needed: dict[int, list[int]] = {}
    for at, entry in sorted(found.items()):
        if at >= 4 * 256 or at == 0x10F:
            continue
        made = []
        for prefix in _PREFIXES:
            row = bytearray(256)
            for modrm in range(256):
                row[modrm] = _INVALID
                for more in (b"", b"\x48", b"\x67", b"\x67\x48"):
                    raw = prefix + more + _ESCAPES[at >> 8] + bytes([at & 255, modrm]) + bytes(12)
                    instruction = Decoder(64, raw).decode()
                    if instruction:
                        kind = classify(instruction)
                        row[modrm] = numbers[kind] + 1 if kind else 0
                        break
            if not entry & MODRM:
                row = bytearray([row[0]] * 256)
            made.append(bytes(row))
        if any(any(row) for row in made):
            needed[at] = [distinct.setdefault(row, len(distinct)) for row in made]
    return list(distinct), needed


# What gate_decode_any returns, and what gate_common asks for besides: decode.h.
CALL, BRANCH_8, BRANCH_32, COMMON_KNOWN, COMMON_MODRM, COMMON_MEMORY, COMMON_FIRST = (
    1 << bit for bit in (16, 17, 18, 28, 29, 30, 31)
)
_CALLS = {0xE8, 0xE9, 0xEB}
_MEMORY, _FIRST = {0x8D}, {0xC6, 0xC7}  # LEA; MOV of an immediate, whose row is good for /0 (XABORT and XBEGIN are /7)


def common(found: dict[int, int], needed: dict[int, list[int]]) -> list[int]:
    """The entries of gate_common: length of the immediate and flags, for opcodes that come without prefixes but REX."""
    made = []
    lengths = immediate_lengths()
    for at in range(512):
        entry = found.get(at, 0)
        alone = at not in needed or at in _MEMORY | _FIRST
        fixed = lengths[8 * (entry & 7)] == lengths[8 * (entry & 7) + 4]  # REX.W makes no difference
        if not entry & VALID or entry & REGISTER or not alone or not fixed or at in (0xF6, 0xF7, 0xFF):
            made.append(0)
            continue
        size = lengths[8 * (entry & 7)]
        branch = (BRANCH_8 if size == 1 else BRANCH_32) if entry & RELATIVE else 0
        form = COMMON_MODRM * bool(entry & MODRM) | COMMON_MEMORY * (at in _MEMORY) | COMMON_FIRST * (at in _FIRST)
        made.append(COMMON_KNOWN | size | size << 20 | branch | CALL * (at in _CALLS) | form)
    return made


def modrm_lengths() -> list[int]:
    """Bytes that a ModRM byte stands for, itself included; 128 more where a SIB byte can add a displacement."""
    made = []
    for modrm in range(256):
        mode, rm = modrm >> 6, modrm & 7
        length = 1 + (mode != 3 and rm == 4) + {1: 1, 2: 4}.get(mode, 4 if mode == 0 and rm == 5 else 0)
        made.append(length | 128 * (mode == 0 and rm == 4))
    return made


def immediate_lengths() -> list[int]:
    """Bytes of each type of immediate, by the prefixes: 1 for 66h, 2 for 67h, 4 for REX.W."""
    made = []
    for kind in range(8):
        for state in range(8):
            short, narrow, wide = state & 1, state & 2, state & 4
            word = 4 if wide or not short else 2
            full = 8 if wide else word
            made.append([0, 1, 2, word, full, 4 if narrow else 8, 3, 4][kind])
    return made


# What a prefix leaves of the ones before it, and adds: bits 66h 1, F3h 2, F2h 4, 67h 8, REX.W 16, REX.R 32, any REX 64,
# LOCK 128. REX counts as the last prefix only; of F2h and F3h the last one counts. SDM vol. 2, 2.1.1 and 2.2.1.
def prefixes() -> tuple[list[int], list[int]]:
    """For every byte the bits it keeps and those it sets; both zero: no prefix."""
    keep, add = [0] * 256, [0] * 256
    legacy = 0x8F
    for byte, bits in {0x66: 1, 0xF3: 2, 0xF2: 4, 0x67: 8, 0xF0: 128}.items():
        keep[byte], add[byte] = legacy & ~(6 if bits in (2, 4) else 0), bits
    for byte in (0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65):
        keep[byte] = legacy
    for byte in range(0x40, 0x50):
        keep[byte], add[byte] = legacy, 64 | 16 * (byte >> 3 & 1) | 32 * (byte >> 2 & 1)
    return keep, add


def table(name: str, values: Iterable[int], size: str = "", type_: str = "__u8") -> str:
    """One table as C."""
    text = [str(value) for value in values]
    lines = [",".join(text[at : at + 32]) for at in range(0, len(text), 32)]
    return f"GATE_TABLE({type_}, {name}, {size or len(text)}) = {{\n" + ",\n".join(lines) + "\n};\n"


def identifier(kind: str) -> str:
    """A kind's name in enum gate_kind."""
    return "GATE_KIND_" + kind.upper().replace(" ", "_").replace("-", "_").replace("DRN", "DR_ANY")


def generate() -> str:
    """The file's text."""
    found = opcodes()
    distinct, needed = rows(found)
    sets = [list(four) for four in dict.fromkeys(tuple(four) for four in needed.values())]
    entries = [found.get(at, 0) | ROW * (at in needed) for at in range(256 * TABLES)]
    groups = [sets.index(needed[at]) if at in needed else 0 for at in range(4 * 256)]
    keep, add = prefixes()
    kinds = [*KINDS, "FOREIGN-CODE"]
    every = sum(1 << at for at, kind in enumerate(KINDS) if kind in DEFAULT)
    bits = [every & (1 << 64) - 1, every >> 64]
    assert max(len(distinct), len(sets), len(kinds) + 2) < _INVALID

    def power(count: int) -> int:
        return 1 << (count - 1).bit_length()

    row_room, set_room = power(len(distinct)), power(len(sets))
    flat = [value for row in distinct for value in row]
    parts = [
        "/* SPDX-License-Identifier: MIT\n *\n * Made by scripts/guard_tables.py from iced-x86; decode.h says what the"
        " tables mean. Do not edit.\n */",
        "#ifndef SPLITLOCK_TABLES_H\n#define SPLITLOCK_TABLES_H\n",
        "enum gate_kind {\n"
        + "".join(f"\t{identifier(kind)} = {number},\n" for number, kind in enumerate(kinds))
        + f"\tGATE_KINDS = {len(kinds)},\n}};\n",
        f"#define GATE_KINDS_LOW {bits[0]:#x}ull\t/* looked for by default: all but the frequent ones */",
        f"#define GATE_KINDS_HIGH {bits[1]:#x}ull",
        f"#define GATE_TABLES {TABLES}",
        f"#define GATE_ROWS {row_room}",
        f"#define GATE_ROW_SETS {set_room}\n",
        table("gate_opcodes", entries, "32 * 256"),
        table("gate_groups", groups),
        table("gate_row_sets", [row for four in sets for row in four], "GATE_ROW_SETS * 4"),
        table("gate_rows", flat, "GATE_ROWS * 256"),
        table("gate_common", common(found, needed), type_="__u32"),
        table("gate_modrm", modrm_lengths()),
        table("gate_immediate", immediate_lengths()),
        table("gate_keep", keep),
        table("gate_add", add),
        "#endif",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    (Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET).write_text(generate())
