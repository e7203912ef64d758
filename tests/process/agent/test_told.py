"""What the kernel keeps for a program, and what it tells of it, is as it is alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conftest import Run
from process.agent.conftest import AsAlone, Compiled


def test_the_direction_flag(watch: Callable[..., Run], compiled: Compiled) -> None:
    """Over locks that are stopped, and over calls."""
    run = watch([compiled("told"), "direction"], "-q", "--split-lock-detect=fatal")
    assert (run.out, run.status) == ("direction 1\n" * 4, 0)
    assert run.report["hits"] == 2


@pytest.mark.parametrize("how", ["once", "refused", "divided"])
def test_what_the_kernel_says(as_alone: AsAlone, compiled: Compiled, how: str) -> None:
    run = as_alone([compiled("told"), how])
    assert "at rip: 0" not in run.out
    assert run.status == 0
