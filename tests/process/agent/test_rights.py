"""Memory that a program gives other rights: it goes on as it would alone, and what it may execute is in the report."""

from __future__ import annotations

import pytest
from conftest import Run
from process.agent.conftest import AsAlone, Compiled

_JIT = "code made at run time (JIT)"


def _made(run: Run) -> list[dict[str, object]]:
    return [u for u in run.report["unmonitored"] if u["reason"] == _JIT]


@pytest.mark.parametrize("seed", range(12))
def test_calls_give_what_they_give_alone(as_alone: AsAlone, compiled: Compiled, seed: int) -> None:
    """Random ones, and wrong ones, which change nothing."""
    as_alone([compiled("rights", "-O2", "-pthread"), str(seed)])


@pytest.mark.parametrize("how", ["text", "same", "locked", "turns"])
def test_threads_that_execute_there_go_on(as_alone: AsAlone, compiled: Compiled, how: str) -> None:
    program = compiled("races", "-O2", "-pthread")
    assert as_alone([program, how, "5" if how == "turns" else "60"]).out == "0\n"


def test_a_forked_child_waits_for_nobody(as_alone: AsAlone, compiled: Compiled) -> None:
    run = as_alone([compiled("races", "-O2", "-pthread"), "forks", "20"])
    assert run.out == "0\n"
    assert _made(run)


def test_more_code_than_is_kept_count_of(as_alone: AsAlone, compiled: Compiled) -> None:
    """Its size is told all the same, and its number of locked instructions is not."""
    [made] = _made(as_alone([compiled("races", "-O2", "-pthread"), "turns", "1"]))
    assert made["bytes"] == 1500 * 4096
    assert made.get("sites") is None


@pytest.mark.parametrize(
    ("how", "flags", "library"),
    [
        ("stack", ("-zexecstack",), ()),
        ("thread", ("-zexecstack",), ()),
        ("thread", (), ("-zexecstack",)),
        ("library", (), ("-zexecstack",)),
        ("data", (), ()),
    ],
)
def test_memory_that_nobody_asked_to_execute(
    as_alone: AsAlone, compiled: Compiled, how: str, flags: tuple[str, ...], library: tuple[str, ...]
) -> None:
    opened = [compiled("bump.so", *library)] if library else []
    run = as_alone([compiled("stack", "-pthread", *flags), how, *opened])
    assert run.out == "1\n"
    [made] = _made(run)
    assert made.get("sites") is None


def test_a_library_that_is_there_from_the_start(as_alone: AsAlone, compiled: Compiled) -> None:
    library = compiled("bump.so", "-zexecstack")
    program = compiled("stack", "-pthread", "-Wl,--no-as-needed", str(library), "-Wl,--as-needed")
    assert _made(as_alone([program, "stack"]))


def test_a_stack_like_others_is_no_code(as_alone: AsAlone, compiled: Compiled) -> None:
    run = as_alone([compiled("stack", "-pthread"), "none", compiled("bump.so")])
    assert not run.report["unmonitored"]
