"""Which instructions move to a trampoline: each site with the neighbours that make room for a jump.

A jump takes 5 bytes. A site shorter than that moves together with instructions before or after it
(a *run*), provided control cannot enter the run but at its start. Instructions that cannot fault
are taken first: a fault in a moved instruction costs the tracer a correction.
"""

from __future__ import annotations

from bisect import bisect_right

from iced_x86 import FlowControl, Instruction, Mnemonic, OpKind

from splitlock.process.functions import Function, Text
from splitlock.x86.locked import split_size

JUMP = 5  # bytes of `jmp rel32`
_MOST = 6  # instructions on either side that may move
_OUTSIDE = -1  # source of what enters a function from elsewhere
_STAYS_PUT, _MOVABLE, _FAULTLESS = range(3)
_STAYS = {
    FlowControl.CALL,  # its return address would lie in the trampoline: no unwinding through it
    FlowControl.INDIRECT_CALL,
    FlowControl.INTERRUPT,
    FlowControl.EXCEPTION,
    FlowControl.XBEGIN_XABORT_XEND,
}
_SHORT_ONLY = {
    Mnemonic.LOOP, Mnemonic.LOOPE, Mnemonic.LOOPNE, Mnemonic.JRCXZ, Mnemonic.JECXZ, Mnemonic.JCXZ,
    Mnemonic.SYSCALL, Mnemonic.SYSENTER,
}  # fmt: skip
LEAVES = {FlowControl.UNCONDITIONAL_BRANCH, FlowControl.RETURN, FlowControl.INDIRECT_BRANCH}
_BRANCHES = {FlowControl.CONDITIONAL_BRANCH, FlowControl.UNCONDITIONAL_BRANCH}
_NO_ACCESS = {Mnemonic.LEA, Mnemonic.NOP}


class Run:
    """Instructions `first`..`last` of a function, and bytes of `padding` after them.

    `trap`: no room was found; the first byte becomes int3 and the run is the site alone.
    """

    __slots__ = ("end", "first", "function", "instructions", "last", "size", "start", "trap")

    def __init__(
        self, function: Function, first: int, instructions: list[Instruction], padding: int = 0, trap: bool = False
    ) -> None:
        self.function = function
        self.instructions = instructions
        self.first, self.last = first, first + len(instructions) - 1
        self.start = self.instructions[0].ip
        self.end = self.instructions[-1].next_ip
        self.size = self.end - self.start + padding
        self.trap = trap

    def entries(self) -> set[int]:
        """Addresses past the start where code could sensibly be entered: instructions, or behind LOCK."""
        if self.trap:
            return set()
        return {x.ip for x in self.instructions[1:]} | {x.ip + 1 for x in self.instructions if x.has_lock_prefix}

    def between(self) -> set[int]:
        """Addresses past the start that are no instructions: behind LOCK, and in the filler."""
        if self.trap:
            return set()
        return self.entries() - {x.ip for x in self.instructions} | set(range(self.end, self.start + self.size))


def choose_runs(text: Text) -> list[Run]:
    """The runs for every site of an image, by address.

    A run is chosen by the branches of its own function, and again where control turns out to come from elsewhere.
    Where from is looked for as raw bytes over the whole image, so that nothing depends on knowing all functions; a
    chance match only costs a site a better run. Not seen: a table of distances from a label that is not the table
    itself (hand-written code), and exception landing pads, which no instruction falls through to.
    """
    if not text.functions:
        return []
    text.scan.name()
    text.leave_out_data()
    starts = [f.start for f in text.functions]
    chosen: list[list[Run]] = [[] for _ in starts]
    unsettled = set(range(len(starts)))
    known: set[int] = set()
    while unsettled:
        for number in unsettled:
            chosen[number] = _of_function(text.functions[number])
        runs = [run for number in unsettled for run in chosen[number]]
        between = {address for run in runs for address in run.between()} - known
        instructions = {address for run in runs for address in run.entries()} - between - known
        known |= instructions | between
        unsettled = set()
        for address in text.scan.into(instructions, between):
            number = bisect_right(starts, address) - 1
            text.functions[number].targets.setdefault(address, []).append(_OUTSIDE)
            unsettled.add(number)
    return [run for of_function in chosen for run in of_function]


def _of_function(function: Function) -> list[Run]:
    runs: list[Run] = []
    for site in function.sites:
        if runs and site <= runs[-1].last:
            continue
        after = runs[-1].last + 1 if runs else 0
        free = runs[-1].start + runs[-1].size if runs else 0
        run = _around(function, site, after)
        if run is None or run.start < free:
            run = Run(function, site, function.instructions.between(site, site + 1), trap=True)
        runs.append(run)
    return runs


def _around(function: Function, site: int, after: int) -> Run | None:
    alone = _run(function, site, function.instructions.between(site, site + 1))
    if alone is not None and _closed(alone):
        return alone
    low = max(after, site - _MOST)
    near = function.instructions.between(low, min(site + _MOST + 1, len(function.offsets)))
    ease = [_ease(x) for x in near]
    at = site - low
    for least in (_FAULTLESS, _MOVABLE):
        for extra in range(1, _MOST + 1):
            for first in range(at, at - extra - 1, -1):
                after_last = first + extra + 1
                if first < 0 or after_last > len(near) or min(ease[first:after_last]) < least:
                    continue
                run = _run(function, low + first, near[first:after_last])
                if run is not None and _closed(run):
                    return run
    return None


def _run(function: Function, first: int, moved: list[Instruction]) -> Run | None:
    if any(x.flow_control in LEAVES for x in moved[:-1]):
        return None
    size = moved[-1].next_ip - moved[0].ip
    if size >= JUMP:
        return Run(function, first, moved)
    if moved[-1].flow_control in LEAVES and moved[-1].next_ip == function.end and JUMP - size <= function.padding:
        return Run(function, first, moved, JUMP - size)
    return None


def _closed(run: Run) -> bool:
    """Whether control enters the run at its start only, as far as branches can tell.

    Branches of the run itself may stay within it, also to right behind a LOCK prefix, as in glibc.
    """
    targets = run.function.targets
    if targets:
        entries = run.entries()
        for address in range(run.start + 1, run.start + run.size):
            sources = targets.get(address, ())
            if sources and (address not in entries or any(not run.start <= s < run.end for s in sources)):
                return False
    # Where labels are kept as values, any instruction may be one's. The tracer can set that right at an
    # int3 behind the jump, but not within it.
    return not run.function.keeps_labels or all(x.ip >= run.start + JUMP for x in run.instructions[1:])


def _ease(x: Instruction) -> int:
    """How easily an instruction moves along with a site: it stays, it can, or it can and never faults there."""
    if split_size(x) or cannot_fault(x):
        return _FAULTLESS
    return _MOVABLE if can_move(x) else _STAYS_PUT


def can_move(x: Instruction) -> bool:
    """Whether an instruction may execute elsewhere than where it was."""
    return x.flow_control not in _STAYS and x.mnemonic not in _SHORT_ONLY


def cannot_fault(x: Instruction) -> bool:
    """The same, and no fault of it would have to be corrected."""
    if not can_move(x):
        return False
    if x.flow_control in _BRANCHES or x.flow_control == FlowControl.RETURN or x.mnemonic in _NO_ACCESS:
        return True
    if x.mnemonic in (Mnemonic.DIV, Mnemonic.IDIV) or x.is_stack_instruction:
        return False
    return all(x.op_kind(i) != OpKind.MEMORY for i in range(x.op_count))
