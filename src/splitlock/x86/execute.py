"""What a locked instruction does to its operand, registers and status flags (SDM vol. 2)."""

from __future__ import annotations

from iced_x86 import Instruction, Mnemonic, OpKind, RegisterExt

CF, PF, AF, ZF, SF, OF = 1, 1 << 2, 1 << 4, 1 << 6, 1 << 7, 1 << 11
_ARITHMETIC = CF | PF | AF | ZF | SF | OF
_RAX, _RCX, _RDX, _RBX = range(4)
_LOGIC = {Mnemonic.AND: int.__and__, Mnemonic.OR: int.__or__, Mnemonic.XOR: int.__xor__}
_BITS = {
    Mnemonic.BTS: lambda value, bit: value | bit,
    Mnemonic.BTR: lambda value, bit: value & ~bit,
    Mnemonic.BTC: lambda value, bit: value ^ bit,
}


def execute(
    instruction: Instruction, size: int, old: int, general: list[int], flags: int
) -> tuple[int, dict[int, int], int]:
    """The operand's new value, the registers that change, by number with all their 64 bits, and the flags.

    `instruction`: one with `split_size` of `size` bytes; `old`: the operand, unsigned; `general`: in encoding order.
    Flags that the manual leaves undefined are cleared by AND, OR and XOR, and kept by others.
    """
    what, bits = instruction.mnemonic, 8 * size
    mask = (1 << bits) - 1
    changed: dict[int, int] = {}

    def set_register(number: int, value: int) -> None:
        changed[number] = value if size >= 4 else general[number] & ~mask | value

    def set_flags(result: int, carry: bool, adjust: int, overflow: int) -> int:
        result &= mask
        found = (CF if carry else 0) | (AF if adjust & AF else 0) | (OF if overflow >> (bits - 1) & 1 else 0)
        found |= (0 if result else ZF) | (SF if result >> (bits - 1) else 0)
        return flags & ~_ARITHMETIC | found | (0 if (result & 255).bit_count() & 1 else PF)

    def add(left: int, right: int, carry: int = 0) -> tuple[int, int]:
        result = left + right + carry
        return result & mask, set_flags(
            result, result > mask, left ^ right ^ result, (left ^ result) & (right ^ result)
        )

    def subtract(left: int, right: int, borrow: int = 0) -> tuple[int, int]:
        result = left - right - borrow
        return result & mask, set_flags(result, result < 0, left ^ right ^ result, (left ^ right) & (left ^ result))

    def keeping_carry(done: tuple[int, int]) -> tuple[int, int]:
        return done[0], done[1] & ~CF | flags & CF

    register, source = -1, 0
    if instruction.op_count > 1 and instruction.op1_kind == OpKind.REGISTER:
        register = RegisterExt.number(instruction.op1_register)
        source = general[register] & mask
    elif instruction.op_count > 1:
        source = instruction.immediate(1) & mask
    if what in (Mnemonic.ADD, Mnemonic.XADD, Mnemonic.ADC):
        new, flags = add(old, source, flags & CF if what == Mnemonic.ADC else 0)
    elif what in (Mnemonic.SUB, Mnemonic.SBB):
        new, flags = subtract(old, source, flags & CF if what == Mnemonic.SBB else 0)
    elif what in _LOGIC:
        new = _LOGIC[what](old, source)
        flags = set_flags(new, False, 0, 0)
    elif what == Mnemonic.INC:
        new, flags = keeping_carry(add(old, 1))
    elif what == Mnemonic.DEC:
        new, flags = keeping_carry(subtract(old, 1))
    elif what == Mnemonic.NOT:
        new = ~old & mask
    elif what == Mnemonic.NEG:
        new, flags = subtract(0, old)
    elif what == Mnemonic.XCHG:
        new = source
    elif what == Mnemonic.CMPXCHG:
        difference, flags = subtract(general[_RAX] & mask, old)
        new = old if difference else source
        if difference:
            set_register(_RAX, old)
    elif what == Mnemonic.CMPXCHG8B:
        low = 0xFFFF_FFFF
        wanted = general[_RAX] & low | (general[_RDX] & low) << 32
        if old == wanted:
            new, flags = general[_RBX] & low | (general[_RCX] & low) << 32, flags | ZF
        else:
            new, flags = old, flags & ~ZF
            changed.update({_RAX: old & low, _RDX: old >> 32})
    else:
        bit = 1 << source % bits
        new, flags = _BITS[what](old, bit), flags & ~CF | (CF if old & bit else 0)
    if what in (Mnemonic.XADD, Mnemonic.XCHG):
        set_register(register, old)
    return new, changed, flags
