"""The judge of splitlock.image.scan: the same answers by regular expressions and iced-x86, slowly and without C.

`PlainScan` has the methods of `Scan`, so a plan can be made of it, too.
"""

from __future__ import annotations

import bisect
import itertools
import re
import struct
from array import array
from collections.abc import Iterable, Iterator

from iced_x86 import Decoder, FlowControl, Instruction, Mnemonic, OpKind

from splitlock.image.elf import ET_EXEC, PF_X, PT_LOAD, Elf, Segment
from splitlock.image.functions import function_ranges, handler_starts
from splitlock.image.scan.scan import Locked, Shape
from splitlock.x86.locked import locked_size
from splitlock.x86.patterns import CANDIDATE, LOCK_PREFIXED

OUTSIDE = (1 << 64) - 1
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
_LONG_BRANCH = re.compile(rb"[\xe8\xe9]|\x0f[\x80-\x8f]|\xc7\xf8")
_SHORT_BRANCH = re.compile(rb"[\x70-\x7f\xe0-\xe3\xeb]")
_PREFIXES = b"\x26\x2e\x36\x3e\x64\x65\x66\xf2\xf3\x48"
_REACH = 130  # bytes, of a short branch with its own length
_LEA = re.compile(rb"[\x48\x4c]\x8d[\x05\x0d\x15\x1d\x25\x2d\x35\x3d]")  # lea r64, [rip+disp32]
_IMMEDIATE = re.compile(rb"[\x68\xb8-\xbf]")  # push imm32; mov r32, imm32
_LONGEST_TABLE = 1 << 16


def target(x: Instruction) -> int | None:
    """Where a direct branch goes."""
    branch = x.flow_control in _DIRECT and x.op_count and x.op0_kind == OpKind.NEAR_BRANCH64
    return x.near_branch_target if branch else None


