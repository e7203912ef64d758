"""Which instructions lock the bus, and what they touch.

A locked instruction is one with a LOCK prefix, or `xchg` with memory, which locks by itself
(SDM vol. 3A, 9.1.2.2). One whose operand is a single byte, or `cmpxchg16b`, whose operand must be
16-byte aligned (#GP otherwise), can never cross a cache line and is no *site*.
"""

from __future__ import annotations

from iced_x86 import Code, Decoder, Instruction, MemorySizeExt, Mnemonic, OpKind, Register, RegisterExt

from splitlock.x86.lines import crosses
from splitlock.x86.patterns import EXCHANGE, LOCK_PREFIXED, PREFIXES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from iced_x86._iced_x86_py import Register as RegisterNumber

_LONGEST = 15  # bytes of an instruction
_BIT_TESTS = {Mnemonic.BTS, Mnemonic.BTR, Mnemonic.BTC}
_EXTENDED = {Code.XCHG_RM8_R8, Code.XCHG_RM16_R16, Code.XCHG_RM32_R32, Code.XCHG_RM64_R64}


def locked_size(instruction: Instruction) -> int:
    """Bytes of the memory operand of a locked instruction; 0 for any other.

    Whatever its size and place, it locks the bus when its memory is not write-back (Linux,
    Documentation/arch/x86/buslock.rst).
    """
    if not instruction.has_lock_prefix and instruction.code not in _EXTENDED:
        return 0
    return MemorySizeExt.size(instruction.memory_size) if instruction.op0_kind == OpKind.MEMORY else 0


def split_size(instruction: Instruction) -> int:
    """Bytes of the memory operand of a locked instruction that could split; 0 for any other."""
    size = locked_size(instruction)
    return size if size > 1 and instruction.mnemonic != Mnemonic.CMPXCHG16B else 0


def bit_offset_register(instruction: Instruction) -> RegisterNumber:
    """The register that moves a bit test's operand by whole words; Register.NONE without one."""
    if instruction.mnemonic in _BIT_TESTS and instruction.op1_kind == OpKind.REGISTER:
        return instruction.op1_register
    return Register.NONE


def static_address(instruction: Instruction) -> int | None:
    """The operand's address in the file when the instruction alone decides it, else None."""
    if segment_register(instruction) or bit_offset_register(instruction):
        return None
    if instruction.is_ip_rel_memory_operand:
        return instruction.ip_rel_memory_address
    if instruction.memory_base == Register.NONE and instruction.memory_index == Register.NONE:
        return instruction.memory_displacement
    return None


def decided(instruction: Instruction, size: int) -> bool:
    """Whether the address in the instruction already says that it never crosses a line."""
    address = static_address(instruction)
    return address is not None and not crosses(address, size)


def alignment_register(instruction: Instruction, size: int) -> RegisterNumber:
    """The base register whose low bits alone decide whether the operand is aligned to its size.

    Register.NONE where displacement or index take part in the decision, a segment base is added,
    or addresses are 32 bits wide. An aligned operand cannot cross.
    """
    base, index = instruction.memory_base, instruction.memory_index
    if base == Register.NONE or RegisterExt.size(base) != 8 or instruction.is_ip_rel_memory_operand:
        return Register.NONE
    if instruction.memory_displacement % size or segment_register(instruction):
        return Register.NONE
    if index != Register.NONE and instruction.memory_index_scale % size:
        return Register.NONE
    return base


def segment_register(instruction: Instruction) -> RegisterNumber:
    """FS or GS when the operand is relative to one, else Register.NONE (0)."""
    segment = instruction.memory_segment
    return segment if segment in (Register.FS, Register.GS) else Register.NONE


def narrow_address(instruction: Instruction) -> bool:
    """Whether the operand's address is computed in 32 bits (67h prefix)."""
    base, index = instruction.memory_base, instruction.memory_index
    return base == Register.EIP or 4 in (RegisterExt.size(base), RegisterExt.size(index))


