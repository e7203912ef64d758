"""The probe on KVM on a processor that detects split locks, or does so behind the kernel's back: a verdict for each."""

from __future__ import annotations

from pathlib import Path

import pytest
from guest.probe import inside
from guest.probe.test_nested import ends

from splitlock.report.probe import Report

_ASKED = {("prot32", 3, True, True), ("long64", 3, True, True)}


def _probed(directory: Path, host: str) -> tuple[int, Report]:
    machine = ["--forward-ac"] if host == "unaware" else []
    append = "" if host == "unaware" else f"split_lock_detect={host}"
    arguments = ["probe", "run", "--kvm", "--format", "json", "--timeout", "900"]
    status, told = inside.splitlock(directory, arguments, *machine, append=append)
    return status, Report.from_json(told)


@pytest.mark.slow
@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize(
    ("host", "status", "verdict", "outcome"),
    [
        ("off", 0, "injects-when-asked", "completed"),
        ("warn", 0, "throttles", "completed"),
        ("fatal", 1, "breaks-guest", "reset"),
        ("unaware", 1, "forwards-blindly", "#AC"),
    ],
)
def test_verdict(tmp_path: Path, host: str, status: int, verdict: str, outcome: str) -> None:
    """Who asked gets an #AC of his own everywhere; the others get what KVM on that host has for them."""
    found, told = _probed(tmp_path, host)
    assert (found, told.verdict, told.missing) == (status, verdict, [])
    assert told.clock is not None
    assert told.clock.source == "hypervisor"
    for access, others in (("split", outcome), ("misaligned", "completed")):
        ended = ends(told, access)
        assert {state for state, end in ended.items() if end != others} == (_ASKED if others != "#AC" else set())
        assert {ended[state] for state in _ASKED} == {"#AC"}
    unasked = [row for row in told.rows if row.access == "split" and not row.asked]
    assert len(unasked) == 18
    if host == "warn":  # each of them traps: 6.1 sleeps for 16 ms at least where HZ is 250
        assert all(row.cycles[0] >= 16 * told.clock.khz > row.cycles[1] for row in unasked)
