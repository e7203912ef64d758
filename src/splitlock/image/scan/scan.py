"""An image's functions, its locked instructions, and what leads to an address: each found in one pass over the code."""

from __future__ import annotations

import weakref
from array import array
from ctypes import byref, c_uint64
from itertools import compress, pairwise
from typing import NamedTuple

from splitlock._errors import ImageError
from splitlock.image import functions
from splitlock.image.elf import ET_EXEC, PF_X, PT_LOAD, STT_FUNC, STT_GNU_IFUNC, Elf
from splitlock.image.scan import library as c

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_EVENTS = 4096  # events fetched at a time
_ANYWHERE = c.BRANCHES | c.CASES | c.NAMED | c.POINTERS


class Locked(NamedTuple):
    """What one function holds: addresses of its locked instructions, and where before its end it is no code."""

    function: int
    addresses: list[int]
    stopped: int | None


class Shape(NamedTuple):
    """What a function looks like.

    `offsets`: of its instructions, from its start. `branches`: (target, source) of the ways into the neighbourhood of
    its sites, where the source of a computed address is above all addresses. `reached`: where decoding stopped, its end
    or what is no code. `dead`: how many of its sites no direct branch leads to. `indirect`: it jumps to computed
    addresses; `labels`: it computes addresses of its own.
    """

    offsets: array[int]
    branches: list[tuple[int, int]]
    reached: int
    dead: int
    indirect: bool
    labels: bool


