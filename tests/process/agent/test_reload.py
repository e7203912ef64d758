"""Libraries that come to lie where others were."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Run
from process.agent import libraries
from process.agent.conftest import AsAlone, Compiled

SYSTEM = ["libpython3.11.so.1.0", "libcrypto.so.3", "libz.so.1", "libstdc++.so.6", "libelf.so.1", "liblzma.so.5"]


@pytest.mark.parametrize("seed", [1, 2, 3, *(pytest.param(s, marks=pytest.mark.slow) for s in range(4, 60))])
def test_random_orders(as_alone: AsAlone, compiled: Compiled, tmp_path: Path, seed: int) -> None:
    run = as_alone([compiled("reload"), str(seed), "300", *libraries.build(tmp_path, seed, 12)])
    assert run.status == 0, run.out
    assert {u["reason"] for u in run.report["unmonitored"]} <= {"no room for a jump"}  # functions of a few bytes


@pytest.mark.parametrize("first", [0, 1, *(pytest.param(i, marks=pytest.mark.slow) for i in range(2, len(SYSTEM)))])
def test_after_each_of_the_systems(as_alone: AsAlone, compiled: Compiled, tmp_path: Path, first: int) -> None:
    """Large ones, then a small one at their place."""
    words = [compiled("closing"), *libraries.build(tmp_path, first, 3)]
    for name in SYSTEM[first:] + SYSTEM[:first] if first > 1 else SYSTEM[first : first + 1]:
        found = next(p for d in ("/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib") if (p := Path(d, name)).exists())
        assert as_alone([words[0], found, *words[1:]]).status == 0


def test_counts_are_of_the_library_that_is_there(watch: Callable[..., Run], compiled: Compiled, tmp_path: Path) -> None:
    """24 split locks of one library that is opened 8 times, others between."""
    others = libraries.build(tmp_path, 7, 4)
    run = watch([compiled("closing", "-DSPLIT=3"), *(each for o in others * 2 for each in (o, compiled("bump.so")))])
    assert run.status == 0, run.err
    assert sum(run.hits(compiled("bump.so")).values()) == run.report["hits"] == 24


def test_one_that_is_called_as_the_kernels(as_alone: AsAlone, compiled: Compiled, tmp_path: Path) -> None:
    """By a name that begins as the vDSO's does, which no file is."""
    (tmp_path / "linux-vdso.d").mkdir()
    shutil.copy(compiled("bump.so"), tmp_path / "linux-vdso.d")
    program = compiled("stack", "-pthread")
    run, without = (as_alone([program, "none", *more], cwd=tmp_path) for more in (["linux-vdso.d/bump.so"], []))
    assert run.report["watched"]["sites"] == without.report["watched"]["sites"] + 1