def operand_address(
    code: bytes,
    ip: int,
    general: list[int],
    fs_base: int,
    gs_base: int,
    mode: int = 64,
    others: Mapping[RegisterNumber, int] | None = None,
) -> int | None:
    """The runtime address of the memory operand of the locked instruction at `ip`, None if it is none.

    `general`: the 16 general registers in encoding order (rax, rcx, rdx, rbx, rsp, ..., r15); `mode`: bits of the code;
    `others`: the bases of segments other than FS and GS, where they are not 0.
    """
    instruction = Decoder(mode, code, ip=ip).decode()
    if not split_size(instruction):
        return None

    def value(register: RegisterNumber) -> int:
        if register == Register.NONE:
            return 0
        return general[RegisterExt.number(register)] & (1 << 8 * RegisterExt.size(register)) - 1

    if instruction.is_ip_rel_memory_operand:
        address = instruction.ip_rel_memory_address
    else:
        address = value(instruction.memory_base) + instruction.memory_displacement
        address += value(instruction.memory_index) * instruction.memory_index_scale
    offset = bit_offset_register(instruction)
    if offset != Register.NONE:
        bits = 8 * split_size(instruction)
        signed = general[RegisterExt.number(offset)] & (1 << bits) - 1
        signed -= signed >> (bits - 1) << bits
        address += signed // bits * (bits // 8)
    if mode != 64 or narrow_address(instruction):
        address &= 0xFFFF if _short_address(instruction) else 0xFFFF_FFFF
    bases = {Register.FS: fs_base, Register.GS: gs_base, **(others or {})}
    address += bases.get(instruction.memory_segment, 0)
    return address & (0xFFFF_FFFF_FFFF_FFFF if mode == 64 else 0xFFFF_FFFF)


def _short_address(instruction: Instruction) -> bool:
    """Whether the operand's address is computed in 16 bits."""
    sizes = {RegisterExt.size(instruction.memory_base), RegisterExt.size(instruction.memory_index)}
    return 2 in sizes or (sizes == {0} and instruction.memory_displ_size == 2)


def likely_locked(code: bytes, only: int | None = None) -> int:
    """About how many locked instructions that could split there are in code whose function bounds are unknown.

    `only`: the one place that is looked at.

    A raw match counts when decoding from most of the bytes before it comes out right at it: x86 code
    falls into step by itself within a few instructions.
    """
    found = 0
    for match in LOCK_PREFIXED.finditer(code):
        at = match.start()
        if only not in (None, at):
            continue
        if split_size(Decoder(64, code[at : at + _LONGEST], ip=at).decode()):
            found += _likely_begins(code, at)
    for match in EXCHANGE.finditer(code):
        if only in (None, match.start()):
            found += any(_likely_begins(code, at) for at in _exchange_starts(code, match.start()))
    return found


def _exchange_starts(code: bytes, opcode: int) -> Iterator[int]:
    """Where an xchg that could split, without a LOCK prefix, may begin: at its opcode, or at a prefix before it."""
    at = opcode
    while True:
        x = Decoder(64, code[at : at + _LONGEST], ip=at).decode()
        if split_size(x) and not x.has_lock_prefix and x.code in _EXTENDED and at + x.len > opcode + 1:
            yield at
        if at == 0 or opcode - at == _LONGEST or code[at - 1] not in PREFIXES:
            return
        at -= 1


def _likely_begins(code: bytes, at: int) -> bool:
    """Whether decoding from most of the bytes some way before comes out right there."""
    starts = range(max(0, at - 40), max(0, at - 32))
    return 2 * sum(_reaches(code, start, at) for start in starts) >= len(starts)


def _reaches(code: bytes, start: int, at: int) -> bool:
    for instruction in Decoder(64, code[start:at], ip=start):
        if instruction.is_invalid:
            return False
        if instruction.next_ip >= at:
            return bool(instruction.next_ip == at)
    return False
