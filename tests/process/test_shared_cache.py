"""The plan cache under real runs: many at once, damaged entries, no room."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SPLITLOCK, Run

Program = Callable[..., Path]


def _start(cache: Path, *words: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*SPLITLOCK, "run", "--engine=ptrace", "--split-lock-detect=fatal", "--", *map(str, words)],
        env={**os.environ, "XDG_CACHE_HOME": str(cache)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_200_runs_at_once_from_an_empty_cache(tmp_path: Path, program: Program) -> None:
    """Each finds its one split lock; what they leave behind serves the next."""
    binary = program("sigbus")
    running = [_start(tmp_path, binary) for _ in range(200)]
    for process in running:
        out, err = process.communicate(timeout=300)
        assert (process.returncode, out.splitlines()[-1]) == (0, "survived"), err
        assert "1 site, stopped before 1 split lock" in err
        assert "unmonitored: nothing" in err
    names = sorted(path.suffix for path in (tmp_path / "splitlock").iterdir())
    assert names.count("") == 1, "the lock"
    assert set(names) == {"", ".cold", ".hot"}, "no temporary files"


@pytest.mark.parametrize("half", ["hot", "cold"])
@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_damaged_entries_are_made_anew(tmp_path: Path, program: Program, half: str, damage: str) -> None:
    binary = program("sigbus")
    first = _start(tmp_path, binary)
    first.communicate(timeout=60)
    entries = sorted((tmp_path / "splitlock").glob(f"*.{half}"))
    assert len(entries) >= 2
    whole = {}
    for entry in entries:
        raw = whole[entry] = entry.read_bytes()
        middle = len(raw) // 2
        entry.write_bytes(
            {"cut": raw[:middle], "flip": raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :], "empty": b""}[
                damage
            ]
        )
    again = _start(tmp_path, binary)
    _, err = again.communicate(timeout=60)
    assert again.returncode == 0
    assert "1 site, stopped before 1 split lock" in err
    assert "sigbus.c:" in err
    if half == "hot":
        assert {entry: entry.read_bytes() for entry in entries} == whole


def test_killed_while_analysing(tmp_path: Path, program: Program) -> None:
    for delay in (0.02, 0.1, 0.2, 0.3):
        process = _start(tmp_path, program("sigbus"))
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    last = _start(tmp_path, program("sigbus"))
    _, err = last.communicate(timeout=60)
    assert (last.returncode, "1 site, stopped before 1 split lock" in err) == (0, True)


def test_no_place_for_the_cache_is_one_warning(watch: Callable[..., Run]) -> None:
    run = watch(["true"], env={"XDG_CACHE_HOME": "/proc/nowhere"})
    assert run.status == 0
    assert len(run.err.splitlines()) == 1
    assert "cannot keep plans in /proc/nowhere/splitlock" in run.err
    assert "XDG_CACHE_HOME" in run.err
    assert run.report["watched"]["sites"] > 900


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a full file system")
def test_a_full_disk(watch: Callable[..., Run], tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", place], check=False)
    if mounted.returncode:
        pytest.skip("no permission to mount a tmpfs")
    try:
        run = watch(["true"], env={"XDG_CACHE_HOME": str(place)})
        assert run.status == 0
        assert "No space left on device" in run.err
        assert run.report["watched"]["sites"] > 900
    finally:
        subprocess.run(["umount", place], check=True)
