"""Calls that the agent hooks are made once, whenever signals come; and dispositions are each process's own."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import COMMAND
from process.agent.conftest import AsAlone, Compiled

from splitlock.process.agent.judged import AGENT

INSIDE = Path(AGENT).parent
READ, SHMCTL = 0, 31  # arch/x86/entry/syscalls/syscall_64.tbl


@pytest.mark.parametrize("what", ["sigaction", "map", "fixed", "attach", "filter", "forks", "behind"])
def test_calls_under_signals(as_alone: AsAlone, compiled: Compiled, what: str) -> None:
    run = as_alone([compiled("once"), what])
    assert run.out.startswith("wrong 0, memory more 0, attached 0, children that nobody wanted 0, filters ")
    assert run.out.count("\n") == 1
    assert run.report["watched"]["processes"] == (4001 if what == "forks" else 1)


def test_children_forked_while_a_thread_sets(as_alone: AsAlone, compiled: Compiled) -> None:
    assert as_alone([compiled("shared"), "fork", "1500"]).out == "hung 0, wrong 0\n"


def test_threads_that_exchange(as_alone: AsAlone, compiled: Compiled) -> None:
    assert as_alone([compiled("shared"), "exchange"]).out == "0 0 0 0 0 0 torn 0\n"


@pytest.mark.parametrize("how", ["vfork", "clone", "together", "spawn"])
@pytest.mark.parametrize("mode", ["warn", "fatal"])
def test_children_that_share_memory(as_alone: AsAlone, compiled: Compiled, how: str, mode: str) -> None:
    as_alone([compiled("shared"), how], f"--split-lock-detect={mode}")


@pytest.mark.parametrize("seed", [1, 2])
def test_dispositions_in_fatal(as_alone: AsAlone, compiled: Compiled, seed: int) -> None:
    """Where a handler of ours is there that the program has not set. More settings than the agent has entries for."""
    as_alone([compiled("dispositions"), str(seed), "4000"], "--split-lock-detect=fatal")


def test_clone3_with_arguments_anywhere(as_alone: AsAlone, compiled: Compiled) -> None:
    run = as_alone([compiled("births"), "bad"])
    assert run.report["watched"]["processes"] == 3


@pytest.mark.parametrize(("how", "processes"), [("fails", 1), ("all", 4)])
def test_forks_that_fail_are_no_processes(as_alone: AsAlone, compiled: Compiled, how: str, processes: int) -> None:
    assert as_alone([compiled("births"), how]).report["watched"]["processes"] == processes


@pytest.mark.parametrize("number", [READ, SHMCTL])
def test_a_filter_of_one_call(as_alone: AsAlone, compiled: Compiled, number: int) -> None:
    assert as_alone([compiled("forbids"), str(number)]).status == 7


def test_a_debugger_sees_who_forks(environment: dict[str, str], compiled: Compiled) -> None:
    """The agent makes that call, and a debugger stops there."""
    steps = ["-ex", "catch fork", "-ex", "run all", "-ex", "bt", "-ex", "kill", str(compiled("births", "-g"))]
    frames = []
    for before in ([], [*COMMAND, "run", "--engine=agent", "-q", "--"]):
        argv = [*before, "gdb", "-batch", "-nx", "-ex", "set debuginfod enabled off", *steps]
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)
        frames.append(re.findall(r"^#\d+ .*?(\w+) \(", done.stdout, re.MULTILINE))
    assert frames[1] == frames[0]  # behind one of ours, which has no name
    assert frames[0][-1] == "main"


def _called() -> Iterator[str]:
    for path in sorted(INSIDE.glob("*.c")):
        yield from re.findall(r"\bcall[1-6]\(NR_(\w+)", path.read_text())
    yield from (name.upper() for name in re.findall(r"\bmov \$NR_(\w+)", (INSIDE / "entry.S").read_text()))


def test_all_of_our_calls_are_asked_of_a_filter() -> None:
    text = (INSIDE / "filter.c").read_text()
    listed = re.findall(r"NR_(\w+)", text[text.index("ours[] = {") : text.index("};", text.index("ours[] = {"))])
    assert set(_called()) <= set(listed)
    assert len(set(listed)) == len(listed)
