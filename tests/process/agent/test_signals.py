"""Handlers find the program, not us, whatever the flags; no signal is lost, and no instruction executed twice."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from conftest import Run
from process.agent.conftest import AsAlone, Compiled

KINDS = {
    "timer": ("r", "n", "s", "rs"), "queued": ("r", "s"), "nested": ("n", "ns"), "jump": ("r", "n", "s"),
    "exec": ("r", "ns"), "fork": ("r", "ns"), "raised": ("h", "hs", "hn"),
}  # fmt: skip
EACH = [(kind, flags) for kind, of_kind in KINDS.items() for flags in of_kind]


@pytest.mark.parametrize(("kind", "flags"), EACH)
def test_handlers_under_load(as_alone: AsAlone, compiled: Compiled, kind: str, flags: str) -> None:
    assert as_alone([compiled("handled", "-rdynamic"), kind, flags, "200"]).out == "ok\n"


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["-O1", "-no-pie", "-O3"])
@pytest.mark.parametrize(("kind", "letters"), EACH)
def test_handlers_for_long(as_alone: AsAlone, compiled: Compiled, kind: str, letters: str, flags: str) -> None:
    program = compiled("handled", "-rdynamic", flags)
    assert as_alone([program, kind, letters, "3000"]).out == "ok\n"


@pytest.mark.xfail(strict=False, reason="a signal that waits for its thread goes to the end of the queue")
def test_the_order_of_a_queue(as_alone: AsAlone, compiled: Compiled) -> None:
    assert as_alone([compiled("handled", "-rdynamic"), "queued", "ro"]).out == "ok\n"


@pytest.mark.parametrize("limit", [20, 50])  # of all processes of the user together
def test_a_limit_on_pending_signals(as_alone: AsAlone, compiled: Compiled, limit: int) -> None:
    """A signal that waits until its thread is out of a trampoline waits in the kernel's queue. When that is full,
    none is lost, but the handler may see where the thread is.
    """
    run = as_alone(["prlimit", f"--sigpending={limit}", compiled("handled", "-rdynamic"), "queued", "rl"])
    assert run.out == "ok\n"


@pytest.mark.parametrize("how", ["map", "skip", "change", "jump", "child", "nest"])
def test_faults_that_are_mended(as_alone: AsAlone, compiled: Compiled, how: str) -> None:
    run = as_alone([compiled("mended", "-rdynamic"), how])
    assert run.status == 0
    assert "unwound 1" in run.out
    assert "unwound 0" not in run.out


@pytest.mark.parametrize("mode", ["warn", "fatal"])
@pytest.mark.parametrize("how", ["suspend", "wait", "together"])
def test_a_handlers_mask(as_alone: AsAlone, compiled: Compiled, how: str, mode: str) -> None:
    """What was in force before may be a mask of sigsuspend's, which the kernel alone knows."""
    assert as_alone([compiled("masks"), how], f"--split-lock-detect={mode}").status == 0


@pytest.mark.parametrize("engine", ["agent", "ptrace"])
@pytest.mark.parametrize("how", ["all", "set"])
def test_a_program_that_steps_itself(as_alone: AsAlone, compiled: Compiled, how: str) -> None:
    """It sees the same steps, none of ours."""
    assert as_alone([compiled("steps"), how]).out.endswith("outside 0\n")


def test_steps_to_a_split_lock(watch: Callable[..., Run], compiled: Compiled) -> None:
    """Our own code is stepped through, too; `fatal`: the lock itself does not execute."""
    run = watch([compiled("steps"), "hit"], "--split-lock-detect=fatal")
    assert run.status == 128 + signal.SIGBUS
    assert run.report["hits"] == 1
