"""The functions of an image that hold sites: their instructions and where control can enter them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from iced_x86 import Decoder, Instruction, Mnemonic

from splitlock.image.elf import Elf
from splitlock.image.scan.scan import Locked, Scan
from splitlock.x86.locked import decided, split_size
from splitlock.x86.patterns import LOCK_PREFIXED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator

_MOST_PADDING = 64
_LONGEST = 15  # bytes of an instruction
_MOST_DECODED = 1 << 16  # bytes of a function that is looked at for its neighbours' sake
_BLOCK = 8  # instructions decoded at a time


class Instructions:
    """A function's instructions by position, decoded when asked for, a few at a time, and forgotten again."""

    __slots__ = ("_block", "_code", "_delta", "_first", "_offsets", "_reached", "_start")

    def __init__(self, code: bytes, delta: int, start: int, offsets: array[int], reached: int) -> None:
        self._code, self._delta, self._start = code, delta, start
        self._offsets, self._reached = offsets, reached
        self._first, self._block = 0, list[Instruction]()

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, position: int) -> Instruction:
        if not 0 <= position - self._first < len(self._block):
            self._first = position
            self._block = self.between(position, min(position + _BLOCK, len(self._offsets)))
        return self._block[position - self._first]

    def between(self, first: int, after: int) -> list[Instruction]:
        """Those from position `first` on, without `after`."""
        low = self._start + self._offsets[first]
        high = self._start + self._offsets[after] if after < len(self._offsets) else self._reached
        return list(Decoder(64, self._code[low + self._delta : high + self._delta], ip=low))


class Positions:
    """Where in a function an address's instruction stands."""

    __slots__ = ("_offsets", "_start")

    def __init__(self, start: int, offsets: array[int]) -> None:
        self._start, self._offsets = start, offsets

    def get(self, address: int) -> int | None:
        """The position of the instruction that begins there."""
        at = bisect_left(self._offsets, address - self._start)
        found = at < len(self._offsets) and self._offsets[at] == address - self._start
        return at if found else None


class Function:
    """One function: its instructions, those that are sites, and what is known of its entries.

    `padding`: bytes of filler (nop, int3) between `end` and the next function. `sites`: positions in `instructions` of
    those whose operand is known only at run time. `targets`: near sites, address -> addresses of what may go there;
    none of the function's own stands for something outside. `keeps_labels`: it jumps to computed addresses, and
    computes addresses of its own labels (`goto *`).
    """

    __slots__ = (
        "end", "has_dead_sites", "has_indirect_jump", "index", "instructions", "keeps_labels", "number", "offsets",
        "padding", "reached", "sites", "start", "targets",
    )  # fmt: skip

    def __init__(self, scan: Scan, number: int, padding: int, sites: list[int]) -> None:
        shape = scan.shape(number, padding, sites)
        self.number, self.padding = number, padding
        self.start, self.end, self.reached = scan.starts[number], scan.ends[number], shape.reached
        self.offsets = shape.offsets
        self.instructions = Instructions(scan.data, scan.offset(self.start), self.start, shape.offsets, shape.reached)
        self.index = Positions(self.start, shape.offsets)
        self.sites = [bisect_left(shape.offsets, site - self.start) for site in sites]
        self.has_indirect_jump = shape.indirect
        self.keeps_labels = shape.indirect and shape.labels
        self.has_dead_sites = shape.dead > 0
        self.targets: dict[int, list[int]] = {}
        for target, source in shape.branches:
            self.targets.setdefault(target, []).append(source)


