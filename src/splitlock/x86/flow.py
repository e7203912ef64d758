"""How instructions follow each other, and which registers they change."""

from __future__ import annotations

from iced_x86 import FlowControl, Mnemonic, OpAccess, RegisterExt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Set

    from iced_x86 import Instruction, InstructionInfoFactory

#: rbx, rbp, r12 to r15, by their numbers: a call gives them back (System V ABI)
KEPT = frozenset((3, 5, 12, 13, 14, 15))
_BY_SYSCALL = frozenset((0, 1, 11))  # rax, rcx, r11 (System V ABI, A.2.1)
_WRITES = frozenset((OpAccess.WRITE, OpAccess.COND_WRITE, OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE))
_CALLS = frozenset((FlowControl.CALL, FlowControl.INDIRECT_CALL))
_ENDS = frozenset((FlowControl.RETURN, FlowControl.EXCEPTION, FlowControl.INDIRECT_BRANCH))


def successors(x: Instruction) -> list[int]:
    """Addresses at which execution may go on, as far as the instruction says so itself."""
    flow = x.flow_control
    if flow in _ENDS:
        return []
    if flow == FlowControl.UNCONDITIONAL_BRANCH:
        return [x.near_branch_target]
    if flow == FlowControl.CONDITIONAL_BRANCH:
        return [x.near_branch_target, x.next_ip]
    return [x.next_ip]


def is_call(x: Instruction) -> bool:
    """Whether it calls a function; the kernel is none."""
    return x.flow_control in _CALLS and x.mnemonic != Mnemonic.SYSCALL


def changed(x: Instruction, factory: InstructionInfoFactory) -> Set[int]:
    """Numbers of the general registers of which an instruction that is no call may change a part."""
    if x.mnemonic == Mnemonic.SYSCALL:
        return _BY_SYSCALL
    return {
        RegisterExt.number(RegisterExt.full_register(used.register))
        for used in factory.info(x).used_registers()
        if used.access in _WRITES and RegisterExt.is_gpr(used.register)
    }
