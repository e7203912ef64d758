#!/usr/bin/env python3
"""What `splitlock watch` takes to read a long log: time, and memory that does not grow with it.

    benchmarks/watch.py                     a minute
    benchmarks/watch.py --rounds 5 --markdown docs/benchmarks.md

The lines are the kernel's, all different; others are what else a kernel logs, as a log mostly is.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tables import Table, machine, number, publish

_WATCH = [sys.executable, "-m", "splitlock", "watch", "-q", "-o", os.devnull]


# A log that begins with the boot, of a kernel that detects: of another, nothing is told (exit status 2).
_BOOT = (
    "[    0.000000] Linux version 6.12.0 (box) (gcc) #1 SMP\n"
    "[    0.100000] x86/split lock detection: #AC: crashing the kernel on kernel split_locks and warning on user-space "
    "split_locks\n"
)


def _trap(count: int) -> str:
    who, address = f"task{count % 50_000}/{1000 + count % 4_000_000}", 0x400000 + count
    return (
        f"[{count / 1000:12.6f}] x86/split lock detection: #AC: {who} took a split_lock trap at address: {address:#x}\n"
    )


def _other(count: int) -> str:
    return f"[{count / 1000:12.6f}] usb 1-1: new high-speed USB device number {count} using xhci_hcd\n"


_LOGS: list[tuple[str, Callable[[int], str], int]] = [
    ("traps", _trap, 100_000),
    ("traps", _trap, 1_000_000),
    ("other lines", _other, 1_000_000),
]


def _once(log: Path) -> tuple[float, float, float]:
    """Seconds by the clock, of processor time, and MiB."""
    begin = time.monotonic()
    _, status, usage = os.wait4(os.posix_spawn(sys.executable, [*_WATCH, str(log)], os.environ), 0)
    if os.waitstatus_to_exitcode(status) not in (0, 1):
        raise SystemExit(f"splitlock watch {log}: status {status}")
    return time.monotonic() - begin, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def measure(rounds: int) -> Table:
    """Medians of all rounds, each log in turn."""
    with tempfile.TemporaryDirectory() as name:
        logs = []
        for count, (what, line, lines) in enumerate(_LOGS):
            logs.append((f"{lines:,} {what}", Path(name, str(count))))
            with logs[-1][1].open("w") as file:  # never whole in memory: a process begins with its parent's peak
                file.write(_BOOT)
                file.writelines(map(line, range(lines)))
        taken = [[_once(log) for _, log in logs] for _ in range(rounds)]
    rows = [["", "clock s", "CPU s", "MiB"]]
    for place, (what, _) in enumerate(logs):
        rows.append([what, *(number(statistics.median(each[place][figure] for each in taken)) for figure in range(3))])
    return Table("Medians.", rows)


def main() -> None:
    """Measure, print, and keep where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="each log, in turns (default: 3)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="rewrite FILE between watch:begin and watch:end")
    arguments = parser.parse_args()
    heading = [f"{machine()}, load {os.getloadavg()[0]:.2f} before", f"{arguments.rounds} rounds, each log in turns"]
    publish("watch", heading, [measure(arguments.rounds)], arguments.markdown)


if __name__ == "__main__":
    main()
