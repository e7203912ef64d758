"""Code that is made at run time is in the report, however it ends."""

from __future__ import annotations

import pytest
from process.agent.conftest import AsAlone, Compiled

HOWS = [
    "stay", "unmap", "thread", "fork", "vfork", "library", "hole", "over", "move", "write", "unreadable", "exec", "raw",
    "inline", "kill", "abort",
]  # fmt: skip


@pytest.mark.parametrize("how", HOWS)
def test_code_that_was_made_is_named(as_alone: AsAlone, compiled: Compiled, how: str) -> None:
    """And how many locked instructions it may hold: at least the one, or that nobody knows."""
    run = as_alone([compiled("made", "-Wno-unused-result"), how, compiled("bump.so")])
    assert "3\n" in run.out
    made = [u for u in run.report["unmonitored"] if u["reason"] == "code made at run time (JIT)"]
    assert len(made) == 1
    assert made[0].get("sites") != 0
