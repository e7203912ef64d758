"""Which constants may a register hold? What every way through a function brings."""

from __future__ import annotations

from iced_x86 import InstructionInfoFactory, Mnemonic, OpKind, RegisterExt

from splitlock.x86.flow import KEPT, changed, is_call, successors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence, Set

    from iced_x86 import Instruction

    State = dict[int, frozenset[int]]  # by the register's number; one that is not in it may hold anything

_MOST = 16  # constants of a register
_BETWEEN = (Mnemonic.NOP, Mnemonic.INT3)  # what a compiler fills gaps with
_IMMEDIATES = frozenset((OpKind.IMMEDIATE32, OpKind.IMMEDIATE32TO64, OpKind.IMMEDIATE64))


def constants(code: Sequence[Instruction], entered: Collection[int] = ()) -> dict[int, State]:
    """By address: the low 32 bits that registers may hold where the instruction there begins.

    `code`: a function's instructions, in order. What nothing in it leads to, such as a landing pad or a jump table's
    case, is entered with nothing known, and so is what may be `entered` from outside of it.
    """
    by_address = {x.ip: x for x in code}
    factory = InstructionInfoFactory()
    known: dict[int, State] = {at: {} for at in entered if at in by_address}
    lost: dict[int, Set[int]] = {}

    def follow(waiting: list[int]) -> None:
        while waiting:
            at = waiting.pop()
            x = by_address[at]
            if at not in lost:  # asked for once, however often control passes
                lost[at] = changed(x, factory)
            after = _step(x, known[at], lost[at])
            for place in successors(x):
                if place not in by_address:
                    continue
                merged = _merge(known[place], after) if place in known else after
                if merged != known.get(place):
                    known[place] = merged
                    waiting.append(place)

    follow(list(known))
    for first in code:
        if first.ip not in known and first.mnemonic not in _BETWEEN:
            known[first.ip] = {}
            follow([first.ip])
    return known


def _merge(left: State, right: State) -> State:
    both = {number: left[number] | right[number] for number in left.keys() & right.keys()}
    return {number: values for number, values in both.items() if len(values) <= _MOST}


def _step(x: Instruction, before: State, lost: Set[int]) -> State:
    if is_call(x):
        return {number: values for number, values in before.items() if number in KEPT}
    if not lost:
        return before
    after = {number: values for number, values in before.items() if number not in lost}
    made = _value(x, before)
    if made is not None:
        after[RegisterExt.number(x.op0_register)] = made
    return after


def _value(x: Instruction, state: State) -> frozenset[int] | None:
    if x.op0_kind != OpKind.REGISTER or x.op_count != 2 or RegisterExt.size(x.op0_register) < 4:
        return None
    if x.mnemonic == Mnemonic.MOV and x.op1_kind in _IMMEDIATES:
        return frozenset((x.immediate(1) & 0xFFFF_FFFF,))
    if x.op1_kind == OpKind.REGISTER and RegisterExt.is_gpr(x.op1_register):
        if x.mnemonic == Mnemonic.MOV:
            return state.get(RegisterExt.number(x.op1_register))
        if x.mnemonic in (Mnemonic.XOR, Mnemonic.SUB) and x.op1_register == x.op0_register:
            return frozenset((0,))
    return None
