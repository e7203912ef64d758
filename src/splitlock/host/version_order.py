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
            if pattern is _DIGITS:
                if int(x or "-1") != int(y or "-1"):
                    return -1 if int(x or "-1") < int(y or "-1") else 1
            elif x != y:
                return -1 if x < y else 1
    return 0
