"""Programs that filter their own system calls: no call of ours is among those that kill them, and they stay watched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Run
from process.agent.conftest import AsAlone, Compiled

ACTIONS = ["kill", "errno", "trap", "listen", "high", "all"]
WHATS = ["hit", "handler", "bare handler", "make", "fork", "nothing"]


@pytest.mark.parametrize("what", WHATS)
@pytest.mark.parametrize("action", ACTIONS)
def test_only_calls_that_the_program_makes(as_alone: AsAlone, compiled: Compiled, action: str, what: str) -> None:
    """`bare handler` allows not even rt_sigprocmask; three split locks in `hit`."""
    run = as_alone([compiled("filtered"), action, what])
    assert (run.status, run.out) == (7, f"{what}\n")
    assert run.report["hits"] == (3 if what == "hit" else 0)


def test_strict(as_alone: AsAlone, compiled: Compiled) -> None:
    assert as_alone([compiled("filtered"), "strict", "nothing"]).status == 7


@pytest.mark.parametrize("action", ["errno", "kill", "trap", "listen"])
def test_inherited_over_exec(as_alone: AsAlone, compiled: Compiled, action: str) -> None:
    """By a program for which it has what ld.so and libc need, but not what we do."""
    run = as_alone([compiled("filtered"), action, "exec", "/bin/true"])
    assert run.status == 0
    assert [u["reason"][:31] for u in run.report["unmonitored"]] == ["the program's own seccomp filte"]


@pytest.mark.parametrize("what", ["earlier", "once", "failed once"])
@pytest.mark.parametrize("action", ["kill", "strict"])
def test_a_handler_from_before(as_alone: AsAlone, compiled: Compiled, action: str, what: str) -> None:
    """The filter does not allow rt_sigprocmask. `once`: SA_RESETHAND; `failed`: a filter was refused before."""
    assert as_alone([compiled("filtered"), action, what]).out == f"handled\n{what}\n"


def test_made_code_is_named(as_alone: AsAlone, compiled: Compiled) -> None:
    run = as_alone([compiled("filtered"), "kill", "make"])
    assert [u["reason"] for u in run.report["unmonitored"]] == ["code made at run time (JIT)"]


@pytest.mark.parametrize("action", ["all", "high"])
def test_a_program_under_a_filter_is_watched(watch: Callable[..., Run], compiled: Compiled, action: str) -> None:
    program = compiled("splits")
    run = watch([compiled("filtered"), action, "exec", program])
    assert (run.status, sum(run.hits(program).values())) == (0, 3), run.err


def test_a_library_opened_under_a_filter_is_watched(watch: Callable[..., Run], compiled: Compiled) -> None:
    """The filter allows all; the library is known from before."""
    words: list[str | Path] = [compiled("filtered"), "all", "open", compiled("bump.so")]
    for _ in range(2):
        run = watch(words)
    assert sum(run.hits(compiled("bump.so")).values()) == 3, run.err