class Scan:
    """One image. `starts` and `ends` are the addresses of its functions, sorted, none over another.

    Functions are what call frame entries (FDE) and sized function symbols say, each cut at the next one's start.
    Raises ImageError for what cannot be scanned, SplitlockError where the C library was not built.
    """

    def __init__(self, elf: Elf) -> None:
        self._elf = elf
        self.data = elf.data if isinstance(elf.data, bytes) else elf.data[:]
        self._fixed = elf.type == ET_EXEC
        loaded = [s for s in elf.segments if s.type == PT_LOAD and s.filesz]
        self._lib = c.library()
        segments = [c.Segment(s.vaddr, s.offset, s.filesz, bool(s.flags & PF_X)) for s in loaded]
        handle = c.opened(self.data, segments)
        if handle is None:
            raise ImageError(f"{len(loaded)} loaded segments, too many or too large to scan")
        self._handle = handle
        weakref.finalize(self, self._lib.scan_close, handle)
        if any(a.vaddr + a.filesz > b.vaddr for a, b in pairwise(sorted(loaded, key=lambda s: s.vaddr))):
            raise ImageError("loaded segments lie over one another")  # which bytes are the code?
        self._code = [(s.vaddr, s.vaddr + s.filesz, s.offset - s.vaddr) for s in elf.executable()]
        self.starts, self.ends = self._functions()
        self._lib.scan_ranges(handle, _place(self.starts), _place(self.ends), len(self.starts))
        self._offsets, self._branches = array("I"), array("Q")
        self._is_named = False

    def ranges(self) -> list[tuple[int, int]]:
        """The functions, as (start, end), by address."""
        return list(zip(self.starts, self.ends, strict=True))

    # -- functions: as splitlock.image.functions, which takes more ways of writing frames ---------

    def _functions(self) -> tuple[array[int], array[int]]:
        bounds, _ = self.frames()
        for value, size in self._elf.sized(STT_FUNC, STT_GNU_IFUNC):
            if value + size < 1 << 64:
                bounds.append(value)
                bounds.append(value + size)
        count = len(bounds) // 2
        starts, ends = _zeroes("Q", count), _zeroes("Q", count)
        made = self._lib.scan_cut(self._handle, _place(bounds), count, _place(starts), _place(ends))
        return starts[:made], ends[:made]

    def frames(self) -> tuple[array[int], array[int]]:
        """Start and end of each frame's function, one after the other; and a byte each: it may have handlers."""
        raw, address = functions.frame_section(self._elf)
        count = self._lib.scan_frames(raw, len(raw), address, None, None, 0)
        if count == c.NOT_HANDLED:
            found = [f for f in functions.frames(self._elf) if 0 <= f[0] <= f[1] < 1 << 64]
            bounds = array("Q", (address for start, end, _ in found for address in (start, end)))
            return bounds, array("B", (handlers for _, _, handlers in found))
        bounds, handlers = _zeroes("Q", 2 * _made(count)), _zeroes("B", count)
        _made(self._lib.scan_frames(raw, len(raw), address, _place(bounds), _place(handlers), count))
        return bounds, handlers

    def handler_starts(self) -> set[int]:
        """Starts of functions whose frame entry names exception handlers (a language-specific data area)."""
        bounds, handlers = self.frames()
        return set(compress(bounds[::2], handlers))

    # -- sites ---------------------------------------------------------------------------------

    def candidates(self) -> tuple[array[int], int]:
        """Where there is what looks like a locked instruction (splitlock.x86.patterns.CANDIDATE).

        A number for each function and, first, for what lies before all: 1 when it holds some, 2 when the gap behind it
        holds some with a LOCK prefix, whose number comes second.
        """
        marks = _zeroes("B", len(self.starts) + 1)
        outside = 0
        for low, high in self._elf.code_ranges():
            outside += self._lib.scan_candidates(self._handle, low, high, _place(marks))
        return marks, outside

    def locked(self, marks: array[int]) -> Iterator[Locked]:
        """Instructions with a LOCK prefix, and `xchg` with memory, of the functions that have a 1 in `marks`."""
        function, address = c_uint64(), c_uint64()
        events = (c.Event * _EVENTS)()
        current = Locked(-1, [], None)
        while function.value < len(self.starts):
            count = self._lib.scan_locked(
                self._handle, _place(marks), byref(function), byref(address), events, _EVENTS
            )  # fmt: skip
            for event in events[:count]:
                if event.range != current.function:
                    yield current
                    current = Locked(event.range, [], None)
                if event.kind == c.STOPPED:
                    current = current._replace(stopped=event.address)
                else:
                    current.addresses.append(event.address)
        yield current

    def shape(self, function: int, padding: int, sites: list[int]) -> Shape:
        """One function, with `padding` bytes of filler behind it; `sites` are addresses of instructions."""
        made = self._function(function, padding, sites)
        if self._make_room(made.instructions, made.branches):
            made = self._function(function, padding, sites)
        pairs = self._branches[: 2 * made.branches].tolist()
        return Shape(
            self._offsets[: made.instructions], list(zip(pairs[::2], pairs[1::2], strict=True)), made.reached,
            made.dead, bool(made.indirect), bool(made.labels),
        )  # fmt: skip

    def _make_room(self, instructions: int, branches: int) -> bool:
        """Whether there was too little for one function."""
        short = instructions > len(self._offsets), 2 * branches > len(self._branches)
        if short[0]:
            self._offsets = _zeroes("I", 2 * instructions)
        if short[1]:
            self._branches = _zeroes("Q", 4 * branches)
        return any(short)

    def unreached(self, function: int) -> list[int]:
        """Positions of instructions that no path from the function's start reaches, as far as direct branches tell."""
        made = self._function(function, 0, [])
        self._make_room(made.instructions, 0)
        flags = _zeroes("B", made.instructions)
        self._function(function, 0, [], flags)
        return [position for position, dead in enumerate(flags) if dead]

    def _function(
        self, function: int, padding: int, sites: list[int], unreached: array[int] | None = None
    ) -> c.Function:
        made, listed = c.Function(), array("Q", sites)
        flags = None if unreached is None else _place(unreached)
        status = self._lib.scan_function(
            self._handle, function, padding, _place(listed), len(listed), _place(self._offsets), len(self._offsets),
            _place(self._branches), len(self._branches) // 2, flags, byref(made),
        )  # fmt: skip
        _made(status)
        return made

    # -- entries -------------------------------------------------------------------------------

    def name(self) -> None:
        """Find all code that code names: to be called before `into` and `leading_to`, once or more."""
        if not self._is_named:
            _made(self._lib.scan_named(self._handle, self._fixed))
        self._is_named = True

    def into(self, instructions: Iterable[int], between: Iterable[int]) -> set[int]:
        """Those addresses that may be entered from elsewhere: by a branch; `instructions` also as kept addresses."""
        addresses = array("Q", instructions)
        what = array("B", bytes([_ANYWHERE]) * len(addresses))
        addresses.extend(between)
        what.frombytes(bytes([c.BRANCHES]) * (len(addresses) - len(what)))
        return self._entered(addresses, what)

    def leading_to(self, addresses: Iterable[int]) -> set[int]:
        """Those addresses that a branch from elsewhere, or a jump table, leads to."""
        listed = array("Q", addresses)
        return self._entered(listed, array("B", bytes([c.BRANCHES | c.CASES]) * len(listed)))

    def _entered(self, addresses: array[int], what: array[int]) -> set[int]:
        found = _zeroes("B", len(addresses))
        count = len(addresses)
        _made(
            self._lib.scan_entered(self._handle, _place(addresses), _place(what), count, self._fixed, _place(found))
        )  # fmt: skip
        return set(compress(addresses, found))

    # -- bytes ---------------------------------------------------------------------------------

    def offset(self, address: int) -> int:
        """What must be added to an address of code, and all in its segment, to have its place in `data`."""
        delta: int = next(delta for low, high, delta in self._code if low <= address < high)
        return delta


def _zeroes(kind: str, count: int) -> array[int]:
    made = array(kind)
    made.frombytes(bytes(count * made.itemsize))
    return made


def _place(numbers: array[int]) -> int:
    """Where they are in memory, as long as nothing is added to them."""
    address: int = numbers.buffer_info()[0]
    return address


def _made(status: int) -> int:
    if status < 0:
        raise MemoryError
    return status
