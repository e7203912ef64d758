"""Room for a site where 5 bytes are not to be had: a jump of 2 bytes to an *island* near it, from there the long one.

An island lies in the filler behind a function, or takes the place of instructions that move to the arena as well: those
leave 5 bytes for their own jump and 5 for the island. (e9patch names the second tactic T3, evicting a neighbour.)
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import islice
from typing import NamedTuple

from splitlock.process.runs import JUMP, LEAVES, Run, can_move, cannot_fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from splitlock.process.functions import Function, Text

_SHORT = 2  # bytes of `jmp rel8`
_BACK, _ON = -128, 127  # how far it reaches, from its end
_MOST = 6  # instructions that move for an island
_CHOICES = 32  # looked at for one site


class Islands(NamedTuple):
    """`at`: start of a short run -> where its island is; `moved`: runs that made room; `left`: runs without one."""

    at: dict[int, int]
    moved: list[Run]
    left: list[Run]


class _Choice(NamedTuple):
    """A place for an island: `island`; `victim`, whose instructions make room, or None in filler."""

    island: int
    victim: Run | None

    @property
    def bytes(self) -> range:
        """What is overwritten, but for the first byte of a victim, where it is entered."""
        if self.victim is None:
            return range(self.island, self.island + JUMP)
        return range(self.victim.start + 1, self.victim.start + self.victim.size)


def find_islands(text: Text, runs: list[Run]) -> Islands:
    """For those of `runs` that have no room. All of an image's runs, by address."""
    found = Islands({}, [], [])
    taken = {address for run in runs for address in range(run.start, run.start + run.size)}
    choices = {run.start: list(islice(_choices(text, run, taken), _CHOICES)) for run in runs if run.trap}
    if not choices:
        return found
    instructions: set[int] = set()
    between = {start + 1 for start in choices}
    for choice in (c for of_run in choices.values() for c in of_run):
        for address in choice.bytes:
            whole = choice.victim is not None and choice.victim.function.index.get(address) is not None
            (instructions if whole else between).add(address)
    entered = text.scan.into(instructions, between - instructions)
    for run in runs:
        if not run.trap:
            continue
        for choice in choices[run.start] if run.start + 1 not in entered else ():
            if not entered.intersection(choice.bytes) and not taken.intersection(choice.bytes):
                taken.update(choice.bytes)
                found.at[run.start] = choice.island
                if choice.victim:
                    taken.add(choice.victim.start)
                    found.moved.append(choice.victim)
                break
        else:
            found.left.append(run)
    return found


def _choices(text: Text, run: Run, taken: set[int]) -> Iterator[_Choice]:
    if run.size < _SHORT or run.start + 1 in run.function.targets:
        return
    reach = range(run.start + _SHORT + _BACK, run.start + _SHORT + _ON + 1)
    for filler in text.fillers(reach.start, reach.stop):
        for at in range(filler.start, filler.stop - JUMP + 1, JUMP):
            if at in reach and not taken.intersection(range(at, at + JUMP)):
                yield _Choice(at, None)
    for function in text.between(reach.start - JUMP, reach.stop):
        for victim in _victims(function, taken, reach):
            yield _Choice(victim.start + JUMP, victim)


def _victims(function: Function, taken: set[int], reach: range) -> Iterator[Run]:
    """Instructions of the function that could move and leave room for two jumps, with the island within reach."""
    if function.keeps_labels:
        return
    low = bisect_left(function.offsets, reach.start - JUMP - function.start)
    high = min(bisect_left(function.offsets, reach.stop - function.start) + _MOST, len(function.offsets))
    near = function.instructions.between(low, high) if low < high else []
    for allowed in (cannot_fault, can_move):
        for first, x in enumerate(near):
            if x.ip + JUMP not in reach:
                continue
            for last in range(first, min(first + _MOST, len(near))):
                y = near[last]
                if not allowed(y) or y.ip in taken or (y.ip != x.ip and y.ip in function.targets):
                    break
                if y.next_ip - x.ip >= 2 * JUMP:
                    run = Run(function, low + first, near[first : last + 1])
                    if not taken.intersection(range(run.start, run.start + run.size)):
                        yield run
                    break
                if y.flow_control in LEAVES:
                    break
