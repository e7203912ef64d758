"""Executable memory page by page: what the tracer does for one page does not grow with how many there are.

Counted, not timed: calls of Python's and C functions in the tracer, and bytes read of /proc/PID/maps.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Program = Callable[..., Path]

COUNTED = """
import json, os, sys
from splitlock.linux import proc
from splitlock.process import launch, policy, tracer
calls = lines = 0
def count(frame, event, argument):
    global calls
    calls += event in ("call", "c_call")
real = proc.parse_maps
def parse(raw):
    global lines
    lines += raw.count(b"\\n")
    return real(raw)
proc.parse_maps = parse
child = launch.Child(sys.argv[1:])
run = tracer.Tracer(policy.Policy("warn"), quiet=True)
sys.setprofile(count)
run.run(child)
sys.setprofile(None)
print(json.dumps([run.exit_status, calls, lines, run.unmonitored()]))
"""


def _queries() -> bool:
    """Whether this kernel can be asked for one mapping (Linux 6.11)."""
    import fcntl

    try:
        with open("/proc/self/maps") as file:
            fcntl.ioctl(file, 0xC0686611, bytearray(104))
    except OSError as error:
        return error.errno != 25
    return True


@pytest.mark.parametrize("kind", ["written", "untouched", "toggled", "shared"])
def test_each_page_costs_the_same(environment: dict[str, str], program: Program, kind: str) -> None:
    if kind in ("untouched", "shared") and not _queries():
        pytest.skip("before Linux 6.11 all mappings are read for memory that was never written")
    binary = program("jitpages", "-O2")
    counted = {}
    for pages in (0, 100, 200, 400):
        done = subprocess.run(
            [sys.executable, "-c", COUNTED, str(binary), kind, str(pages)],
            env=environment, capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        status, calls, lines, unmonitored = json.loads(done.stdout.splitlines()[-1])
        assert status == 0, done.stderr
        counted[pages] = calls, lines
        told = sum(size for _, _, reason, size, _ in unmonitored if "made at run time" in reason)
        assert told == (pages if kind != "toggled" else min(pages, 1)) * 4096
    each = (counted[200][0] - counted[100][0]) / 100
    later = (counted[400][0] - counted[200][0]) / 200
    assert later < 1.2 * each + 5, counted
    # the mappings are read as a whole at the start and at the end, not once a page
    assert counted[400][1] - counted[0][1] < 4 * 2 * 400 + 200, counted
