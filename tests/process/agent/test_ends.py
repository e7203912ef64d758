"""A run ends when all have ended whom it watches, or when it is told to: then the report says who goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import COMMAND, SPLITLOCK, Run

BETWEEN = r"""
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <fcntl.h>
int main(int argc, char **argv)
{
    int ends[2];
    char byte;
    (void)argc;
    pipe2(ends, O_CLOEXEC);
    pid_t child = fork();
    if (!child) {
        execv(argv[1], argv + 1);
        _exit(9);
    }
    close(ends[1]);
    read(ends[0], &byte, 1); /* until it executes: its old memory is gone, its agent has not begun */
    kill(child, SIGSTOP);
    if (!fork()) {
        setsid();
        usleep(atoi(argv[argc - 1]) * 1000);
        kill(child, SIGCONT);
        _exit(0);
    }
    _exit(0);
}
"""


@pytest.fixture(scope="module")
def between(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that ends while what it has executed is stopped, for so many milliseconds (last argument)."""
    place = tmp_path_factory.mktemp("between")
    (place / "between.c").write_text(BETWEEN)
    subprocess.run(["gcc", "-O1", "-w", "-o", place / "between", place / "between.c"], check=True)
    return place / "between"


@pytest.mark.parametrize("command", [COMMAND, SPLITLOCK], ids=["front", "python"])
def test_what_is_executed_is_waited_for(
    environment: dict[str, str], between: Path, tmp_path: Path, command: list[str]
) -> None:
    """It has no agent yet when the program ends. Stopped there for a moment: it is waited for, and was watched."""
    watched = 0
    for number in range(10):
        log = tmp_path / f"log{number}"
        script = f"sleep 0.3; echo done >{log}"
        words = [*command, "run", "--engine=agent", "--", str(between), "/bin/sh", "-c", script, "150"]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0
        if "unmonitored: nothing" in done.stderr:
            assert log.exists(), "it runs on, and the report says that all was watched"
            watched += 1
        else:  # it took longer than anybody waits
            assert "ran unwatched" in done.stderr
    assert watched > 5


@pytest.mark.parametrize("command", [COMMAND, SPLITLOCK], ids=["front", "python"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_told_to_end(environment: dict[str, str], command: list[str], number: signal.Signals, tmp_path: Path) -> None:
    """When only processes in the background are left, a signal ends the run, not them."""
    script = f"(sleep 2; echo on >{tmp_path}/on) </dev/null >/dev/null 2>&1 & exit 3"
    words = [*command, "run", "--engine=agent", "--unmonitored-exitcode=77", "--", "sh", "-c", script]
    process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
    time.sleep(1)
    begin = time.monotonic()
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert (process.returncode, "still run" in said) == (77, True), said
    assert not (tmp_path / "on").exists(), f"it was waited for: {time.monotonic() - begin:.2f} s"
    time.sleep(2.5)
    assert (tmp_path / "on").exists()


TELLING = """
import struct
memory = [int(line.split("-")[0], 16) for line in open("/proc/self/maps") if "SYSV" in line][0]
with open("/proc/self/mem", "r+b", buffering=0) as file:
    file.seek(memory)
    assert file.read(8) == b"SPLKUNR1"
    file.seek(memory + 44)  # run.h: tasks_used
    used, = struct.unpack("<I", file.read(4))
    file.seek(memory + 44)
    file.write(struct.pack("<I", used + 1))
"""


def test_one_that_dies_while_it_tells(watch: Callable[..., Run], program: Callable[..., Path]) -> None:
    """Its entry is never whole (here: it is taken, and left as it is); the others' are told all the same."""
    script = f"/usr/bin/python3 -I -c '{TELLING}' && {program('sigbus')}"
    run = watch(["sh", "-c", script], "--split-lock-detect=fatal")
    assert [os.path.basename(site["image"]) for site in run.report["sites"]] == ["sigbus"]
    assert run.err.count("traps: sigbus[") == 1, run.err
    assert ["1 more first" in line["reason"] for line in run.report["unmonitored"]] == [True]


def test_names_that_a_terminal_would_obey(
    watch: Callable[..., Run], program: Callable[..., Path], tmp_path: Path
) -> None:
    """A task's name and a file's are the program's choice."""
    named = tmp_path / "k\n\x1b[31mfake"
    named.hardlink_to(program("sigbus"))
    run = watch([named], "--split-lock-detect=fatal")
    assert "\x1b" not in run.err
    assert "traps: k\\n\\x1b[31mfake[" in run.err


@pytest.mark.parametrize("command", [COMMAND, SPLITLOCK], ids=["front", "python"])
def test_who_cannot_begin_is_waited_for_once(environment: dict[str, str], command: list[str]) -> None:
    """By whoever has begun the run: not by Python again, behind the front."""
    if os.geteuid():
        pytest.skip("needs root: another IPC namespace")
    words = [*command, "run", "--engine=agent", "--", "unshare", "-i", "true"]
    took = []
    for _ in range(4):
        begin = time.monotonic()
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True, timeout=60)
        took.append(time.monotonic() - begin)
        assert "1 ran unwatched" in done.stderr
    assert min(took) < 1.9, took
