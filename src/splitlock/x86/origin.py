"""Where does a register's value come from, seen from the start of its function? Arguments, and what was loaded by them.

Every way through the function is followed at once; what two ways do not agree on is not known. Arguments: the System V
ABI's, which the kernel follows for functions that it does not take apart.
"""

from __future__ import annotations

from typing import NamedTuple

from iced_x86 import Decoder, FlowControl, Instruction, InstructionInfoFactory, MemorySizeExt, Mnemonic, OpKind

from iced_x86 import Register, RegisterExt  # isort: skip

from splitlock.x86.flow import KEPT, changed, is_call, successors
from splitlock.x86.locked import segment_register

_ARGUMENTS = (7, 6, 2, 1, 8, 9)  # rdi, rsi, rdx, rcx, r8, r9, by their numbers
_LONGEST = 20_000  # instructions of a function, each looked at as often as it changes
_TERMS = 4  # of a sum; more say nothing to anybody


class Argument(NamedTuple):
    """The function's argument, from 0 on."""

    number: int


class Load(NamedTuple):
    """What stood at an address: `size` bytes of it."""

    address: Sum
    size: int


class Sum(NamedTuple):
    """Terms, each with its factor, and a number of bytes."""

    terms: tuple[tuple[Argument | Load, int], ...]
    constant: int


State = dict[int, Sum]  # by the register's number; one that is not in it is not known


def operand(code: bytes, at: int) -> Sum | None:
    """What the address of the memory operand of the instruction at an offset of a function's `code` is made of.

    None where that is not known. `code`: all of the function, from its start on.
    """
    state = _states(code, at)
    if state is None:
        return None
    instruction = Decoder(64, code[at:], ip=at).decode()
    return _address(instruction, state)


def _states(code: bytes, target: int) -> State | None:
    """What is known when the instruction at `target` is reached."""
    entry: State = {number: Sum(((Argument(n), 1),), 0) for n, number in enumerate(_ARGUMENTS)}
    known: dict[int, State] = {0: entry}
    waiting, steps = [0], 0
    factory = InstructionInfoFactory()
    while waiting:
        at = waiting.pop()
        instruction = Decoder(64, code[at:], ip=at).decode()
        steps += 1
        if instruction.is_invalid or steps > _LONGEST or _leads_anywhere(instruction):
            return None
        after = _step(instruction, known[at], factory, first=at < 6)
        for place in successors(instruction):
            if not 0 <= place < len(code):
                continue
            merged = after if place not in known else {k: v for k, v in known[place].items() if after.get(k) == v}
            if place not in known or merged != known[place]:
                known[place] = merged
                waiting.append(place)
    return known.get(target)


def _leads_anywhere(instruction: Instruction) -> bool:
    """A jump by a table. One through a single place of memory is a call at the function's end, like one out of it:
    where indirect jumps are made safe the kernel has no tables (arch/x86/Makefile: -fno-jump-tables)."""
    flow = instruction.flow_control
    if flow == FlowControl.INDIRECT_BRANCH:
        return not instruction.is_ip_rel_memory_operand
    return flow in (FlowControl.INTERRUPT, FlowControl.XBEGIN_XABORT_XEND)


def _step(instruction: Instruction, before: State, factory: InstructionInfoFactory, *, first: bool) -> State:
    after = dict(before)
    if is_call(instruction):
        # The call that a function begins with is the tracer's (__fentry__), which changes nothing.
        return after if first else {number: value for number, value in after.items() if number in KEPT}
    for number in changed(instruction, factory):
        after.pop(number, None)
    made = _value(instruction, before)
    if made is not None and instruction.op0_kind == OpKind.REGISTER:
        after[RegisterExt.number(instruction.op0_register)] = made
    return after


def _value(instruction: Instruction, state: State) -> Sum | None:
    """What the first operand holds afterwards, of the few instructions that addresses are made with."""
    if instruction.op0_kind != OpKind.REGISTER or instruction.op_count < 2:
        return None
    target, what = instruction.op0_register, instruction.mnemonic
    if RegisterExt.size(target) not in (4, 8) or not RegisterExt.is_gpr(target):
        return None
    wide = RegisterExt.size(target) == 8
    if what == Mnemonic.LEA:
        return _address(instruction, state) if wide else None
    if what in (Mnemonic.MOV, Mnemonic.MOVZX):
        return _source(instruction, state, wide)
    if what == Mnemonic.ADD and wide:
        return _plus(state.get(RegisterExt.number(target)), _source(instruction, state, wide), 1)
    if what == Mnemonic.SUB and wide and _immediate(instruction):
        return _plus(state.get(RegisterExt.number(target)), _source(instruction, state, wide), -1)
    return None


def _immediate(instruction: Instruction) -> bool:
    return instruction.op1_kind in (OpKind.IMMEDIATE8TO64, OpKind.IMMEDIATE32TO64)


def _source(instruction: Instruction, state: State, wide: bool) -> Sum | None:
    if _immediate(instruction):
        value = instruction.immediate(1)
        return Sum((), value - (value >> 63 << 64))
    if instruction.op1_kind == OpKind.REGISTER:
        return state.get(RegisterExt.number(instruction.op1_register)) if wide else None
    if instruction.op1_kind == OpKind.MEMORY:
        address = _address(instruction, state)
        size = MemorySizeExt.size(instruction.memory_size)
        return None if address is None else Sum(((Load(address, size), 1),), 0)
    return None


def _address(instruction: Instruction, state: State) -> Sum | None:
    if segment_register(instruction) or instruction.is_ip_rel_memory_operand:
        return None
    displacement = instruction.memory_displacement
    made: Sum | None = Sum((), displacement - (displacement >> 63 << 64))
    parts = ((instruction.memory_base, 1), (instruction.memory_index, instruction.memory_index_scale))
    for register, factor in parts:
        if register != Register.NONE:
            if RegisterExt.size(register) != 8:
                return None
            made = _plus(made, state.get(RegisterExt.number(register)), factor)
    return made


def _plus(left: Sum | None, right: Sum | None, factor: int) -> Sum | None:
    if left is None or right is None or (factor < 0 and right.terms):
        return None
    terms = left.terms + tuple((term, each * factor) for term, each in right.terms)
    return Sum(terms, left.constant + right.constant * factor) if len(terms) <= _TERMS else None
