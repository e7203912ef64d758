"""Which exports to remove so that given modules fail and the fewest others do.

A set cover with shared costs (red-blue set cover): each export covers the wanted modules that fail without it
and costs the others that do. Solved exactly, by branch and bound over sets that are the bits of integers:

- exports with the same effect are one choice; the cheapest choice for each wanted module gives a first bound. A
  choice that costs more than this by itself is out, as is one that another matches or betters in both respects;
- branching takes the wanted module with the fewest choices left, its cheapest choice first;
- a branch ends when its cost and the dearest that is left to cover exceed the best known; at equal cost, when its
  symbols do, with one more for each wanted module left, of those that share no choice.

Cost first, then the number of symbols. Among the sets that are equal in both, the one whose least preferred symbol (see
`_objections`) is preferred most, then its next one, and so on: found by asking the same search whether a set exists
among the most preferred choices only, for how many of them by bisection.

An export that several modules provide goes when all of these fail; this makes no better sets, as to remove it brings
down no more than to remove what makes them fail. Costs are those of the whole set, with such effects.
"""

from __future__ import annotations

from typing import NamedTuple

from splitlock._errors import SplitlockError
from splitlock.modules.exports import VMLINUX
from splitlock.modules.paravirt import CR4_WRITER
from splitlock.modules.scan import SLD_AWARE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from splitlock.modules.exports import Kernel

_STEPS = 20_000  # some seconds; 20 of Debian's modules, taken at random, take up to 1,200
_STEPS_TO_PREFER = 2_000  # to choose among sets as good; 10 take up to 260, 20 often more


class Cut(NamedTuple):
    """What to remove."""

    symbols: list[str]  #: sorted
    alternatives: dict[str, list[str]]  #: for each the other symbols of the same effect, the preferred first
    optimal: bool  #: the search went to its end: no set costs less, and none that costs the same has fewer symbols


class _Choice(NamedTuple):
    """Symbols of one effect."""

    cover: int  #: wanted modules that fail, as bits
    cost: int  #: other modules that fail, as bits
    names: list[str]  #: the preferred first
    objections: tuple[bool, int, bool, bool, str]  #: to the first of them: `_objections`


def cut(kernel: Kernel, wanted: Iterable[str]) -> Cut:
    """The exports to remove so that the `wanted` modules fail. Raises SplitlockError where none does that."""
    targets = sorted(set(wanted))
    for name in targets:
        if name in kernel.unresolved:
            raise SplitlockError(f"--break {name}: does not load anyhow: it needs what nobody exports; leave it out", 2)
        if not kernel.modules[name].imports:
            raise SplitlockError(f"--break {name}: imports nothing, so that no export keeps it from loading", 2)
    search = _Search(kernel, targets)
    chosen = search.run()
    symbols = sorted(choice.names[0] for choice in chosen)
    alternatives = {choice.names[0]: choice.names[1:] for choice in chosen}
    return Cut(symbols, alternatives, search.optimal)


def _objections(kernel: Kernel, targets: list[str], symbol: str) -> tuple[bool, int, bool, bool, str]:
    """What is to be said against removing a symbol, where others would do as well; the least is preferred.

    Another module's export (the kernel can stop exporting its own); importers that are not to be broken; not being
    one of the two symbols that only hypervisors need; a leading underscore. Then its name decides.
    """
    return (
        VMLINUX not in kernel.exporters[symbol],
        len(set(kernel.users[symbol]).difference(targets)),
        symbol not in (CR4_WRITER, SLD_AWARE),
        symbol.startswith("_"),
        symbol,
    )


