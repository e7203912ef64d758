"""Every verb's help fits 80 columns."""

from __future__ import annotations

import subprocess
import sys

import pytest

VERBS = (
    "run",
    "guest",
    "probe",
    "matrix",
    "scan",
    "exports",
    "guard",
    "status",
    "watch",
    "explain",
    "simulate",
    "advise",
)


@pytest.mark.parametrize("verb", VERBS)
def test_eighty_columns(verb: str) -> None:
    command = [sys.executable, "-m", "splitlock", verb, "--help"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert [line for line in told.splitlines() if len(line) > 80] == []
