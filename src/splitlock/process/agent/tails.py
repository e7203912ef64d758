"""What follows a run, to the function's end, where that is short: it is copied behind the run, and no jump leads back.

A lock is a jump there, a test that costs nothing, and a jump back: of these the jumps are what one can measure. What is
copied stays where it was, too, for whoever gets there in another way.
"""

from __future__ import annotations

from iced_x86 import FlowControl, Mnemonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from iced_x86 import Instruction

    from splitlock.process.functions import Function
    from splitlock.process.runs import Run

_MOST = 24  # instructions of a tail
_PLAIN = frozenset((FlowControl.NEXT, FlowControl.CONDITIONAL_BRANCH))
_SHORT_ONLY = frozenset((Mnemonic.LOOP, Mnemonic.LOOPE, Mnemonic.LOOPNE, Mnemonic.JRCXZ, Mnemonic.JECXZ, Mnemonic.JCXZ))


class Tails:
    """Those of an image's runs."""

    def __init__(self, runs: list[Run]) -> None:
        self._moved = {at for run in runs for at in range(run.start, run.start + run.size)}

    def of(self, run: Run) -> list[Instruction]:
        """The instructions from a run's end to a return or a jump; none where it is too long, or leads elsewhere."""
        return self._from(run.function, run.last + 1, _MOST, may_turn=True) or []

    def _from(self, function: Function, position: int, most: int, *, may_turn: bool) -> list[Instruction] | None:
        tail: list[Instruction] = []
        while len(tail) < most and position < len(function.offsets):
            x = function.instructions[position].copy()
            if x.ip in self._moved or x.is_invalid:
                return None
            tail.append(x)
            if x.flow_control == FlowControl.UNCONDITIONAL_BRANCH:
                return tail
            if x.flow_control == FlowControl.RETURN:
                return None if x.op_count else tail  # with arguments that it pops it cannot leave a twin
            if x.flow_control not in _PLAIN or x.mnemonic in _SHORT_ONLY:
                return None
            if x.flow_control == FlowControl.CONDITIONAL_BRANCH:
                rest = self._from(function, position + 1, most - len(tail), may_turn=may_turn)
                if rest is None and may_turn:
                    rest = self._past(function, x, most - len(tail))
                return None if rest is None else [*tail, *rest]
            position += 1
        return None

    def _past(self, function: Function, branch: Instruction, most: int) -> list[Instruction] | None:
        """Over a call, say: the branch becomes one that is not taken where it was, and its target follows."""
        position = function.index.get(branch.near_branch_target)
        if position is None:
            return None
        rest = self._from(function, position, most, may_turn=False)
        if rest is not None:
            branch.negate_condition_code()
            branch.as_near_branch()
            branch.near_branch64 = branch.next_ip
        return rest
