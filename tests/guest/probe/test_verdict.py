"""Each verdict from rows as such a hypervisor would give them, most of which no machine here can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from splitlock.guest.probe.log import Log, read
from splitlock.guest.probe.verdict import judge, report
from splitlock.report.probe import Clock, Row
from splitlock.report.probe_text import VERDICTS, render

Change = Callable[[Row], dict[str, Any]]
CLOCK = Clock(khz=2_400_000, source="pit", wait_ms=35)
TRAPPED = {"outcome": "raised", "vector": 17, "place": "at", "error": "0000", "cycles": []}
RESET: dict[str, Any] = {"outcome": "reset", "memory_right": None, "cycles": []}


def changed(log: Log, change: Change) -> list[Row]:
    """The rows with what a change makes of each."""
    return [msgspec.structs.replace(row, **change(row)) for row in log.rows]


def split(row: Row, unasked: bool = True) -> bool:
    return row.access == "split" and row.asked != unasked


def detecting(log: Log, outcome: dict[str, Any]) -> list[Row]:
    """More rows: with TEST_CTRL on, `outcome` for each split lock."""
    more = [row for row in log.rows if row.access == "split"]
    return [msgspec.structs.replace(row, number=row.number + 20, detecting=True, **outcome) for row in more]


def test_nothing_to_handle(tcg: bytes) -> None:
    judged = judge(read(tcg).rows, [], [], CLOCK)
    assert judged.verdict == "nothing-to-handle"
    assert judged.not_told[0].startswith("whether it would inject #AC")


@pytest.mark.parametrize(
    ("verdict", "change"),
    [
        ("injects-when-asked", lambda row: {}),
        ("forwards-blindly", lambda row: TRAPPED if split(row) else {}),
        ("forwards-blindly", lambda row: TRAPPED if split(row) and row.cpl == 3 else {}),
        ("breaks-guest", lambda row: RESET if split(row) and row.mode == "real16" else {}),
        ("breaks-guest", lambda row: {**TRAPPED, "vector": 13} if split(row) else {}),
        ("breaks-guest", lambda row: {"memory_right": False} if split(row) else {}),
        ("throttles", lambda row: {"cycles": [30_000_000, 900]} if split(row) else {}),
        ("injects-when-asked", lambda row: {"cycles": [30_000_000]} if row.number == 26 else {}),  # a busy machine
        ("injects-when-asked", lambda row: {"cycles": [3_000]} if split(row) else {}),
    ],
)
def test_verdict(bochs: bytes, verdict: str, change: Change) -> None:
    assert judge(changed(read(bochs), change), [], [], CLOCK).verdict == verdict


@pytest.mark.parametrize(
    ("clock", "cycles", "slow"),
    [
        (CLOCK, 12_000_000, True),
        (CLOCK, 11_900_000, False),
        (Clock(khz=25_000, source="hypervisor", wait_ms=35), 442_112, True),  # 17.7 ms on an emulated processor
        (Clock(khz=25_000, source="hypervisor", wait_ms=35), 124_000, False),
        (Clock(khz=5_000_000, source="guess", wait_ms=35), 2_000_000, True),
        (None, 2_000_000, True),
        (None, 1_999_999, False),
    ],
)
def test_how_long_is_long(bochs: bytes, clock: Clock | None, cycles: int, slow: bool) -> None:
    """Time counts, not cycles, where it is known how many make a millisecond."""
    rows = changed(read(bochs), lambda row: {"cycles": [cycles, 4]} if split(row) else {})
    assert (judge(rows, [], [], clock).verdict == "throttles") == slow


def test_exposes(bochs: bytes) -> None:
    log = read(bochs)
    judged = judge(log.rows + detecting(log, TRAPPED), log.cpuid, log.msrs, CLOCK)
    assert judged.verdict == "exposes-feature"
    assert "TEST_CTRL bit 29 can be set; then 18 of 18 split locks end in #AC" in judged.reasons
    assert judge(log.rows + detecting(log, {}), log.cpuid, log.msrs, CLOCK).verdict == "injects-when-asked"


def test_emulates(tcg: bytes) -> None:
    """No #AC for who asks, and the price of an exit: it is handled, or the bus is slow; that cannot be told apart."""
    costs = {"split": [9_000], "aligned": [20], "cpuid": [2_000], "misaligned": [20]}
    judged = judge(changed(read(tcg), lambda row: {"cycles": costs[row.access]}), [], [], CLOCK)
    assert judged.verdict == "emulates"
    assert judged.not_told[-1].startswith("whether the processor locked its bus, the hypervisor emulated")


def test_a_context_that_does_not_run(bochs: bytes) -> None:
    """Where not even an aligned lock completes, nothing is said of split ones."""
    judged = judge(
        changed(read(bochs), lambda row: RESET if (row.mode, row.cpl) == ("prot32", 3) else {}), [], [], CLOCK
    )
    assert judged.verdict == "injects-when-asked"
    assert judged.not_told[0] == "how a split lock ends in prot32 at CPL 3: not even an aligned one completes there"


def test_alignment_checked_unasked(bochs: bytes) -> None:
    """Where plain misaligned accesses end in #AC too, a split lock's says nothing."""
    judged = judge(changed(read(bochs), lambda row: TRAPPED if row.ac and row.cpl == 3 else {}), [], [], CLOCK)
    assert judged.verdict == "injects-when-asked"
    assert "alignment is checked unasked, in long64 at CPL 3 with AM=0 AC=1" in judged.reasons


def test_shown(bochs: bytes) -> None:
    told = report("Bochs", read(bochs))
    for verdict, words in VERDICTS.items():
        assert render(msgspec.structs.replace(told, verdict=verdict)).startswith(f"verdict: {words}\n")
    text = render(told)
    assert "long      mode, CPL 3      completes    completes    completes    #AC\n" in text
    assert len(render(told, verbose=True).splitlines()) > 46


def test_cut_or_dead(bochs: bytes) -> None:
    """A log that breaks off within a row: only where the machine ended by itself is it known why."""
    cut = bochs[: bochs.index(b"end 36 ")]
    told = report("", read(cut))
    assert (told.verdict, told.rows[-1].outcome) == ("injects-when-asked", "unended")
    assert told.not_told[0] == "how row 36 ended: perhaps it ended the machine, perhaps only the log"
    assert report("", read(cut), "QEMU was killed by signal 7 (Bus error)", died=True).verdict == "breaks-guest"
