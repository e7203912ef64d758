"""The functions of an image that hold sites: their instructions and where control can enter them."""

from __future__ import annotations

import bisect

from iced_x86 import Decoder, FlowControl, Instruction, Mnemonic

from splitlock.image.elf import Elf
from splitlock.image.functions import handler_starts
from splitlock.x86.locked import decided, split_size
from splitlock.x86.patterns import CANDIDATE, LOCK_PREFIXED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_DIRECT = {
    FlowControl.CONDITIONAL_BRANCH,
    FlowControl.UNCONDITIONAL_BRANCH,
    FlowControl.CALL,
    FlowControl.XBEGIN_XABORT_XEND,
}
_ENDS = {
    FlowControl.UNCONDITIONAL_BRANCH,
    FlowControl.INDIRECT_BRANCH,
    FlowControl.RETURN,
    FlowControl.EXCEPTION,
}
_MOST_PADDING = 64


class Function:
    """One function: its instructions, those that are sites, and what is known of its entries."""

    def __init__(self, start: int, code: bytes, padding: int, instructions: list[Instruction]) -> None:
        self.start, self.end = start, start + len(code)
        self.code = code
        #: bytes of filler (nop, int3) between `end` and the next function
        self.padding = padding
        self.instructions = instructions
        self.index = {x.ip: i for i, x in enumerate(instructions)}
        locked = [(i, split_size(x)) for i, x in enumerate(instructions)]
        #: positions in `instructions` of the sites whose operand is known only at run time
        self.sites = [i for i, size in locked if size and not decided(instructions[i], size)]
        #: how many sites there are whose address alone says that they never split
        self.decided = sum(1 for i, size in locked if size) - len(self.sites)
        #: where decoding stopped: at `end`, or at what is no code
        self.reached: int = instructions[-1].next_ip if instructions else start
        #: address -> addresses of what may go there; -1 stands for something outside the function
        self.targets: dict[int, list[int]] = {}
        #: jumps to computed addresses, and computes addresses of its own labels (`goto *`)
        self.keeps_labels = False
        self.has_indirect_jump = False

    def find_branches(self) -> None:
        """Fill `targets` with the function's own direct branches, calls and labels."""
        labels = set()
        for x in self.instructions:
            if x.flow_control in _DIRECT:
                self.targets.setdefault(x.near_branch_target, []).append(x.ip)
            elif x.flow_control == FlowControl.INDIRECT_BRANCH:
                self.has_indirect_jump = True
            elif x.mnemonic == Mnemonic.LEA and x.is_ip_rel_memory_operand:
                labels.add(x.ip_rel_memory_address)
        labels = {label for label in labels if self.start < label < self.end}
        self.keeps_labels = self.has_indirect_jump and bool(labels)
        for label in labels:
            self.targets.setdefault(label, []).append(-1)

    def unreached(self) -> set[int]:
        """Positions of instructions that no path from the start reaches, as far as direct branches tell."""
        reached: set[int] = set()
        todo = [0]
        while todo:
            at = todo.pop()
            while at not in reached and at < len(self.instructions):
                reached.add(at)
                x = self.instructions[at]
                if x.flow_control in _DIRECT and x.near_branch_target in self.index:
                    todo.append(self.index[x.near_branch_target])
                if x.flow_control in _ENDS:
                    break
                at += 1
        return set(range(len(self.instructions))) - reached