class Text:
    """The code of an image, where it may hold sites.

    `functions`: those with sites. `outside`: bytes of code outside every function that hold what
    could be locked instructions, and `outside_sites`, how many such patterns. `decided`: sites that
    need no watching because their address never splits.
    """

    def __init__(self, elf: Elf) -> None:
        self.elf = elf
        self.scan = Scan(elf)
        self.functions: list[Function] = []
        self.decided = 0
        #: parts of functions behind what is no code
        self.undecoded: list[tuple[int, int]] = []
        marks, self.outside_sites = self.scan.candidates()
        self.outside = sum(self._gap(i) for i, mark in enumerate(marks) if mark & 2)
        for found in self.scan.locked(marks):
            if found.stopped is not None:
                self._stops(found.function, found.stopped)
            sites = self._sites(found)
            if sites:
                self.functions.append(Function(self.scan, found.function, self._padding(found.function), sites))

    def _gap(self, number: int) -> int:
        """Bytes of code before function `number` and behind the one before it."""
        begin = self.scan.ends[number - 1] if number else 0
        end = self.scan.starts[number] if number < len(self.scan.starts) else 1 << 64
        return sum(max(0, min(high, end) - max(low, begin)) for low, high in self.elf.code_ranges())

    def _stops(self, number: int, address: int) -> None:
        """Count what lies in a function behind what is no code."""
        end = self.scan.ends[number]
        self.undecoded.append((address, end))
        self.outside += end - address
        self.outside_sites += len(LOCK_PREFIXED.findall(self.elf.read(address, end - address)))

    def _sites(self, found: Locked) -> list[int]:
        """Addresses of those that could split, as far as their own address does not say that they never do."""
        sites = []
        delta = self.scan.offset(found.addresses[0]) if found.addresses else 0
        for address in found.addresses:
            x = Decoder(64, self.scan.data[address + delta : address + delta + _LONGEST], ip=address).decode()
            size = split_size(x)
            if size and decided(x, size):
                self.decided += 1
            elif size:
                sites.append(address)
        return sites

    def _padding(self, number: int) -> int:
        end = self.scan.ends[number]
        limit = self.scan.starts[number + 1] if number + 1 < len(self.scan.starts) else end
        limit = min(limit, max(s.vaddr + s.filesz for s in self.elf.executable() if s.vaddr < end))
        padding = 0
        if 0 < limit - end <= _MOST_PADDING:
            for x in Decoder(64, self.elf.read(end, limit - end), ip=end):
                if x.mnemonic not in (Mnemonic.NOP, Mnemonic.INT3):
                    break
                padding = x.next_ip - end
        return padding

    def fillers(self, low: int, high: int) -> Iterator[range]:
        """The filler behind the functions that end between two addresses."""
        for number in self._between(low, high):
            end = self.scan.ends[number]
            yield range(end, end + self._padding(number))

    def between(self, low: int, high: int) -> Iterator[Function]:
        """All functions that have code between two addresses; `targets` are known of what lies between them."""
        for number in self._between(low, high):
            if self.scan.ends[number] - self.scan.starts[number] <= _MOST_DECODED:
                function = Function(self.scan, number, self._padding(number), [])
                near = [function.start + at for at in function.offsets if low <= function.start + at < high]
                yield Function(self.scan, number, function.padding, near)

    def _between(self, low: int, high: int) -> range:
        first = max(bisect_right(self.scan.starts, low) - 1, 0)
        return range(first, bisect_left(self.scan.starts, high))

    def leave_out_data(self) -> None:
        """Give up sites that nothing reaches, no branch or jump table elsewhere either: data behind a jump.

        Functions with indirect jumps or exception handlers have more entries than can be told; they are compilers' work
        and hold no data.
        """
        doubtful = [f for f in self.functions if f.has_dead_sites and not f.has_indirect_jump]
        if not doubtful:
            return
        handlers = self.scan.handler_starts()
        doubtful = [f for f in doubtful if f.start not in handlers]
        dead = {f.start: self.scan.unreached(f.number) for f in doubtful}
        alive = self.scan.leading_to({f.start + f.offsets[i] for f in doubtful for i in dead[f.start]})
        for function in doubtful:
            unreached = set(dead[function.start])
            if not any(function.start <= address < function.end for address in alive):
                self.outside += sum(function.instructions[i].len for i in unreached)
                self.outside_sites += len(unreached.intersection(function.sites))
                function.sites = [i for i in function.sites if i not in unreached]
        self.functions = [f for f in self.functions if f.sites]
