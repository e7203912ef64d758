"""What can be told of a regular expression without running it: numbers without end, and what its search may cost.

A pattern is taken apart as Python's own compiler does it. Where its alternatives are too many they are taken for one,
so more may be said against a pattern than is true of it, not less.
"""

from __future__ import annotations

import re
from itertools import product
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any, NamedTuple

_MANY = 1000  # a repeat of so many has no bound that helps
_ALPHABET = frozenset(map(chr, range(128))) | {"\xe9", "\u2028"}
_CATEGORIES = {
    sre.CATEGORY_DIGIT: r"\d", sre.CATEGORY_NOT_DIGIT: r"\D", sre.CATEGORY_SPACE: r"\s",
    sre.CATEGORY_NOT_SPACE: r"\S", sre.CATEGORY_WORD: r"\w", sre.CATEGORY_NOT_WORD: r"\W",
}  # fmt: skip
_DIGITS = frozenset("0123456789")


class Token(NamedTuple):
    """A step of a pattern: which characters, whether there has to be one, whether there may be any number of them."""

    set: frozenset[str]
    must: bool = True
    endless: bool = False
    looks: bool = False  # an assertion: takes no character, and may fail
    begins: bool = False  # one that says: the text begins here
    gives: bool = True  # an endless one gives back what it took, where what follows does not match


def parse(pattern: re.Pattern[Any]) -> Any:
    """Its tree, as Python's own compiler has it."""
    text = pattern.pattern if isinstance(pattern.pattern, str) else pattern.pattern.decode("latin-1")
    return parser.parse(text, pattern.flags & ~re.UNICODE & ~re.ASCII)


def numbers(tree: Any, *, inside: bool = False) -> bool:
    """Does it have a group of nothing but digits, without a bound?"""
    for op, value in tree:
        if op is sre.SUBPATTERN:
            if value[0] is not None and len(value[3]) == 1 and _endless_digits(value[3][0]):
                return True
            if value[0] is not None and len(value[3]) == 2 and _endless_digits(value[3][1]):  # a sign before it
                return True
        if any(numbers(each) for each in _inner(op, value)):
            return True
    return False


def _endless_digits(step: Any) -> bool:
    op, value = step
    if op not in (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT) or value[1] < _MANY:
        return False
    inner = value[2]
    return len(inner) == 1 and (found := _characters(*inner[0])) is not None and bool(found) and found <= _DIGITS


def _inner(op: Any, value: Any) -> list[Any]:
    if op is sre.SUBPATTERN:
        return [value[3]]
    if op is sre.BRANCH:
        return list(value[1])
    if op in (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT):
        return [value[2]]
    if op is sre.ATOMIC_GROUP:
        return [value]
    if op in (sre.ASSERT, sre.ASSERT_NOT):
        return [value[1]]
    return []


def _characters(op: Any, value: Any) -> frozenset[str] | None:
    """Which characters a step for one takes; None: it is no such step."""
    if op is sre.LITERAL:
        return frozenset({chr(value)})
    if op is sre.NOT_LITERAL:
        return _ALPHABET - {chr(value)}
    if op is sre.ANY:
        return _ALPHABET - {"\n"}
    if op is not sre.IN:
        return None
    found: set[str] = set()
    negated = False
    for kind, what in value:
        if kind is sre.NEGATE:
            negated = True
        elif kind is sre.LITERAL:
            found.add(chr(what))
        elif kind is sre.RANGE:
            found |= {chr(each) for each in range(what[0], min(what[1], 0x2100) + 1)}
        else:
            found |= {each for each in _ALPHABET if re.match(_CATEGORIES[what], each)}
    return _ALPHABET - found if negated else frozenset(found)


def nested(tree: Any) -> bool:
    """Is there an endless repeat of something that may be taken apart in more than one way?

    A round has an endless repeat in it, and the rounds do not have to be told apart by a character that it cannot take.
    """
    for op, value in tree:
        if op in (sre.MAX_REPEAT, sre.MIN_REPEAT) and value[1] >= _MANY:
            for steps in sequences(value[2]):
                taken = [step for step in steps if not step.looks]
                for i, step in enumerate(taken):
                    others = taken[:i] + taken[i + 1 :]
                    if step.endless and step.gives and all(not each.must or each.set & step.set for each in others):
                        return True
        if any(nested(each) for each in _inner(op, value)):
            return True
    return False


def sequences(tree: Any) -> list[list[Token]]:
    """All ways through it, by its alternatives."""
    found: list[list[Token]] = [[]]
    for op, value in tree:
        ways = _ways(op, value)
        if len(found) * len(ways) > 64:
            ways = [[_merged(ways)]]
        found = [before + way for before, way in product(found, ways)]
    return found


def _merged(ways: list[list[Token]]) -> Token:
    union = frozenset().union(*(step.set for way in ways for step in way))
    return Token(
        union, all(any(step.must for step in way) for way in ways), any(s.endless for way in ways for s in way)
    )


def _ways(op: Any, value: Any) -> list[list[Token]]:
    if (characters := _characters(op, value)) is not None:
        return [[Token(characters)]]
    if op is sre.SUBPATTERN:
        return sequences(value[3])
    if op is sre.BRANCH:
        return [way for each in value[1] for way in sequences(each)]
    if op in (sre.ASSERT, sre.ASSERT_NOT, sre.AT):
        return [[Token(frozenset(), False, False, True, value in (sre.AT_BEGINNING, sre.AT_BEGINNING_STRING))]]
    if op is sre.ATOMIC_GROUP:
        return [[step._replace(gives=False) for step in way] for way in sequences(value)]
    if op is sre.GROUPREF:
        return [[Token(_ALPHABET, False)]]
    low, high, inner = value
    ways = sequences(inner)
    if high >= _MANY:
        whole = _merged(ways)
        return [[Token(whole.set, whole.must and low > 0, True, gives=op is not sre.POSSESSIVE_REPEAT)]]
    every = [way for way in ways if way] or [[]]
    if low:
        return every
    return [*every, []] if all(any(step.must for step in way) for way in every) else every


def degree(tree: Any, *, searched: bool) -> int:
    """The power of a text's length that its search may cost: repeats that may share out the same characters."""
    most = 1
    for steps in sequences(tree):
        begin = [Token(_ALPHABET, False, True)] if searched and not _anchored(steps) else []
        most = max(most, _chain([*begin, *steps]))
    return most


def _anchored(steps: list[Token]) -> bool:
    return next((step.begins for step in steps if step.must or step.endless or step.begins), False)


def _chain(steps: list[Token]) -> int:
    repeats = [i for i, step in enumerate(steps) if step.endless and _may_fail(steps[i + 1 :])]
    best: dict[int, int] = {}
    for j in repeats:
        best[j] = 1 + max((best[i] for i in repeats if i < j and steps[i].gives and _share(steps, i, j)), default=0)
    return max(best.values(), default=1)


def _may_fail(rest: list[Token]) -> bool:
    return any(step.must or step.looks for step in rest)


def _share(steps: list[Token], i: int, j: int) -> bool:
    both = steps[i].set & steps[j].set
    return bool(both) and all(not step.must or step.set & both for step in steps[i + 1 : j])
