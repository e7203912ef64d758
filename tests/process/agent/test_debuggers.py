"""Debuggers, tracers and crash handlers among what is watched find what they find alone."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import COMMAND
from process.agent.conftest import AsAlone, Compiled

GDB = ["gdb", "-batch", "-nx", "-ex", "set debuginfod enabled off", "-ex", "set pagination off"]
STEPS = pytest.mark.xfail(strict=True, reason="a step, or a watchpoint, stops in the arena, which gdb does not know")
SCRIPTS = {
    "breakpoints": [
        "break add",
        "break second",
        "run",
        "bt",
        "info args",
        "continue",
        "finish",
        "continue",
        "continue",
    ],
    "a library's": ["break abort", "run crash", "bt", "continue", "bt 4", "info program"],
    "a signal": ["run crash", "bt", "p *where", "frame function add", "info args", "info locals"],
    "before it runs": ["starti", "break main", "continue", "p $_siginfo", "tbreak second", "continue", "kill"],
    "a condition": ["break add if n == 3", "run", "p n", "p *where", "continue"],
}
Both = Callable[..., tuple[str, str]]


@pytest.fixture
def both(environment: dict[str, str], tmp_path: Path) -> Both:
    """`both(words, file="")`: what they print, or write to a file, alone and watched, but for numbers of processes."""

    def run(words: list[str], file: str = "") -> tuple[str, str]:
        said = []
        for before in ([], [*COMMAND, "run", "--engine=agent", "-q", "--"]):
            done = subprocess.run(
                [*before, *words],
                env=environment,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
                cwd=tmp_path,
            )
            text = done.stdout + done.stderr if not file else (tmp_path / file).read_text()
            changing = r"(process|pid|LWP|PID|Thread) \d+\b|0x0*7f[0-9a-f]+|^\d+ +|(?<=\[)\d+|si_\w+=\d+|wait4\(\d+"
            text = re.sub(changing, "N", text, flags=re.M)
            said.append(f"{done.returncode}\n{text}")
        return said[0], said[1]

    return run


@pytest.mark.parametrize("name", SCRIPTS)
def test_gdb(both: Both, compiled: Compiled, name: str) -> None:
    commands = [word for line in SCRIPTS[name] for word in ("-ex", line)]
    alone, ours = both([*GDB, *commands, str(compiled("stopped"))])
    assert sorted(ours.splitlines()) == sorted(alone.splitlines())  # gdb's lines and those of two programs
    assert "Breakpoint 1" in alone or "SIGABRT" in alone


@STEPS
@pytest.mark.parametrize("lines", [["next", "next", "next"], ["watch value", "continue", "bt"]])
def test_gdb_stops_at_a_locked_instruction(both: Both, compiled: Compiled, lines: list[str]) -> None:
    commands = [word for line in ("break add", "run", *lines) for word in ("-ex", line)]
    alone, ours = both([*GDB, *commands, str(compiled("stopped"))])
    assert ours == alone


@pytest.mark.parametrize("option", ["-f", "-ff", "--seccomp-bpf -f", "-D -f"])
def test_strace(both: Both, compiled: Compiled, option: str) -> None:
    """What the program itself does is in its log as alone; calls of ours are there too."""
    log = "log" if option != "-ff" else ""
    words = ["strace", *option.split(), "-o", "log", "-e", "trace=write,exit_group,kill", str(compiled("stopped"))]
    alone, ours = both(words, log)
    assert ours == alone


@pytest.mark.parametrize("how", ["sibling", "parent", "me"])
def test_a_tracer_of_its_own(as_alone: AsAlone, compiled: Compiled, how: str) -> None:
    as_alone([compiled("traced"), how])
