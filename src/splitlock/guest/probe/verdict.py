"""How does the hypervisor treat split locks? Rows in, a verdict with its reasons out, and what could not be told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median

from splitlock.guest.probe.log import Log, missing
from splitlock.report.probe import SCHEMA, Clock, Leaf, Msr, Report, Row, Verdict
from splitlock.x86.msr import HAS_SPLIT_LOCKS

SLOW_MS = 5  # no bus lock takes so long, and Linux' `warn` sleeps ten milliseconds at least
SLOW_CYCLES = 2_000_000  # where the frequency of the time-stamp counter is not known
_LIKE = 4  # times an aligned lock: still the same cost
_BUS_LOCK_SHOWN = 1 << 24  # of CPUID.7.ECX


@dataclass
class Judged:
    """What the rows mean."""

    verdict: Verdict = "unclear"
    reasons: list[str] = field(default_factory=list)
    not_told: list[str] = field(default_factory=list)


@dataclass
class _Costs:
    """Cycles of the cheapest execution, the median of all rows of a kind; None where none completed."""

    aligned: float | None
    split: float | None
    exit: float | None  #: CPUID, which a hypervisor always sees


def judge(rows: list[Row], cpuid: list[Leaf], msrs: list[Msr], clock: Clock | None) -> Judged:
    """The verdict on the rows of one run."""
    judged = Judged()
    rows = _runnable(judged, rows)
    checked = _checked(judged, rows)
    splits = [row for row in rows if row.access == "split" and not row.asked and _state(row) not in checked]
    unasked = [row for row in splits if not row.detecting]
    trapping = [row for row in splits if row.detecting]
    asked = [row for row in rows if row.access in ("split", "misaligned") and row.asked and not row.detecting]
    _broken(judged, rows)
    unended = [str(row.number) for row in rows if row.outcome == "unended"]
    if unended:
        judged.not_told.append(
            f"how row {', '.join(unended)} ended: perhaps it ended the machine, perhaps only the log"
        )
    _unasked(judged, unasked)
    _exposed(judged, trapping, msrs)
    _asked(judged, asked)
    _bus_lock(judged, [row for row in rows if row.access == "buslock"], cpuid)
    costs = _Costs(_cheapest(rows, "aligned"), _cheapest(unasked, "split"), _cheapest(rows, "cpuid"))
    slow = _slow(judged, unasked, rows, clock)
    handled = _cost(judged, costs, slow)
    judged.verdict = _verdict(judged, rows, unasked, trapping, asked, slow, handled)
    return judged


def _verdict(
    judged: Judged,
    rows: list[Row],
    unasked: list[Row],
    trapping: list[Row],
    asked: list[Row],
    slow: bool,
    handled: bool,
) -> Verdict:
    if any(row.alignment_check for row in unasked):
        return "forwards-blindly"
    if any(_breaks(row) for row in rows):
        return "breaks-guest"
    if not unasked:
        judged.not_told.append("how a split lock ends that asked for no trap: no such row is in the log")
        return "unclear"
    if trapping and all(row.alignment_check for row in trapping):
        return "exposes-feature"
    if slow:
        return "throttles"
    if asked and all(row.alignment_check for row in asked):
        return "injects-when-asked"
    if not asked or any(row.alignment_check for row in asked):
        return "unclear"
    return "emulates" if handled else "nothing-to-handle"


def _runnable(judged: Judged, rows: list[Row]) -> list[Row]:
    """The rows of those contexts in which the hypervisor runs a guest at all."""
    aligned = [row for row in rows if row.access == "aligned"]
    dead = {(row.mode, row.cpl) for row in aligned if row.outcome in ("raised", "reset")}
    for mode, cpl in sorted(dead):
        judged.not_told.append(f"how a split lock ends in {mode} at CPL {cpl}: not even an aligned one completes there")
    return [row for row in rows if (row.mode, row.cpl) not in dead]


def _state(row: Row) -> tuple[str, int, bool, bool]:
    return row.mode, row.cpl, row.am, row.ac


def _checked(judged: Judged, rows: list[Row]) -> set[tuple[str, int, bool, bool]]:
    """The states in which alignment is checked: there `#AC` for a split lock says nothing about split locks."""
    checked = [row for row in rows if row.access == "misaligned" and row.alignment_check]
    for row in checked:
        if not row.asked:
            judged.reasons.append(
                f"alignment is checked unasked, in {row.mode} at CPL {row.cpl} with AM={row.am:d} AC={row.ac:d}"
            )
            judged.not_told.append(f"how a split lock ends there, where row {row.number} ended in #AC as well")
    return {_state(row) for row in checked}


def _breaks(row: Row) -> bool:
    """A row that no processor ends so, whatever its kind."""
    expected = row.alignment_check or (row.access == "buslock" and row.vector == 1)
    return row.outcome == "reset" or (row.outcome == "raised" and not expected) or row.memory_right is False


def _broken(judged: Judged, rows: list[Row]) -> None:
    for row in rows:
        if _breaks(row):
            what = (
                "the machine was reset or ended"
                if row.outcome == "reset"
                else f"exception {row.vector} was raised"
                if row.outcome == "raised" and not row.alignment_check
                else "the memory holds a wrong value"
            )
            judged.reasons.append(f"row {row.number}, {row.access} in {row.mode} at CPL {row.cpl}: {what}")


def _unasked(judged: Judged, rows: list[Row]) -> None:
    if not rows:
        return
    trapped = [row for row in rows if row.alignment_check]
    if trapped:
        places = sorted({f"{row.mode} at CPL {row.cpl}" for row in trapped})
        judged.reasons.append(
            f"{len(trapped)} of {len(rows)} split locks that asked for no trap ended in #AC: {', '.join(places)}"
        )
    completed = sum(row.outcome == "completed" for row in rows)
    if completed:
        judged.reasons.append(f"{completed} of {len(rows)} split locks that asked for no trap completed")


def _exposed(judged: Judged, rows: list[Row], msrs: list[Msr]) -> None:
    value = next((msr.value for msr in msrs if msr.number == "000000cf"), None)
    if value is not None and int(value, 16) & HAS_SPLIT_LOCKS:
        judged.reasons.append("CORE_CAPABILITIES bit 5 announces split-lock #AC")
    if rows:
        trapped = sum(row.alignment_check for row in rows)
        judged.reasons.append(f"TEST_CTRL bit 29 can be set; then {trapped} of {len(rows)} split locks end in #AC")
    else:
        judged.reasons.append("TEST_CTRL bit 29 cannot be set: the guest is shown no split-lock detection")


def _asked(judged: Judged, rows: list[Row]) -> None:
    if not rows:
        judged.not_told.append("what becomes of alignment checks that are asked for: no such row is in the log")
        return
    trapped = sum(row.alignment_check for row in rows)
    judged.reasons.append(f"{trapped} of {len(rows)} accesses that asked for #AC (CPL 3, AM and AC set) ended in it")
    if not trapped:
        judged.not_told.append(
            "whether it would inject #AC for a split lock that asks: ordinary misaligned accesses that ask raise none "
            "either, as on an emulator without alignment checks"
        )


def _bus_lock(judged: Judged, rows: list[Row], cpuid: list[Leaf]) -> None:
    if rows:
        seen = sum(row.outcome == "raised" and row.vector == 1 and row.place == "after" for row in rows)
        judged.reasons.append(f"DEBUGCTL bit 2 can be set; then {seen} of {len(rows)} bus locks at CPL 3 end in #DB")
    elif any(leaf.leaf == "00000007" and int(leaf.ecx, 16) & _BUS_LOCK_SHOWN for leaf in cpuid):
        judged.reasons.append("CPUID announces bus-lock #DB, but DEBUGCTL bit 2 does not stay set")


def _cheapest(rows: Iterable[Row], access: str) -> float | None:
    times = [min(row.cycles) for row in rows if row.access == access and row.cycles]
    return median(times) if times else None


def _slow(judged: Judged, unasked: list[Row], rows: list[Row], clock: Clock | None) -> bool:
    """Does a fair part of the split locks take longer than any bus lock does, and nothing else?"""
    least, words = SLOW_CYCLES, f"{SLOW_CYCLES:,} cycles"
    if clock is not None and clock.source != "guess":
        least, words = clock.khz * SLOW_MS, f"{SLOW_MS} ms"
    long = [row for row in unasked if max(row.cycles, default=0) >= least]
    others = [row for row in rows if row.access not in ("split", "buslock") and max(row.cycles, default=0) >= least]
    if not long:
        return False
    times = f"{len(long)} of {len(unasked)} split locks took {words} or more"
    if len(long) * 4 < len(unasked) or others:
        judged.not_told.append(f"{times}, {len(others)} rows of other kinds as well: that may be a busy machine")
        return False
    judged.reasons.append(f"{times}, nothing else did: the guest is made to wait")
    judged.not_told.append(
        "by whom it is made to wait: a host in mode warn (10 ms each), or a hypervisor that is left at each bus lock "
        "and limits their rate (QEMU: bus-lock-ratelimit)"
    )
    return True


def _cost(judged: Judged, costs: _Costs, slow: bool) -> bool:
    """Say what a split lock costs; whether somebody may have handled it, which is when it costs as much as an exit."""
    aligned, split, leave = costs.aligned, costs.split, costs.exit
    if aligned is None or split is None or leave is None or slow:
        return False
    told = f"cycles: split lock {split:,.0f}, aligned lock {aligned:,.0f}, CPUID (leaves the guest) {leave:,.0f}"
    if split < leave or split <= _LIKE * aligned:
        how = "does not leave the guest" if split < leave else "is treated as an aligned one is"
        judged.reasons.append(f"{told}: a split lock {how}")
        judged.not_told.append(
            "what the hypervisor would do on a processor that detects split locks: with no detection below it, or with "
            "detection off, every hypervisor looks like this; so does KVM on a Linux host in mode warn that makes "
            "nobody wait (5.7 to 5.18, or kernel.split_lock_mitigate=0)"
        )
        return False
    judged.reasons.append(told)
    judged.not_told.append(
        "whether the processor locked its bus, the hypervisor emulated the access, or is left at each bus lock "
        "(KVM's bus-lock exits): all cost as much"
    )
    return True


def report(source: str, log: Log, ended: str = "", died: bool = False) -> Report:
    """The report on a log from `source`; `ended`: how the machine ended before the log did, `died`: by itself."""
    gone = missing(log) + ([ended] if ended else [])
    if died and log.expected is None and log.rows and log.rows[-1].outcome == "unended":
        log.rows[-1].outcome = "reset"
    judged = judge(log.rows, log.cpuid, log.msrs, log.clock)
    return Report(
        schema=SCHEMA,
        source=source,
        verdict=judged.verdict,
        reasons=judged.reasons,
        not_told=judged.not_told,
        cpuid=log.cpuid,
        msrs=log.msrs,
        clock=log.clock,
        rows=log.rows,
        expected=log.expected,
        split_locks=sum(_executions(row) for row in log.rows if row.access in ("split", "buslock")),
        missing=gone,
        damaged=log.damaged,
        foreign=log.foreign,
    )


def _executions(row: Row) -> int:
    return max(1, len(row.cycles))
