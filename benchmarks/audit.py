#!/usr/bin/env python3
"""What judging kernel modules costs: `splitlock scan` beside objdump and beside unpacking the package.

    benchmarks/audit.py PACKAGE.deb                      a linux-image package; some 5 minutes
    benchmarks/audit.py PACKAGE.deb --rounds 1           one round
    benchmarks/audit.py PACKAGE.deb --markdown docs/benchmarks.md

The peers take turns, since a machine's speed changes from minute to minute; a ratio is that of two times in one
round. CPU seconds are those of all processes of a run (user and system), as wait4(2) has them.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tables import Table, machine, median, number, publish, spread, version

SCAN = [sys.executable, "-m", "splitlock", "scan", "-q"]
# What the article's patch looked for, and little more: what somebody without splitlock would type.
OBJDUMP = r"""find "$0" -name '*.ko' -print0 | xargs -0 -n 1 objdump -d |
grep -cE '\b(vm(launch|resume|xon|xoff|ptrld|ptrst|clear|read|write|func|run|load|save)|inv(ept|vpid)|(st|cl)gi)\b'"""
# One module as the gate has it: contents in memory, then findings and verdict.
ONE = """
import sys, time
from pathlib import Path
from splitlock.modules.policy import load
from splitlock.modules.scan import scan
from splitlock.modules.verdict import judge
policy, times = load("refuse"), []
for path in sorted(Path(sys.argv[1]).rglob("*.ko")):
    data = path.read_bytes()
    begin = time.perf_counter_ns()
    judge(scan(data, digest=False), policy, data)
    times.append(time.perf_counter_ns() - begin)
times.sort()
print(len(times), *(times[int(len(times) * part)] / 1e6 for part in (0.5, 0.99, 0.999)), times[-1] / 1e6)
"""


def timed(command: list[str], statuses: tuple[int, ...] = (0,)) -> tuple[float, float, bytes]:
    """Run it: seconds by the clock, CPU seconds, standard output. Raises SystemExit on another exit status."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    wall = time.perf_counter() - begin
    if done.returncode not in statuses:
        raise SystemExit(f"{' '.join(command[:3])}: exit status {done.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


class Peers:
    """Times of the commands that were run, by name and round."""

    def __init__(self) -> None:
        self.wall: dict[str, list[float]] = {}
        self.cpu: dict[str, list[float]] = {}

    def run(self, name: str, command: list[str], statuses: tuple[int, ...] = (0,)) -> bytes:
        """One run; gives its standard output."""
        wall, cpu, out = timed(command, statuses)
        self.wall.setdefault(name, []).append(wall)
        self.cpu.setdefault(name, []).append(cpu)
        print(f"{name}: {wall:.2f} s, CPU {cpu:.2f} s", file=sys.stderr)
        return out

    def row(self, name: str, beside: str) -> list[str]:
        """Its line in a table."""
        walls, cpus = self.wall[name], self.cpu[name]
        return [
            name,
            median(walls),
            median(cpus),
            "" if name == beside else spread(_ratios(self.wall[beside], walls)),
            "" if name == beside else spread(_ratios(self.cpu[beside], cpus)),
        ]


def _ratios(over: list[float], under: list[float]) -> list[float]:
    return [a / b for a, b in zip(over, under, strict=True)]


def measure(package: Path, rounds: int) -> list[Table]:
    """All of it, on one package."""
    peers, single = Peers(), []
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory) / "tree"
        modules = str(tree / "lib" / "modules")
        tiny = "/bin/true"  # start-up, and one small file
        unpack: Callable[[], list[str]] = lambda: ["dpkg-deb", "-x", str(package), str(tree)]  # noqa: E731
        timed(unpack())
        for name in (modules, tiny, str(package)):  # unmeasured: files get into memory
            timed([*SCAN, name], (0, 1))
        for _ in range(rounds):
            peers.run("objdump | grep", ["sh", "-c", OBJDUMP, modules])
            peers.run("scan -j 1", [*SCAN, "-j", "1", modules], (0, 1))
            peers.run("scan", [*SCAN, modules], (0, 1))
            peers.run("start-up", [*SCAN, "-j", "1", tiny])
            shutil.rmtree(tree)
            peers.run("dpkg-deb -x", unpack())
            peers.run("scan, .deb", [*SCAN, str(package)], (0, 1))
            *_, out = timed([sys.executable, "-c", ONE, modules])
            single.append([float(word) for word in out.split()])
    net = [a - b for a, b in zip(peers.cpu["scan -j 1"], peers.cpu["start-up"], strict=True)]
    count = int(single[0][0])
    header = ["", "s", "CPU s", "s, times faster", "CPU, times faster"]
    return [
        Table(
            f"All {count:,} modules, unpacked, in memory. Of scan's CPU time {spread(net)} s come after start-up "
            f"(a scan of {tiny} takes {median(peers.cpu['start-up'])} s).",
            [header, *(peers.row(name, "objdump | grep") for name in ("objdump | grep", "scan -j 1", "scan"))],
        ),
        Table(
            f"The package itself: scan's time is {spread(_ratios(peers.wall['scan, .deb'], peers.wall['dpkg-deb -x']))}"
            " times that of unpacking it.",
            [header, *(peers.row(name, "dpkg-deb -x") for name in ("dpkg-deb -x", "scan, .deb"))],
        ),
        Table(
            "One module, in process: findings and verdict, milliseconds.",
            [
                ["", "median", "99 %", "99.9 %", "most"],
                ["", *(number(statistics.median(row[at] for row in single)) for at in (1, 2, 3, 4))],
            ],
        ),
    ]


def main() -> None:
    """Measure, print, and keep where asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s PACKAGE.deb [options]",
    )
    parser.add_argument("package", type=Path)
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="(default: 3)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="rewrite FILE between audit:begin and audit:end")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    tables = measure(arguments.package, arguments.rounds)
    heading = [
        f"{machine()}, load {load:.2f} before",
        "; ".join(map(version, ([*SCAN[:3], "--version"], ["objdump", "--version"], ["dpkg-deb", "--version"]))),
        f"{arguments.package.name}; {arguments.rounds} rounds, interleaved; median, least..greatest",
    ]
    publish("audit", heading, tables, arguments.markdown)


if __name__ == "__main__":
    main()
