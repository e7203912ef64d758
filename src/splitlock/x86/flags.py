"""Status flags: which an instruction needs, and whether they are still wanted afterwards."""

from __future__ import annotations

from iced_x86 import FlowControl, Instruction, Mnemonic, OpKind, Register, RflagsBits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Instructions(Protocol):
        """A function's instructions, by position."""

        def __len__(self) -> int: ...
        def __getitem__(self, position: int, /) -> Instruction: ...

    class Positions(Protocol):
        """Positions of a function's instructions, by address."""

        def get(self, address: int, /) -> int | None: ...


STATUS = RflagsBits.OF | RflagsBits.SF | RflagsBits.ZF | RflagsBits.AF | RflagsBits.CF | RflagsBits.PF
_HORIZON = 48  # instructions looked at before flags count as live

# A shift or rotate by CL leaves all flags alone when CL is 0.
_SHIFTS = {
    Mnemonic.SHL, Mnemonic.SHR, Mnemonic.SAR, Mnemonic.SAL, Mnemonic.ROL, Mnemonic.ROR,
    Mnemonic.RCL, Mnemonic.RCR, Mnemonic.SHLD, Mnemonic.SHRD,
}  # fmt: skip


def flags_needed(instructions: Instructions, at: int, index: Positions) -> bool:
    """Whether the status flags must survive up to `instructions[at]`, as it or its successors read them.

    `index` maps addresses to positions in `instructions` (one function). Whatever cannot be
    followed there counts as needing them, calls and returns too: the psABI lets callers expect no flags,
    but hand-written code may.
    """
    instruction = instructions[at]
    if instruction.rflags_read & STATUS:
        return True
    return _live(instructions, at + 1, index, STATUS & ~_overwritten(instruction), {})


def _overwritten(instruction: Instruction) -> int:
    if instruction.has_rep_prefix or instruction.has_repne_prefix:
        return 0
    if instruction.mnemonic in _SHIFTS:
        last = instruction.op_count - 1
        if instruction.op_kind(last) == OpKind.REGISTER and instruction.op_register(last) == Register.CL:
            return 0
    return instruction.rflags_modified & STATUS


def _live(instructions: Instructions, at: int, index: Positions, wanted: int, seen: dict[int, int]) -> bool:
    # `seen`: the flags already looked for from each position on.
    while wanted:
        if at >= len(instructions) or len(seen) > _HORIZON:
            return True
        if not wanted & ~seen.get(at, 0):
            return False
        seen[at] = seen.get(at, 0) | wanted
        instruction = instructions[at]
        if instruction.rflags_read & wanted:
            return True
        wanted &= ~_overwritten(instruction)
        flow = instruction.flow_control
        if flow == FlowControl.NEXT:
            at += 1
        elif flow in (FlowControl.CONDITIONAL_BRANCH, FlowControl.UNCONDITIONAL_BRANCH):
            target = index.get(instruction.near_branch_target)
            if target is None:
                return bool(wanted)
            if flow == FlowControl.CONDITIONAL_BRANCH and _live(instructions, at + 1, index, wanted, seen):
                return True
            at = target
        else:
            return bool(wanted)
    return False
