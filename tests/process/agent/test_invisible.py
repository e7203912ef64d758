"""A program finds of itself what it finds alone: environment, vectors, images, descriptors, limits, signals."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Run, spent
from process.agent.conftest import AsAlone, Compiled

HOWS = ["fork", "vfork", "spawn", "clone3", "thread", "fd", "empty", "at", "bare", "null"]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user, or to change its root")


@pytest.mark.parametrize("how", HOWS)
def test_a_program_and_its_child(as_alone: AsAlone, compiled: Compiled, how: str) -> None:
    program = compiled("surroundings")
    run = as_alone([program, how, program], env={"EMPTY": "", "LD_BIND_NOT": "1"})
    assert run.out.count("\nauxv: ") == 2
    assert run.out.count("\nstatus SigCgt:") == 2


def test_a_child_of_a_child(as_alone: AsAlone, compiled: Compiled) -> None:
    """Through env -i, a shell, a script, and an interpreter's option."""
    program = compiled("surroundings")
    as_alone(["env", "-i", "A=1", "sh", "-c", f"{program} vfork /usr/bin/env; exec {program}"])


def test_what_others_say(as_alone: AsAlone) -> None:
    script = "env; ls -l /proc/self/fd | wc -l; ulimit -a; cat /proc/self/environ | tr '\\0' '\\n' | grep ."
    as_alone(["bash", "-c", script])


@pytest.mark.parametrize("lines", [0, 1, 500, 511, 512, 513, 600, 5000, 16383, 16384, 16385, 20000])
def test_environments_of_any_length(as_alone: AsAlone, compiled: Compiled, lines: int) -> None:
    run = as_alone([compiled("many"), str(lines)])
    assert run.out.split()[0] == str(lines)
    assert bool(run.report["unmonitored"]) == (lines >= 16384)  # said, where it is too long for us


@pytest.mark.parametrize("size", [7168, 8192, 16384])
def test_an_execution_on_a_small_stack(watch: Callable[..., Run], compiled: Compiled, size: int) -> None:
    """By a handler, on a stack for signals; 8,192 bytes are SIGSTKSZ."""
    run = watch([compiled("cramped"), str(size), compiled("splits")])
    assert (run.status, run.report["hits"]) == (0, 3), run.err


def test_no_descriptor_is_left(watch: Callable[..., Run], compiled: Compiled) -> None:
    """A program that is started when none is free for us is watched, or in the report."""
    run = watch(["prlimit", "--nofile=40", compiled("many"), "full", compiled("splits")])
    if not run.report["hits"]:
        spent(3)
    assert run.status == 0
    assert run.report["hits"] == 3 or run.report["unmonitored"]


@pytest.mark.parametrize("seed", [1, 2, *(pytest.param(s, marks=pytest.mark.slow) for s in range(3, 40))])
def test_dispositions(as_alone: AsAlone, compiled: Compiled, seed: int) -> None:
    assert as_alone([compiled("dispositions"), str(seed), "4000"]).out.count("\n") > 4000


def test_executions_that_fail(as_alone: AsAlone, compiled: Compiled, tmp_path: Path) -> None:
    assert as_alone([compiled("executions"), tmp_path]).out.count(": -1 ") > 70


@needs_root
def test_another_user_than_the_real_one(as_alone: AsAlone, compiled: Compiled) -> None:
    """ld.so takes no auditor for it; what it starts is in the report."""
    run = as_alone(["setpriv", "--ruid=65534", compiled("surroundings")])
    assert [u["reason"][:26] for u in run.report["unmonitored"]] == ["runs with other rights (se"]


@needs_root
def test_another_root(as_alone: AsAlone, compiled: Compiled, tmp_path: Path) -> None:
    """Where the agent's file is not; the program runs, and is in the report."""
    program = compiled("surroundings")
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    for path in (word for word in listed.split() if word.startswith("/")):
        (tmp_path / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / path[1:])
    (tmp_path / "many").write_bytes(compiled("many").read_bytes())
    (tmp_path / "many").chmod(0o755)
    run = as_alone(["chroot", tmp_path, "/many"])
    assert run.status == 0
    assert run.report["unmonitored"]
