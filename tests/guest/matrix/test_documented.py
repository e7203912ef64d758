"""What the documentation says, and what counts as something else."""

from __future__ import annotations

from typing import Any

import pytest

from splitlock.guest.matrix.documented import differences, documented
from splitlock.report.matrix import Cell

MS = 1_000_000


@pytest.mark.parametrize(
    ("mode", "ac", "db", "both"),
    [
        ("off", "completed completed", "completed completed", "completed completed"),
        ("warn", "completed oops", "completed completed", "completed oops"),
        ("mitigate=0", "completed oops", "completed completed", "completed oops"),
        ("fatal", "sigbus oops", "sigbus completed", "sigbus oops"),
        ("ratelimit:10", "completed completed", "completed completed", "completed completed"),
    ],
)
def test_table(mode: str, ac: str, db: str, both: str) -> None:
    """The table of buslock.rst: a program, and the kernel."""
    for processor, outcomes in (("ac", ac), ("db", db), ("both", both)):
        found = [documented(processor, mode, kind) for kind in ("user", "module")]
        assert [said.outcome for said in found if said] == outcomes.split()


def _cell(processor: Any, mode: str, kind: Any, outcome: Any, **more: Any) -> Cell:
    said = documented(processor, mode, kind)
    return Cell(kernel="x", processor=processor, mode=mode, kind=kind, outcome=outcome, documented=said, **more)


WARNED = {"nanoseconds": [11 * MS], "warnings": 1, "executed": True}


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (_cell("ac", "warn", "user", "completed", **WARNED), ""),
        (_cell("ac", "warn", "user", "completed", **{**WARNED, "executed": False}), "wrong value"),
        (_cell("ac", "warn", "user", "completed", **{**WARNED, "nanoseconds": [9 * MS]}), ""),
        (_cell("ac", "warn", "repeat", "completed", **{**WARNED, "nanoseconds": [9 * MS] * 15}), "no delay of 10 ms"),
        (_cell("ac", "warn", "user", "completed", **{**WARNED, "warnings": 0}), "logged 0 times, not once a task"),
        (_cell("ac", "warn", "user", "completed"), "logged 0 times"),
        (_cell("ac", "warn", "user", "sigbus"), "sigbus, not completed"),
        (_cell("ac", "warn", "interrupt", "panic"), ""),
        (_cell("ac", "warn", "module", "completed"), "completed, not oops"),
        (_cell("ac", "warn", "module", "not-tried"), ""),
        (_cell("ac", "off", "module", "panic"), "panic, not completed"),
        (_cell("ac", "fatal", "ac", "sigbus"), ""),
        (_cell("ac", "off", "ac", "completed"), ""),
        (_cell("db", "off", "user", "completed", warnings=1), "logged 1 time, not never"),
        (_cell("db", "warn", "repeat", "completed", warnings=6), "logged 6 times, not once a task"),
        (_cell("db", "warn", "user", "completed", muted=True), ""),
        (_cell("ac", "warn", "together", "completed", nanoseconds=[20 * MS], warnings=1, apart=[9 * MS] * 7), ""),
        (_cell("ac", "warn", "together", "completed", nanoseconds=[20 * MS], warnings=2), "0 times only: too seldom"),
        (_cell("ac", "warn", "together", "completed", warnings=2, apart=[9 * MS] * 4), "4 times only: too seldom"),
        (_cell("ac", "warn", "together", "completed", warnings=2, apart=[MS // 2] * 7), "not one processor"),
        (_cell("ac", "mitigate=0", "together", "completed", warnings=2, apart=[9 * MS] * 7), "one processor at"),
        (_cell("ac", "mitigate=0", "repeat", "completed", warnings=1, nanoseconds=[11 * MS] * 15), "delayed"),
        (_cell("ac", "mitigate=0", "after", "completed", warnings=1), "logged 1 time, not once a task"),
        (_cell("db", "ratelimit:10", "repeat", "completed", warnings=6, nanoseconds=[MS] * 15), ""),
        (_cell("db", "ratelimit:10", "repeat", "completed", warnings=6, nanoseconds=[MS] * 21), "not limited"),
        (_cell("db", "ratelimit:10", "user", "completed"), "not logged"),
    ],
)  # fmt: skip
def test_differences(cell: Cell, words: str) -> None:
    """What is as documented has none."""
    found = differences(cell)
    assert any(words in one for one in found) if words else not found, found
