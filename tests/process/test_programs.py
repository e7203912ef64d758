"""Programs that do what makes patching hard: signals, filters, threads that exec, vfork, code made at run time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Run

Program = Callable[..., Path]


@pytest.mark.parametrize(
    ("name", "words", "hits", "status"),
    [
        ("demo", ["30"], 30, 0),
        ("vfork", [], 2, 0),
        ("clonevm", [], 3, 0),
        ("execthread", [], 2, 0),
        ("exitgroup", [], 0, 7),
        ("ownfilter", ["errno"], 3, 0),
        ("ownfilter", ["kill"], 3, 0),
        ("ownfilter", ["trap"], 3, 0),
        ("sigtrap", ["block"], 2, 0),
        ("sigtrap", ["ignore"], 2, 0),
        ("sigtrap", ["handle"], 2, 0),
        ("signals", [], 0, 0),
    ],
)
@pytest.mark.parametrize("flags", [("-O2",), ("-O2", "-static")], ids=["pie", "static"])
def test_hits_and_exit_status(
    watch: Callable[..., Run],
    program: Program,
    name: str,
    words: list[str],
    hits: int,
    status: int,
    flags: tuple[str, ...],
) -> None:
    run = watch([program(name, *flags), *words])
    assert (run.status, run.report["exit_status"]) == (status, status), run.out + run.err
    assert run.report["hits"] == hits
    assert not any(u.get("mapping") == "processes" for u in run.report["unmonitored"])


def test_code_made_at_run_time_is_reported_as_unmonitored(watch: Callable[..., Run], program: Program) -> None:
    run = watch([program("mmapjit")])
    assert run.status == 0
    assert run.report["hits"] == 0
    (rest,) = (u for u in run.report["unmonitored"] if "mapping" in u)
    assert (rest["mapping"], rest["bytes"], rest["sites"]) == ("anonymous executable memory", 4096, 1)


def test_a_signal_never_shows_a_handler_our_addresses_while_locks_split(
    watch: Callable[..., Run], program: Program
) -> None:
    """The handlers of signals.c check rip themselves; with sampling at 1 kHz and nothing to warn of."""
    for mode in ("warn", "fatal"):
        assert watch([program("signals")], f"--split-lock-detect={mode}").status == 0


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ([], 0, "SIGBUS code=1 addr=(nil) rip_is_site=1 counter=0"),
        (["skip"], 0, "SIGBUS code=1 addr=(nil) rip_is_site=1 counter=0"),
        (["block"], 128 + 7, ""),
        (["ignore"], 128 + 7, ""),
    ],
)
def test_fatal_is_the_kernels_sigbus(
    watch: Callable[..., Run], program: Program, words: list[str], status: int, said: str
) -> None:
    run = watch([program("sigbus"), *words], "--split-lock-detect=fatal")
    assert (run.status, run.out.splitlines()[:1]) == (status, [said] if said else [])
    assert run.report["hits"] == 1
    assert "trap alignment check ip:" in run.err
