"""`splitlock matrix` before it boots anything: its help, and wrong usage."""

from __future__ import annotations

import subprocess
import sys

import pytest

MATRIX = [sys.executable, "-m", "splitlock", "matrix"]


def test_help() -> None:
    """80 columns, with examples."""
    done = subprocess.run([*MATRIX, "--help"], capture_output=True, text=True, check=True)
    assert "examples:" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    "words",
    [["--modes", "ratelimit:0"], ["--modes", "warm"], ["--kinds", "x"], ["--deadline", "0"], ["--qemu", "true"]],
)
def test_usage(words: list[str]) -> None:
    """Wrong usage is one line and status 2."""
    done = subprocess.run([*MATRIX, "--kernels", "/dev/null", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
