"""`fatal`: SIGBUS is the program's own: what it sets is there and inherited; where it dies it is at its instruction."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conftest import Run
from process.agent.conftest import AsAlone, Compiled

FATAL = "--split-lock-detect=fatal"
SHOW = "grep -E 'Sig(Blk|Ign|Cgt)' /proc/self/status"
PYTHON = """
import os, signal, subprocess
signal.signal(signal.SIGBUS, signal.{})
print(signal.getsignal(signal.SIGBUS), flush=True)
if os.fork() == 0:
    os.system("{}")
    os._exit(0)
os.wait()
subprocess.run(["grep", "SigIgn", "/proc/self/status"], restore_signals=False)
os.execlp("grep", "grep", "Sig[BIC]", "/proc/self/status")
"""


@pytest.mark.parametrize("before", ["", 'trap "" BUS; '])
@pytest.mark.parametrize("between", ["", "env ", "setsid -w "])
def test_what_is_inherited(as_alone: AsAlone, before: str, between: str) -> None:
    as_alone(["sh", "-c", f"{before}{between}{SHOW}; {before}exec {between}{SHOW}"], FATAL)


@pytest.mark.parametrize("what", ["SIG_IGN", "SIG_DFL", "default_int_handler"])
def test_what_is_set(as_alone: AsAlone, what: str) -> None:
    as_alone(["/usr/bin/python3", "-c", PYTHON.format(what, SHOW)], FATAL)


@pytest.mark.parametrize("how", ["default", "ignored", "blocked", "again", "inherited"])
def test_where_it_dies(watch: Callable[..., Run], compiled: Compiled, how: str) -> None:
    run = watch([compiled("doomed"), how], "-q", FATAL)
    assert run.out == "killed by 7, at its instruction: 1\n"
    assert run.report["hits"] == 1


def test_a_handler(watch: Callable[..., Run], compiled: Compiled) -> None:
    """Who traces sees where it is, as with any moved instruction."""
    run = watch([compiled("doomed"), "handled"], "-q", FATAL)
    assert run.out.startswith("exit 0")
    assert run.report["hits"] == 1
