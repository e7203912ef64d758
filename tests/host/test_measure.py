"""What a split lock costs: natively a few, once; under QEMU, which executes none, any number."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from conftest import spent
from iced_x86 import Decoder, FlowControl, Mnemonic

import splitlock
from splitlock.host import measure
from splitlock.report.status import Measured, Report

_FEW = 40
_SCRIPT = (
    "import msgspec; from splitlock.host.measure import measure; print(msgspec.json.encode(measure(100)).decode())"
)


@pytest.mark.parametrize("code", [measure._LOCKER, measure._NEIGHBOUR, measure._CLOCK])
def test_the_code_is_whole(code: bytes) -> None:
    """Every jump lands on an instruction of its own, and one instruction locks at most."""
    found = list(Decoder(64, code, ip=0))
    assert sum(instruction.len for instruction in found) == len(code)
    starts = {instruction.ip for instruction in found}
    for instruction in found:
        assert not instruction.is_invalid
        if instruction.flow_control in (FlowControl.CONDITIONAL_BRANCH, FlowControl.UNCONDITIONAL_BRANCH):
            assert instruction.near_branch_target in starts
    assert sum(instruction.has_lock_prefix for instruction in found) == (code is measure._LOCKER)
    assert found[-1].mnemonic == Mnemonic.RET


def test_here() -> None:
    command = [
        sys.executable,
        "-m",
        "splitlock",
        "status",
        "--no-scan",
        "--measure",
        str(_FEW),
        "--yes",
        "--format",
        "json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    spent(_FEW)
    assert done.returncode in (0, 1), done.stderr
    assert f"takes {_FEW} real split locks" in done.stderr
    found = Report.from_json(done.stdout).measured
    assert found
    assert (found.split_locks, len(found.samples)) == (_FEW, _FEW)
    assert found.split > 2 * found.aligned > 0


def test_many_where_they_harm_nobody() -> None:
    """qemu-user emulates both cores' code: the whole of it runs."""
    qemu = shutil.which("qemu-x86_64") or pytest.fail("not installed: qemu-user; make setup")
    libraries = Path(msgspec.__file__).parents[1]
    path = [str(Path(splitlock.__file__).parents[1]), str(libraries)]
    done = subprocess.run(
        [qemu, str(Path(sys.executable).resolve()), "-c", _SCRIPT],
        env={"PYTHONPATH": ":".join(path)},
        capture_output=True,
        timeout=120,
        check=True,
    )
    found = msgspec.json.decode(done.stdout, type=Measured)
    assert len(found.samples) == 100
    if found.neighbour_core is not None:
        assert found.neighbour_quiet > 0
        assert found.neighbour_met > 0
