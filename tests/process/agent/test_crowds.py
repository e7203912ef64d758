"""Each thread's first split lock at a site is told once, however many threads there are. No lock executes."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import COMMAND, Run
from process.agent.conftest import Compiled

SITES = 3


@pytest.mark.parametrize("threads", [1, 40, 300, 1300])
def test_each_thread_at_each_site(watch: Callable[..., Run], compiled: Compiled, threads: int) -> None:
    rounds = 4
    run = watch([compiled("crowd"), "line", threads, rounds], "-q", "--split-lock-detect=fatal")
    assert run.out == "{0} calls, {0} for SIGBUS\n".format(threads * rounds * SITES)
    assert run.report["unmonitored"] == []
    assert [(site["hits"], site["threads"]) for site in run.report["sites"]] == [(threads * rounds, threads)] * SITES


def test_who_is_known_asks_no_more(compiled: Compiled, environment: dict[str, str], tmp_path: Path) -> None:
    """In `warn` the entry looks by itself; who it does not know asks for its name."""
    threads, log = 200, tmp_path / "log"
    program = [str(compiled("crowd")), "page", str(threads), "5"]
    strace = ["strace", "-f", "-qq", "-o", str(log), "-e", "trace=prctl"]
    run = [*strace, *COMMAND, "run", "--engine=agent", "-q", "-o", str(tmp_path / "report"), "--", *program]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{threads * 5 * SITES} calls, 0 for SIGBUS\n"
    asked = Counter(line.split()[0] for line in log.read_text().splitlines() if "prctl(PR_GET_NAME" in line)
    assert list(asked.values()).count(SITES) == threads, asked
    assert max(asked.values()) == SITES


def test_few_cost_little_memory(compiled: Compiled, watch: Callable[..., Run]) -> None:
    """The table is large, but of its pages only those are there that are used."""
    smaps = "awk '/Private_Dirty/ {all += $2} END {print all}' /proc/$PPID/smaps"
    program = compiled("crowd")
    alone = subprocess.run([program, "line", "0", "0", smaps], capture_output=True, text=True, check=False)
    run = watch([program, "line", "1", "1", smaps], "-q", "--split-lock-detect=fatal")
    assert int(run.out.split()[0]) - int(alone.stdout.split()[0]) < 200
