#!/usr/bin/env python3
"""What single steps of a program cost under `splitlock run`: starting it, signals, threads, forks, executions, memory.

    benchmarks/steps.py                     each engine beside native, some minutes
    benchmarks/steps.py --peers strace,valgrind --markdown docs/benchmarks.md

Processor time; medians of rounds in which the peers take turns. Under load means beside four processes that do nothing
but spin.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tables import Table, machine, number, publish, version

_HERE = Path(__file__).parent
_FRONT = str(Path(sys.executable).with_name("splitlock"))
NATIVE = "native"
PEERS = {
    NATIVE: [], "splitlock": [_FRONT, "run", "-q", "--"], "ptrace": [_FRONT, "run", "-q", "--engine=ptrace", "--"],
    "strace": ["strace", "-f", "-o", "/dev/null"], "qemu": ["qemu-x86_64"],
    "valgrind": ["valgrind", "--tool=none", "-q", "--trace-children=yes"],
}  # fmt: skip
#: what, how often a round, whether it is done under load too, and its unit in nanoseconds
STEPS = (
    ("signal", 20_000, True, 1e3), ("thread", 4_000, True, 1e3), ("fork", 1_000, True, 1e3), ("exec", 200, False, 1e6),
    ("posix_spawn", 200, False, 1e6),
)  # fmt: skip
_UNITS = {1e3: "µs", 1e6: "ms"}
_SLOWER = 20  # times fewer steps for those that take long
_SPINNERS = 4


def _run(words: Sequence[str], environment: dict[str, str]) -> tuple[str, float]:
    """What it prints, and the CPU seconds of it all: children that are waited for are their parent's."""
    read, write = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, write, 1)]
    pid = os.posix_spawnp(words[0], list(words), environment, file_actions=actions)
    os.close(write)
    with os.fdopen(read) as file:
        said = file.read()
    _, status, usage = os.wait4(pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(words)}: exit status {os.waitstatus_to_exitcode(status)}")
    return said, usage.ru_utime + usage.ru_stime


@contextmanager
def load(spinners: int) -> Iterator[None]:
    """So many processes that do nothing but spin."""
    running = [subprocess.Popen([sys.executable, "-I", "-c", "while True: pass"]) for _ in range(spinners)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def start(peers: list[str], rounds: int, environment: dict[str, str]) -> Table:
    """A program that does nothing."""
    taken: dict[str, list[float]] = {peer: [] for peer in peers}
    for _ in range(rounds):
        for peer in peers:
            taken[peer].append(_run([*PEERS[peer], "/bin/true"], environment)[1] * 1e3)
    native = statistics.median(taken[NATIVE])
    row = ["/bin/true, ms", *(number(statistics.median(taken[p]) - (native if p != NATIVE else 0)) for p in peers)]
    return Table("Start to end: native's CPU time, and what the others take beyond it.", [["", *peers], row])


def steps(program: Path, peers: list[str], rounds: int, environment: dict[str, str]) -> Table:
    """Each step in a process that is watched already: the time of the program and its children."""
    rows = [["", *peers]]
    for what, count, under_load, unit in STEPS:
        for spinners in (0, _SPINNERS) if under_load else (0,):
            taken: dict[str, list[float]] = {peer: [] for peer in peers}
            with load(spinners):
                for _ in range(rounds):
                    for peer in peers:
                        many = count if peer in (NATIVE, "splitlock") else count // _SLOWER
                        said, _ = _run([*PEERS[peer], str(program), what, str(many)], environment)
                        taken[peer].append(float(said) / unit)
            native = statistics.median(taken[NATIVE])
            cells = [number(native)]
            for peer in peers[1:]:
                value = statistics.median(taken[peer])
                cells.append(f"{number(value)} ({number(value / native)})")
            rows.append([f"{what}, {_UNITS[unit]}{', under load' if spinners else ''}", *cells])
    kept = [int(_run([*PEERS[peer], str(program), "private"], environment)[0]) for peer in peers[:2]]
    rows.append(["private memory, kB", *map(str, kept), *[""] * (len(peers) - 2)])
    return Table("CPU time of one step in the program and its children, and how many times native's.", rows)


def main() -> None:
    """Measure, print, and keep where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--peers", default="ptrace", metavar="NAMES", help="besides native and splitlock (default: ptrace)"
    )
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="each, in turns (default: 9)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="rewrite FILE between steps:begin and steps:end")
    arguments = parser.parse_args()
    peers = [NATIVE, "splitlock", *(name for name in arguments.peers.split(",") if name)]
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        program = Path(name, "steps")
        subprocess.run(["cc", "-O2", "-pthread", "-o", program, str(_HERE / "programs" / "steps.c")], check=True)
        environment = {**os.environ, "XDG_CACHE_HOME": str(Path(name, "cache"))}
        _run([_FRONT, "run", "-q", "--", str(program), "exec", "1"], environment)  # all is analysed now
        tables = [start(peers, 3 * arguments.rounds, environment), steps(program, peers, arguments.rounds, environment)]
    versions = [version([PEERS[peer][0], "--version"]) for peer in peers[1:]]
    heading = [f"{machine()}, load {before:.2f} before", *dict.fromkeys(versions)]
    publish("steps", heading, tables, arguments.markdown)


if __name__ == "__main__":
    main()
