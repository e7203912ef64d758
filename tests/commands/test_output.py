"""Every verb's report to where nothing can be written: one line, exit status 2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINE = "x86/split lock detection: #AC: demo/12 took a split_lock trap at address: 0x401000"
VERBS = {
    "status": ["--no-scan"],
    "watch": ["-"],
    "explain": ["--image", "/bin/true", LINE],
    "simulate": [str(ROOT / "docs/scenarios/01-hazard.toml")],
    "advise": ["--root", str(ROOT / "docs")],  # a machine of which nothing is known
    "scan": ["--format", "json", "/bin/true"],
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("named", [True, False])
def test_a_full_disk(verb: str, named: bool) -> None:
    command = [sys.executable, "-m", "splitlock", verb, *VERBS[verb], *(["-o", "/dev/full"] if named else [])]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    name = "/dev/full" if named else "standard output"
    assert (done.returncode, done.stderr) == (2, f"splitlock: {name}: No space left on device: no report\n")
