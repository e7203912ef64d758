"""`configure` and `make -j2` of Debian's source packages make under us what they make alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
@pytest.mark.parametrize("package", ["sed", "grep"])
def test_the_same_is_made(environment: dict[str, str], package: str) -> None:
    """The benchmark compares config.h, all objects and the program; it fails where one byte differs."""
    words = [sys.executable, str(ROOT / "benchmarks" / "builds.py"), package, "--rounds", "0"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, done.stderr
    assert f"{package}: both" in done.stdout
