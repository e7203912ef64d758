"""Which instructions move to a trampoline: each site with the neighbours that make room for a jump.

A jump takes 5 bytes. A site shorter than that moves together with instructions before or after it
(a *run*), provided control cannot enter the run but at its start. Instructions that cannot fault
are taken first: a fault in a moved instruction costs the tracer a correction.
"""

from __future__ import annotations

from iced_x86 import FlowControl, Instruction, Mnemonic, OpKind

from splitlock.process.entries import Entries
from splitlock.process.functions import Function, Text
from splitlock.x86.locked import split_size

JUMP = 5  # bytes of `jmp rel32`
_MOST = 6  # instructions on either side that may move
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
_LEAVES = {FlowControl.UNCONDITIONAL_BRANCH, FlowControl.RETURN, FlowControl.INDIRECT_BRANCH}
_BRANCHES = {FlowControl.CONDITIONAL_BRANCH, FlowControl.UNCONDITIONAL_BRANCH}
_NO_ACCESS = {Mnemonic.LEA, Mnemonic.NOP}


class Run:
    """Instructions `first`..`last` of a function, and bytes of `padding` after them.

    `trap`: no room was found; the first byte becomes int3 and the run is the site alone.
    """

    def __init__(self, function: Function, first: int, last: int, padding: int = 0, trap: bool = False) -> None:
        self.function = function
        self.instructions: list[Instruction] = function.instructions[first : last + 1]
        self.first, self.last = first, last
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
    """The runs for every site of an image, by address."""
    entries = Entries(text.elf, text)
    text.leave_out_data(entries.leading_to)
    chosen = {f.start: _of_function(f) for f in text.functions}
    known: set[int] = set()
    while True:
        runs = [run for of_function in chosen.values() for run in of_function]
        between = {address for run in runs for address in run.between()}
        instructions = {address for run in runs for address in run.entries()} - between
        entered = entries.into(instructions - known, between - known)
        known |= instructions | between
        if not entered:
            break
        for f in text.functions:
            hit = [a for a in entered if f.start <= a < f.end + f.padding]
            for address in hit:
                f.targets.setdefault(address, []).append(-1)
            if hit:
                chosen[f.start] = _of_function(f)
    return [run for f in text.functions for run in chosen[f.start]]


def _of_function(function: Function) -> list[Run]:
    runs: list[Run] = []
    for site in function.sites:
        if runs and site <= runs[-1].last:
            continue
        after = runs[-1].last + 1 if runs else 0
        free = runs[-1].start + runs[-1].size if runs else 0
        run = _around(function, site, after)
        if run is None or run.start < free:
            run = Run(function, site, site, trap=True)
        runs.append(run)
    return runs


def _around(function: Function, site: int, after: int) -> Run | None:
    for allowed in (_cannot_fault, _can_move):
        for extra in range(_MOST + 1):
            for before in range(extra + 1):
                first, last = site - before, site + extra - before
                if first < after or last >= len(function.instructions):
                    continue
                run = _run(function, first, last)
                if run is not None and all(
                    allowed(x) for x in run.instructions if not split_size(x)
                ) and _closed(run):  # fmt: skip
                    return run
    return None


def _run(function: Function, first: int, last: int) -> Run | None:
    moved = function.instructions[first : last + 1]
    if any(x.flow_control in _LEAVES for x in moved[:-1]):
        return None
    size = moved[-1].next_ip - moved[0].ip
    if size >= JUMP:
        return Run(function, first, last)
    if moved[-1].flow_control in _LEAVES and moved[-1].next_ip == function.end and JUMP - size <= function.padding:
        return Run(function, first, last, JUMP - size)
    return None


def _closed(run: Run) -> bool:
    """Whether control enters the run at its start only, as far as branches can tell.

    Branches of the run itself may stay within it, also to right behind a LOCK prefix, as in glibc.
    """
    function = run.function
    entries = run.entries()
    for address in range(run.start + 1, run.start + run.size):
        sources = function.targets.get(address)
        if sources and (address not in entries or any(not run.start <= s < run.end for s in sources)):
            return False
    # Where labels are kept as values, any instruction may be one's. The tracer can set that right at an
    # int3 behind the jump, but not within it.
    return not function.keeps_labels or all(x.ip >= run.start + JUMP for x in run.instructions[1:])


def _can_move(x: Instruction) -> bool:
    return x.flow_control not in _STAYS and x.mnemonic not in _SHORT_ONLY


def _cannot_fault(x: Instruction) -> bool:
    if not _can_move(x):
        return False
    if x.flow_control in _BRANCHES or x.flow_control == FlowControl.RETURN or x.mnemonic in _NO_ACCESS:
        return True
    if x.mnemonic in (Mnemonic.DIV, Mnemonic.IDIV) or x.is_stack_instruction:
        return False
    return all(x.op_kind(i) != OpKind.MEMORY for i in range(x.op_count))
