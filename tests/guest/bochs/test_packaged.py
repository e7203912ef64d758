"""An installed splitlock has all that the emulator is built from, and so takes the one that a source tree has built."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from modules.debian import ROOT

_SOURCE = ROOT / "src" / "splitlock"
_BUILD = "guest/bochs/build.sh"


def _mark(package: Path) -> str:
    done = subprocess.run(["sh", package / _BUILD, "--mark"], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """What a wheel takes along besides Python's files (setuptools: package-data)."""
    tables = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for pattern in tables["tool"]["setuptools"]["package-data"]["splitlock"]:
        for path in _SOURCE.glob(pattern):
            target = tmp_path / path.relative_to(_SOURCE)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    return tmp_path


def test_one_mark(installed: Path) -> None:
    """The name in the cache is the same, and another one where a file of ours is."""
    mark = _mark(installed)
    assert mark == _mark(_SOURCE)
    (installed / "guest" / "bochs" / "instrument" / "levels.cc").write_text("")
    assert _mark(installed) != mark