class Text:
    """The code of an image, decoded where it may hold sites.

    `functions`: those with sites. `outside`: bytes of code outside every function that hold what
    could be locked instructions, and `outside_sites`, how many such patterns. `decided`: sites that
    need no watching because their address never splits.
    """

    def __init__(self, elf: Elf, ranges: list[tuple[int, int]]) -> None:
        self.elf = elf
        self._starts = [start for start, _ in ranges]
        self._ranges = ranges
        self.functions: list[Function] = []
        self._decoded: dict[int, Function] = {}
        self.outside = self.outside_sites = self.decided = 0
        candidates = self._candidates()
        for i in sorted(candidates):
            function = self._decode(i)
            if function.reached < function.end:
                self.outside += function.end - function.reached
                self.outside_sites += len(LOCK_PREFIXED.findall(function.code, function.reached - function.start))
            self.decided += function.decided
            if function.sites:
                function.find_branches()
                self.functions.append(function)

    def _candidates(self) -> set[int]:
        """The numbers of the ranges that hold a candidate; counts those that lie in none."""
        found: set[int] = set()
        gaps: set[int] = set()
        for low, high in self.elf.code_ranges():
            code = self.elf.read(low, high - low)
            for match in CANDIDATE.finditer(code):
                address = low + match.start()
                i = bisect.bisect_right(self._starts, address) - 1
                # A match may begin in one function and hide an instruction at the start of the next.
                found.update(range(i + 1, bisect.bisect_left(self._starts, low + match.end())))
                if i >= 0 and address < self._ranges[i][1]:
                    found.add(i)
                elif LOCK_PREFIXED.match(code, match.start()):
                    self.outside_sites += 1
                    gaps.add(i)
        for i in gaps:
            begin = self._ranges[i][1] if i >= 0 else 0
            end = self._starts[i + 1] if i + 1 < len(self._starts) else 1 << 64
            self.outside += sum(max(0, min(high, end) - max(low, begin)) for low, high in self.elf.code_ranges())
        return found

    def _decode(self, i: int) -> Function:
        start, end = self._ranges[i]
        code = self.elf.read(start, end - start)
        instructions = []
        for x in Decoder(64, code, ip=start):
            if x.is_invalid:  # data, or a prefix we do not know: what follows may be out of step
                break
            instructions.append(x)
        return Function(start, code, self._padding(i), instructions)

    def _padding(self, i: int) -> int:
        end = self._ranges[i][1]
        limit = self._ranges[i + 1][0] if i + 1 < len(self._ranges) else end
        limit = min(limit, max(s.vaddr + s.filesz for s in self.elf.executable() if s.vaddr < end))
        padding = 0
        if 0 < limit - end <= _MOST_PADDING:
            for x in Decoder(64, self.elf.read(end, limit - end), ip=end):
                if x.mnemonic not in (Mnemonic.NOP, Mnemonic.INT3):
                    break
                padding = x.next_ip - end
        return padding

    def leave_out_data(self, leading_to: Callable[[set[int]], set[int]]) -> None:
        """Give up sites that nothing reaches: data behind a jump, within a function.

        `leading_to` tells which addresses branches and jump tables elsewhere lead to. Functions with indirect jumps or
        exception handlers have more entries than can be told; they are compilers' work and hold no data.
        """
        dead = {f.start: f.unreached() for f in self.functions if not f.has_indirect_jump}
        doubtful = [f for f in self.functions if dead.get(f.start, set()).intersection(f.sites)]
        if not doubtful:
            return
        handlers = handler_starts(self.elf)
        doubtful = [f for f in doubtful if f.start not in handlers]
        alive = leading_to({f.instructions[i].ip for f in doubtful for i in dead[f.start]})
        for function in doubtful:
            unreached = dead[function.start]
            if not any(function.start <= address < function.end for address in alive):
                self.outside += sum(function.instructions[i].len for i in unreached)
                self.outside_sites += len(unreached.intersection(function.sites))
                function.sites = [i for i in function.sites if i not in unreached]
        self.functions = [f for f in self.functions if f.sites]

    def begins(self, address: int) -> bool | None:
        """Whether an instruction begins there; None where that is not known: outside functions, behind data."""
        i = bisect.bisect_right(self._starts, address) - 1
        if i < 0 or address >= self._ranges[i][1]:
            return None
        function = self._decoded.get(i)
        if function is None:
            function = self._decoded[i] = self._decode(i)
        return None if address >= function.reached else address in function.index

    def same_function(self, one: int, other: int) -> bool:
        """Whether two addresses lie in one function."""
        i = bisect.bisect_right(self._starts, one) - 1
        return i >= 0 and all(self._starts[i] <= address < self._ranges[i][1] for address in (one, other))
