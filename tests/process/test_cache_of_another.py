"""Root with another user's HOME (sudo keeps it): nothing is made there, and that is said once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from splitlock.process.cache import Cache

USER = 12345
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="other users: needs root")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    place = tmp_path / "home"
    place.mkdir()
    os.chown(place, USER, USER)
    return place


@pytest.fixture
def library(tmp_path: Path) -> Path:
    path = tmp_path / "text"
    path.write_text("no image: its plan is kept as well")
    return path


def _tell(library: Path, directory: Path) -> list[str]:
    """What is said when two plans are to be kept there."""
    told: list[str] = []
    cache = Cache(told.append, directory=str(directory))
    cache.plan(str(library), "one")
    cache.keep((1, 2, 3, 4, 5), "names", b"x")
    cache.keep((1, 2, 3, 4, 6), "names", b"x")
    return told


@pytest.mark.parametrize("there", ["", ".cache", ".cache/splitlock", ".cache/deep/er"])
def test_nothing_is_made_in_anothers_directory(home: Path, library: Path, there: str) -> None:
    for path in reversed([home / there, *(home / there).parents]):
        if path.is_relative_to(home) and path != home:
            path.mkdir()
            os.chown(path, USER, USER)
    before = sorted(home.rglob("*"))
    directory = home / ".cache" / "splitlock" if "deep" not in there else home / there / "splitlock"
    [warning] = _tell(library, directory)
    assert "another user's" in warning
    assert str(directory) in warning
    assert sorted(home.rglob("*")) == before
    assert {path.stat().st_uid for path in [home, *before]} == {USER}


@pytest.mark.parametrize("owner", [0, USER])
def test_who_it_belongs_to_makes_it(home: Path, owner: int) -> None:
    """Below a directory of their own, or of root's that they may write to."""
    above = home.parent / "everybodys"
    above.mkdir()
    above.chmod(0o1777)
    for path in home.parents:
        path.chmod(path.stat().st_mode | 0o011)
    for place in [above, home] if owner else [above]:
        wanted = str(place / "a/b")
        words = f"from splitlock.process.cache import Cache; print(Cache(print, directory={wanted!r}).directory)"
        rights = [
            "setpriv",
            f"--reuid={owner}",
            "--clear-groups",
            "--inh-caps=-all,+dac_read_search",
            "--ambient-caps=+dac_read_search",
        ]
        argv = [*rights * bool(owner), sys.executable, "-c", words]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
        assert done.stdout == f"{place}/a/b\n", done.stderr
        assert (place / "a" / "b").stat().st_uid == owner


def test_one_that_others_may_write_to_is_said_once(tmp_path: Path, library: Path) -> None:
    place = tmp_path / "open"
    place.mkdir()
    place.chmod(0o777)
    [warning] = _tell(library, place)
    assert "others may write there" in warning
    assert list(place.iterdir()) == []


def test_roots_home_is_as_ever(tmp_path: Path, library: Path) -> None:
    assert _tell(library, tmp_path / "a" / "b") == []
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
