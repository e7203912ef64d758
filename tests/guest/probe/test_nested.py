"""The probe on KVM, where no lock is really split: kvm-amd inside QEMU's TCG. (kvm-intel: test_vmx.py.)"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from guard.machine import Machine, kernel, splitlock_payload
from guest.probe import flavours

from splitlock.report.probe import Report


def ends(report: Report, access: str) -> dict[tuple[str, int, bool, bool], str]:
    """How the rows of a kind ended, by the processor's state."""
    rows = [row for row in report.rows if row.access == access]
    return {(r.mode, r.cpl, r.am, r.ac): "#AC" if r.alignment_check else r.outcome for r in rows}


@pytest.mark.slow
def test_kvm_amd(tmp_path: Path) -> None:
    """TCG's processor raises no alignment checks, so a guest of KVM's that asks for them gets none."""
    splitlock_payload(tmp_path)
    with Machine(kernel("amd64"), payload=tmp_path) as guest:
        guest.run("modprobe ccp; modprobe kvm_amd").ok()
        done = guest.splitlock("probe", "run", "--kvm", "--format", "json", "--timeout", "170").ok()
        assert guest.splitlock("probe", "run", "--kvm", "-q").ok().out == ""
    report = Report.from_json(done.out)
    assert (report.verdict, report.missing, report.split_locks) == ("nothing-to-handle", [], 40)
    assert report.clock is not None
    assert report.clock.source == "hypervisor"  # this machine of ours has no timer to measure by
    assert set(ends(report, "split").values()) == set(ends(report, "misaligned").values()) == {"completed"}
    assert all(row.memory_right for row in report.rows)


@pytest.mark.slow
def test_kvm_amd_resets(tmp_path: Path) -> None:
    """A triple fault ends a machine of ours; a new one goes on with the next row."""
    splitlock_payload(tmp_path)
    target = tmp_path / "python" / "splitlock" / "guest" / "probe" / "boot" / "probe.bin"
    target.unlink()  # may be a hard link to our own
    shutil.copy(flavours.resets(tmp_path), target)
    with Machine(kernel("amd64"), payload=tmp_path) as guest:
        guest.run("modprobe ccp; modprobe kvm_amd").ok()
        done = guest.splitlock("probe", "run", "--kvm", "--format", "json", "--timeout", "170")
    report = Report.from_json(done.out)
    assert (done.status, report.verdict, report.missing) == (1, "breaks-guest", [])
    assert [row.number for row in report.rows if row.outcome == "reset"] == [42, 43, 44, 45]
