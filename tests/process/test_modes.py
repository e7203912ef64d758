"""`--split-lock-detect=`: what each mode does to a program that takes split locks."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from conftest import Run

from splitlock.report.run import Report
from splitlock.report.run_text import render

Program = Callable[..., Path]


def test_warn_says_it_once_a_task_in_the_kernels_words(watch: Callable[..., Run], program: Program) -> None:
    run = watch([program("demo"), "30"])
    pattern = r"x86/split lock detection: #AC: demo/(\d+) took a split_lock trap at address: 0x[0-9a-f]+"
    lines = run.err.splitlines()
    tasks = [re.fullmatch(pattern, line) for line in lines]
    assert len(tasks) == 3
    assert all(tasks)
    assert len({m[1] for m in tasks if m}) == 3


def test_quiet_says_nothing_at_the_moment(watch: Callable[..., Run], program: Program) -> None:
    run = watch([program("demo"), "3"], "-q")
    assert run.err == ""
    assert run.report["hits"] == 3


def test_fatal_kills_before_the_lock_executes(watch: Callable[..., Run], program: Program) -> None:
    run = watch([program("demo"), "30"], "--split-lock-detect=fatal")
    assert run.status == 128 + 7
    assert run.report["exit_status"] == 128 + 7
    assert "served" not in run.out
    assert 1 <= run.report["hits"] <= 3
    text = render(msgspec.convert(run.report, Report))
    assert re.match(r"\d sites?, stopped before \d split locks? ", text)  # none was taken


def test_off_does_not_watch(watch: Callable[..., Run], program: Program) -> None:
    run = watch([program("demo"), "3"], "--split-lock-detect=off")
    assert (run.status, run.report["hits"], run.report["mode"]) == (0, 0, "off")
    assert run.report["unmonitored"] == [{"mapping": "everything", "reason": "split_lock_detect=off"}]


def test_ratelimit_holds_all_tasks_together_to_n_a_second(watch: Callable[..., Run], program: Program) -> None:
    start = time.monotonic()
    run = watch([program("demo"), "30"], "--split-lock-detect=ratelimit:10")
    assert run.report["hits"] == 30
    assert run.report["mode"] == "ratelimit:10"
    # 10 in the first second, 10 in the second, the last 10 no sooner than after two: not a speed test.
    assert time.monotonic() - start >= 2.0
    assert "#DB: demo/" in run.err
    assert "took a bus_lock trap at address: 0x" in run.err


def test_mitigate_sleeps_ten_milliseconds_and_runs_one_at_a_time(watch: Callable[..., Run], program: Program) -> None:
    run = watch([program("demo"), "30"], "--mitigate")
    assert (run.status, run.report["hits"]) == (0, 30)
    assert len(run.err.splitlines()) == 3
