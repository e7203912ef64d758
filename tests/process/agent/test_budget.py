"""What a fork and exec costs under the agent, counted: no stop, and a budget of system calls."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path

from conftest import COMMAND

BUDGET = 75  # more than alone, of which half are ld.so's, for one more object


def _calls(environment: dict[str, str], log: Path, words: list[str], programs: int) -> Counter[str]:
    """How often each system call was made in all, where a shell starts so many programs."""
    script = f"i=0; while [ $i -lt {programs} ]; do /bin/true; i=$((i+1)); done"
    subprocess.run(["strace", "-f", "-o", log, *words, "sh", "-c", script], env=environment, check=True)
    begun = (re.match(r"\d+ +(\w+)\(", line) for line in log.read_text().splitlines())
    return Counter(match[1] for match in begun if match)


def test_a_fork_and_exec(environment: dict[str, str], tmp_path: Path) -> None:
    ours = [*COMMAND, "run", "-q", "--"]
    subprocess.run([*ours, "sh", "-c", "/bin/true"], env=environment, check=True)  # analysed now
    alone, watched = (
        _calls(environment, tmp_path / "log", words, 30) - _calls(environment, tmp_path / "log", words, 10)
        for words in ([], ours)
    )
    assert alone["execve"] == watched["execve"] == 20
    more = watched - alone
    assert sum(more.values()) <= BUDGET * 20, more
    assert not watched["ptrace"]
