"""`splitlock guest` before it boots anything: its help, and how it starts."""

from __future__ import annotations

import subprocess
import sys

import pytest


def test_help() -> None:
    """80 columns, with examples."""
    done = subprocess.run(
        [sys.executable, "-m", "splitlock", "guest", "--help"], capture_output=True, text=True, check=True
    )
    assert "examples:" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize("words", [["-m", "0"], ["--duration", "-1"], ["--smp", "x"], ["--fail-on", "all"]])
def test_usage(words: list[str]) -> None:
    """Wrong usage is one line and status 2."""
    done = subprocess.run(
        [sys.executable, "-m", "splitlock", "guest", "--kernel", "x", *words],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