class _Search:
    def __init__(self, kernel: Kernel, targets: list[str]) -> None:
        self._kernel = kernel
        self._bits = {name: 1 << i for i, name in enumerate((*targets, *(kernel.modules.keys() - set(targets))))}
        self._all = (1 << len(targets)) - 1
        self._unresolved = sum(self._bits[name] for name in kernel.unresolved)
        self._shared = any(len(exporters) > 1 for exporters in kernel.exporters.values())
        self.steps = 0
        self.optimal = False  #: whether the search went to its end
        choices = self._choices(targets)
        first = [min((c for c in choices if c.cover >> i & 1), key=_dearness) for i in range(len(targets))]
        self._best = list({choice.names[0]: choice for choice in first}.values())
        self._score = self._value(self._best)
        self._open = [c for c in choices if c.cost.bit_count() <= self._score[0]]

    def _choices(self, targets: list[str]) -> list[_Choice]:
        """Each effect that removing one symbol can have on a target."""
        kernel = self._kernel
        above, waiting = set(targets), list(targets)
        symbols: set[str] = set()
        while waiting:
            imports = kernel.modules[waiting.pop()].imports
            symbols |= imports
            for symbol in imports:
                for exporter in kernel.exporters.get(symbol, ()):
                    if exporter in kernel.modules and exporter not in above:
                        above.add(exporter)
                        waiting.append(exporter)
        dependents = {} if self._shared else self._dependents()
        effects: dict[int, list[str]] = {}
        by_users: dict[tuple[str, ...], int] = {}  # many symbols have the same users
        for symbol in symbols:
            users = tuple(kernel.users[symbol])
            effect = by_users.get(users)
            if effect is None:
                effect = by_users[users] = self._effect(symbol, users, dependents)
            if effect & self._all:
                effects.setdefault(effect, []).append(symbol)
        found = []
        for effect, names in effects.items():
            ranked = sorted(_objections(kernel, targets, name) for name in names)
            found.append(_Choice(effect & self._all, effect & ~self._all, [each[-1] for each in ranked], ranked[0]))
        return found

    def _effect(self, symbol: str, users: tuple[str, ...], dependents: dict[str, int]) -> int:
        """The modules that no longer load without one symbol."""
        if not dependents:
            return sum(self._bits[name] for name in self._kernel.without([symbol]))
        effect = 0
        for user in users:
            effect |= dependents[user]
        return effect & ~self._unresolved

    def _dependents(self) -> dict[str, int]:
        """Each module with those that fail when it does, where no symbol has two exporters."""
        kernel = self._kernel
        users = {
            name: sorted({user for symbol in module.exports for user in kernel.users.get(symbol, ())})
            for name, module in kernel.modules.items()
        }
        found = dict(self._bits)
        changed = True
        while changed:  # as often as modules are stacked; circles come to rest too
            changed = False
            for name, above in users.items():
                before = effect = found[name]
                for user in above:
                    effect |= found[user]
                if effect != before:
                    found[name] = effect
                    changed = True
        return found

    def _value(self, chosen: list[_Choice]) -> tuple[int, int]:
        """Modules lost that were not wanted, symbols."""
        cost = 0
        for choice in chosen:
            cost |= choice.cost
        if self._shared:  # together they can take more along than each by itself
            lost = self._kernel.without([choice.names[0] for choice in chosen])
            cost = sum(self._bits[name] for name in lost) & ~self._all
        return cost.bit_count(), len(chosen)

    def run(self) -> list[_Choice]:
        """The best set of choices."""
        self._explore(_undominated(self._open), [])
        self.optimal = self.steps <= _STEPS
        if self.optimal:
            self._prefer()
        return self._best

    def _prefer(self) -> None:
        """Make the best the one of all as good whose least preferred choice is preferred most, and so on."""
        self.steps = 0
        free = sorted((c for c in self._open if c.cost.bit_count() <= self._score[0]), key=lambda c: c.objections)
        fixed: list[_Choice] = []
        while len(fixed) < self._score[1]:
            low, high = 0, len(free)  # with the first `high` there is such a set
            while low < high:
                middle = (low + high) // 2
                if self._explore(free[:middle], fixed, any_will_do=True):
                    high = middle
                else:
                    low = middle + 1
            if self.steps > _STEPS_TO_PREFER:
                return
            fixed.append(free[high - 1])
            del free[high - 1 :]

    def _explore(self, choices: list[_Choice], chosen: list[_Choice], *, any_will_do: bool = False) -> bool:
        """Look for a set that starts with `chosen` and is better than the best, or as good where any will do."""
        covered = cost = 0
        for choice in chosen:
            covered |= choice.cover
            cost |= choice.cost
        return self._branch(choices, chosen, covered, cost, any_will_do)

    def _branch(
        self, choices: list[_Choice], chosen: list[_Choice], covered: int, cost: int, any_will_do: bool
    ) -> bool:
        self.steps += 1
        if self.steps > (_STEPS_TO_PREFER if any_will_do else _STEPS):
            return False
        left = self._all & ~covered
        if not left:
            value = self._value(chosen)
            if value < self._score or (any_will_do and value == self._score):
                self._score, self._best = value, list(chosen)
                return True
            return False
        useful = [c for c in choices if c.cover & left and (cost | c.cost).bit_count() <= self._score[0]]
        narrow: list[_Choice] = []
        dearest, apart, shared = 0, 0, 0
        rest = left
        while rest:
            bit = rest & -rest
            rest ^= bit
            able = [c for c in useful if c.cover & bit]
            if not able:
                return False
            dearest = max(dearest, min((c.cost & ~cost).bit_count() for c in able))
            if not shared & bit:  # no choice so far counted covers this one as well
                apart += 1
                for c in able:
                    shared |= c.cover
            if not narrow or len(able) < len(narrow):
                narrow = able
        bound = cost.bit_count() + dearest, len(chosen) + apart
        if bound > self._score or (bound == self._score and not any_will_do):
            return False
        found = False
        for choice in sorted(
            narrow, key=lambda c: ((c.cost & ~cost).bit_count(), -(c.cover & left).bit_count(), c.objections)
        ):
            if self._branch(useful, [*chosen, choice], covered | choice.cover, cost | choice.cost, any_will_do):
                found = True
                if any_will_do:
                    break
        return found


def _dearness(choice: _Choice) -> tuple[int, int, tuple[bool, int, bool, bool, str]]:
    return choice.cost.bit_count(), -choice.cover.bit_count(), choice.objections


def _undominated(choices: list[_Choice]) -> list[_Choice]:
    """Without the choices that another one equals or betters."""
    kept: list[_Choice] = []
    for choice in sorted(choices, key=_dearness):
        if not any(choice.cover & ~k.cover == 0 and k.cost & ~choice.cost == 0 for k in kept):
            kept.append(choice)
    return kept
