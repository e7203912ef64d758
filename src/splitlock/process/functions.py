"""The functions of an image that hold sites: their instructions and where control can enter them."""

from __future__ import annotations

import bisect
import re
import struct

from iced_x86 import Decoder, FlowControl, Instruction, Mnemonic, OpKind

from splitlock.image.elf import ET_EXEC, PT_LOAD, Elf
from splitlock.x86.locked import decided, split_size
from splitlock.x86.patterns import CANDIDATE, LOCK_PREFIXED

_BRANCHES = {FlowControl.CONDITIONAL_BRANCH, FlowControl.UNCONDITIONAL_BRANCH}
_IMMEDIATES = {OpKind.IMMEDIATE32, OpKind.IMMEDIATE32TO64, OpKind.IMMEDIATE64}
_LONG_BRANCH = re.compile(rb"[\xe8\xe9]|\x0f[\x80-\x8f]|\xc7\xf8")
_SHORT_BRANCH = re.compile(rb"[\x70-\x7f\xe0-\xe3\xeb]")
_MOST_PADDING = 64
_TABLE_REACH = 1 << 18  # bytes of a jump table looked at: 65,536 entries


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
        #: address -> addresses of the branches that go there; -1 stands for one that is not known exactly
        self.targets: dict[int, list[int]] = {}
        #: data addresses the code computes, which may be jump tables
        self.tables: set[int] = set()
        self.has_indirect_jump = False

    def find_entries(self, absolute: bool) -> None:
        """Fill `targets`, `tables`, `has_indirect_jump`; `absolute` when code may hold addresses as constants."""
        for x in self.instructions:
            flow = x.flow_control
            if flow in _BRANCHES:
                self.targets.setdefault(x.near_branch_target, []).append(x.ip)
            elif flow == FlowControl.INDIRECT_BRANCH:
                self.has_indirect_jump = True
            elif x.mnemonic == Mnemonic.LEA and x.is_ip_rel_memory_operand:
                self._address(x.ip_rel_memory_address)
            elif absolute and x.op_count == 2 and x.op1_kind in _IMMEDIATES:
                self._address(x.immediate(1))

    def _address(self, address: int) -> None:
        if self.start < address < self.end:
            self.targets.setdefault(address, []).append(-1)
        else:
            self.tables.add(address)


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
        self._boundaries: dict[int, set[int]] = {}
        self.outside = self.outside_sites = self.decided = 0
        candidates = self._candidates()
        for i in sorted(candidates):
            function = self._decode(i)
            reached = function.instructions[-1].next_ip if function.instructions else function.start
            if reached < function.end:
                self.outside += function.end - reached
                self.outside_sites += len(LOCK_PREFIXED.findall(function.code, reached - function.start))
            self.decided += function.decided
            if function.sites:
                function.find_entries(elf.type == ET_EXEC)
                self.functions.append(function)

    def _candidates(self) -> set[int]:
        """The numbers of the ranges that hold a candidate; counts those that lie in none."""
        found: set[int] = set()
        gaps: set[int] = set()
        for segment in self.elf.executable():
            code = self.elf.data[segment.offset : segment.offset + segment.filesz]
            for match in CANDIDATE.finditer(code):
                address = segment.vaddr + match.start()
                i = bisect.bisect_right(self._starts, address) - 1
                # A match may begin in one function and hide an instruction at the start of the next.
                found.update(range(i + 1, bisect.bisect_left(self._starts, segment.vaddr + match.end())))
                if i >= 0 and address < self._ranges[i][1]:
                    found.add(i)
                elif LOCK_PREFIXED.match(code, match.start()):
                    self.outside_sites += 1
                    gaps.add(i)
        for i in gaps:
            low = self._ranges[i][1] if i >= 0 else min(s.vaddr for s in self.elf.executable())
            holder = next((s for s in self.elf.executable() if s.vaddr <= low <= s.vaddr + s.filesz), None)
            high = holder.vaddr + holder.filesz if holder else low
            if i + 1 < len(self._starts):
                high = min(high, self._starts[i + 1])
            self.outside += max(0, high - low)
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
        padding = 0
        if 0 < limit - end <= _MOST_PADDING:
            for x in Decoder(64, self.elf.read(end, limit - end), ip=end):
                if x.mnemonic not in (Mnemonic.NOP, Mnemonic.INT3):
                    break
                padding = x.next_ip - end
        return padding

    def indirect_target(self, function: Function, address: int) -> bool:
        """Whether a jump table that `function` uses may name `address`.

        Tables of 32-bit offsets hold `address - table` (what compilers write for switch); every
        table address the function computes is searched. Superset: a chance match counts as one.
        """
        for table in function.tables:
            for s in self.elf.segments:
                if s.type == PT_LOAD and s.vaddr <= table < s.vaddr + s.filesz:
                    offset = s.offset + table - s.vaddr
                    end = min(offset + _TABLE_REACH, s.offset + s.filesz)
                    delta = address - table
                    if -(1 << 31) <= delta < 1 << 31 and self.elf.data.find(struct.pack("<i", delta), offset, end) >= 0:
                        return True
        return False

    def entered_from_elsewhere(self, addresses: set[int]) -> set[int]:
        """Those of `addresses` that something outside their function may jump to.

        Looked at: every 32-bit branch in the image and every 8-bit branch in reach, found as raw bytes
        and kept unless decoding shows that none begins there, and every aligned pointer (tables of
        absolute addresses, relocations).
        """
        if not addresses:
            return set()
        found: set[int] = set()
        for segment in self.elf.executable():
            code = self.elf.data[segment.offset : segment.offset + segment.filesz]
            limit = len(code) - 4
            for match in _LONG_BRANCH.finditer(code):
                at = match.end()
                if at <= limit:
                    target = segment.vaddr + at + 4 + int.from_bytes(code[at : at + 4], "little", signed=True)
                    if target in addresses and self._real_branch(segment.vaddr + match.start(), target):
                        found.add(target)
            for address in addresses:
                at = address - segment.vaddr
                if 0 <= at < len(code):
                    low = max(0, at - 130)
                    for match in _SHORT_BRANCH.finditer(code, low, min(at + 130, len(code) - 1)):
                        end = match.end() + 1
                        source = segment.vaddr + match.start()
                        step = int.from_bytes(code[end - 1 : end], "little", signed=True)
                        if end + step == at and self._real_branch(source, address):
                            found.add(address)
        for s in self.elf.segments:
            if s.type == PT_LOAD:
                start = s.offset + 7 & ~7
                words = memoryview(self.elf.data[start : start + (s.offset + s.filesz - start & ~7)]).cast("Q")
                found |= addresses.intersection(words)
        return found

    def _real_branch(self, source: int, target: int) -> bool:
        """Whether a raw match at `source` may be a branch that `targets` does not know of yet."""
        i = bisect.bisect_right(self._starts, source) - 1
        if i < 0 or source >= self._ranges[i][1]:
            return True
        boundaries = self._boundaries.get(i)
        if boundaries is None:
            function = self._decode(i)
            boundaries = self._boundaries[i] = set(function.index)
            if function.instructions and function.instructions[-1].next_ip < function.end:
                boundaries.update(range(function.instructions[-1].next_ip, function.end))
        inside = self._ranges[i][0] <= target < self._ranges[i][1]
        return source in boundaries and not inside