class PlainScan:
    """One image, as splitlock.image.scan.scan.Scan."""

    def __init__(self, elf: Elf) -> None:
        self.elf = elf
        self.data = bytes(elf.data)
        ranges = function_ranges(elf)
        self.starts, self.ends = array("Q", (low for low, _ in ranges)), array("Q", (high for _, high in ranges))
        self._code = [(s.vaddr, self.data[s.offset : s.offset + s.filesz]) for s in elf.executable()]
        self._decoded: dict[int, list[Instruction]] = {}
        self._named: set[int] = set()
        self._tables: set[int] = set()
        self._cases: set[int] = set()

    def ranges(self) -> list[tuple[int, int]]:
        return list(zip(self.starts, self.ends, strict=True))

    def instructions(self, function: int) -> list[Instruction]:
        """Of one function, up to what is none."""
        if function not in self._decoded:
            start, end = self.starts[function], self.ends[function]
            decoder = Decoder(64, self.elf.read(start, end - start), ip=start)
            self._decoded[function] = list(itertools.takewhile(bool, decoder))
        return self._decoded[function]

    def offset(self, address: int) -> int:
        delta: int = next(s.offset - s.vaddr for s in self.elf.executable() if s.vaddr <= address < s.vaddr + s.filesz)
        return delta

    def handler_starts(self) -> set[int]:
        return handler_starts(self.elf)

    def candidates(self) -> tuple[array[int], int]:
        marks, outside = array("B", bytes(len(self.starts) + 1)), 0
        for low, high in self.elf.code_ranges():
            code = self.elf.read(low, high - low)
            for match in CANDIDATE.finditer(code):
                address = low + match.start()
                i = bisect.bisect_right(self.starts, address) - 1
                for hidden in range(i + 1, bisect.bisect_left(self.starts, low + match.end())):
                    marks[hidden + 1] |= 1
                if i >= 0 and address < self.ends[i]:
                    marks[i + 1] |= 1
                elif LOCK_PREFIXED.match(code, match.start()):
                    marks[i + 1] |= 2
                    outside += 1
        return marks, outside

    def locked(self, marks: array[int]) -> Iterator[Locked]:
        for function in range(len(self.starts)):
            if marks[function + 1] & 1:
                found = self.instructions(function)
                reached = found[-1].next_ip if found else self.starts[function]
                locked = [x.ip for x in found if locked_size(x)]
                yield Locked(function, locked, reached if reached < self.ends[function] else None)

    def shape(self, function: int, padding: int, sites: list[int]) -> Shape:
        found, start, end = self.instructions(function), self.starts[function], self.ends[function]
        branches = [(to, x.ip) for x in found if (to := target(x)) is not None]
        leas = (x for x in found if x.mnemonic == Mnemonic.LEA and x.is_ip_rel_memory_operand)
        labels = {x.ip_rel_memory_address for x in leas if start < x.ip_rel_memory_address < end}
        branches += [(label, OUTSIDE) for label in labels]
        addresses = {x.ip: i for i, x in enumerate(found)}
        unreached = set(self.unreached(function))
        return Shape(
            array("I", (x.ip - start for x in found)), branches, found[-1].next_ip if found else start,
            sum(addresses[site] in unreached for site in sites if site in addresses),
            any(x.flow_control == FlowControl.INDIRECT_BRANCH for x in found), bool(labels),
        )  # fmt: skip

    def unreached(self, function: int) -> list[int]:
        found = self.instructions(function)
        index = {x.ip: i for i, x in enumerate(found)}
        reached: set[int] = set()
        todo = [0]
        while todo:
            at = todo.pop()
            while at not in reached and at < len(found):
                reached.add(at)
                to = target(found[at])
                if to in index:
                    todo.append(index[to])
                if found[at].flow_control in _ENDS:
                    break
                at += 1
        return sorted(set(range(len(found))) - reached)

    def name(self) -> None:
        for start, code in self._code:
            limit = max(0, len(code) - 4)
            for match in _LEA.finditer(code, 0, limit):
                at = match.end()
                to = start + at + 4 + int.from_bytes(code[at : at + 4], "little", signed=True)
                self._named.add(to)
                self._tables.add(to)
            if self.elf.type == ET_EXEC:
                for match in _IMMEDIATE.finditer(code, 0, limit):
                    self._named.add(int.from_bytes(code[match.end() : match.end() + 4], "little"))
        self._cases = self._jump_tables()

    def into(self, instructions: Iterable[int], between: Iterable[int]) -> set[int]:
        instructions, between = set(instructions), set(between)
        kept = ((self._named | self._cases) & instructions) | self._pointers(instructions)
        return kept | self._branches(instructions | between)

    def leading_to(self, addresses: Iterable[int]) -> set[int]:
        addresses = set(addresses)
        return self._branches(addresses) | (self._cases & addresses)

    def _branches(self, addresses: set[int]) -> set[int]:
        found = set()
        for start, code in self._code:
            for match in _LONG_BRANCH.finditer(code, 0, max(0, len(code) - 4)):
                at = match.end()
                to = start + at + 4 + int.from_bytes(code[at : at + 4], "little", signed=True)
                if to in addresses and self._may_branch(start + match.start(), to):
                    found.add(to)
            for address in addresses:
                at = address - start
                if 0 <= at < len(code):
                    for match in _SHORT_BRANCH.finditer(code, max(0, at - _REACH), min(at + _REACH, len(code) - 1)):
                        end = match.end() + 1
                        step = int.from_bytes(code[end - 1 : end], "little", signed=True)
                        if end + step == at and self._may_branch(start + match.start(), address):
                            found.add(address)
        return found

    def _begins(self, address: int) -> bool | None:
        """Whether an instruction begins there; None where that is not known."""
        i = bisect.bisect_right(self.starts, address) - 1
        if i < 0 or address >= self.ends[i]:
            return None
        found = self.instructions(i)
        at = bisect.bisect_left(found, address, key=lambda x: x.ip)
        if not found or address >= found[-1].next_ip:
            return None
        return at < len(found) and found[at].ip == address

    def _may_branch(self, source: int, to: int) -> bool:
        begins = self._begins(source)
        while begins is False and self.elf.read(source - 1, 1) in _PREFIXES:
            source -= 1
            begins = self._begins(source)
        if not begins:
            return begins is None
        i = bisect.bisect_right(self.starts, source) - 1
        return not self.starts[i] <= to < self.ends[i]

    def _jump_tables(self) -> set[int]:
        found: set[int] = set()
        low = min((start for start, _ in self._code), default=0)
        high = max((start + len(code) for start, code in self._code), default=0)
        for table, after in itertools.pairwise([*sorted(self._tables), high + (1 << 32)]):
            holder = next(
                (s for s in self.elf.segments if s.type == PT_LOAD and s.vaddr <= table < s.vaddr + s.filesz), None
            )
            if holder is None or (holder.flags & PF_X and table % 4):
                continue
            size = min(after - table, holder.vaddr + holder.filesz - table, _LONGEST_TABLE) & ~3
            at = holder.offset + table - holder.vaddr
            for distance in struct.unpack(f"<{size // 4}i", self.data[at : at + size]):
                if not low <= table + distance < high:
                    break
                found.add(table + distance)
        return found

    def _pointers(self, addresses: set[int]) -> set[int]:
        found: set[int] = set()
        for s in self.elf.segments:
            if s.type == PT_LOAD:
                found |= addresses.intersection(self._words(s, 8).cast("Q"))
                if self.elf.type == ET_EXEC and not s.flags & PF_X:
                    found |= addresses.intersection(self._words(s, 4).cast("I"))
        return found

    def _words(self, segment: Segment, width: int) -> memoryview[int]:
        start = segment.offset + width - 1 & -width
        return memoryview(self.data[start : start + (segment.offset + segment.filesz - start & -width)])
