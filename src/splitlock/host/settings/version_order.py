"""Which of two versions is the newer one? As boot loaders sort their entries (UAPI.10 Version Format Specification)."""

from __future__ import annotations

import re

_SKIPPED = re.compile(r"^[^A-Za-z0-9~^.-]+")
_DIGITS, _LETTERS = re.compile(r"[0-9]*"), re.compile(r"[A-Za-z]*")


def compare(one: str, other: str) -> int:
    """Negative where `one` is the older, 0 where both are alike."""
    a, b = one, other
    while a or b:
        a, b = _SKIPPED.sub("", a), _SKIPPED.sub("", b)
        for mark in "~ -^.":
            if mark == " ":  # the end of one of them: older than whatever is left of the other
                if not a or not b:
                    return (a != "") - (b != "")
            elif a.startswith(mark) != b.startswith(mark):  # the one that has it is the older
                return -1 if a.startswith(mark) else 1
            elif a.startswith(mark):
                a, b = a[1:], b[1:]
                break
        else:
            pattern = _DIGITS if a[0].isdigit() or b[0].isdigit() else _LETTERS
            x, y = pattern.match(a)[0], pattern.match(b)[0]  # type: ignore[index]  # both match the empty string
            a, b = a[len(x) :], b[len(y) :]
            if pattern is _DIGITS and (first := _number(x)) != (second := _number(y)):
                return -1 if first < second else 1
            if pattern is _LETTERS and x != y:
                return -1 if x < y else 1
    return 0


def _number(digits: str) -> tuple[int, str]:
    """A key that sorts as the number does, however long it is; none at all is less than 0."""
    return (len(digits.lstrip("0")), digits.lstrip("0")) if digits else (-1, "")
