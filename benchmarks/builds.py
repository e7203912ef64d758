#!/usr/bin/env python3
"""What `configure` and `make -j2` of Debian's packages cost under `splitlock run`, and whether they make the same.

    benchmarks/builds.py                    ten minutes
    benchmarks/builds.py --rounds 5 --markdown docs/benchmarks.md

Processor time of all processes, and wall time; medians of pairs, alone and watched in turns, after one
pair that makes the caches ready. Fails where the objects, the program or config.h are not the same, byte for byte.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tables import Table, machine, number, publish

_SOURCE = Path(__file__).parents[1] / "src/splitlock/guest/bochs/source.sh"
_FRONT = str(Path(sys.executable).with_name("splitlock"))
PACKAGES = {"sed": "sed/sed", "grep": "src/grep"}  # and the program that it makes
STEPS = {"configure": ["./configure", "-q"], "make -j2": ["make", "-s", "-j2"]}
_WATCHED = [_FRONT, "run", "-q", "--"]


@dataclass(frozen=True)
class Build:
    """Seconds of each step, processor and wall; and what was made, as one digest."""

    processor: list[float]
    wall: list[float]
    made: str


def _step(words: Sequence[str], place: Path, environment: dict[str, str]) -> tuple[float, float]:
    with (place / "said").open("a") as said:
        begin = time.monotonic()
        process = subprocess.Popen(words, cwd=place, env=environment, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)}: exit status {process.returncode}; {place / 'said'} has its words")
    return usage.ru_utime + usage.ru_stime, time.monotonic() - begin


def _digest(place: Path, program: str) -> str:
    """Of config.h, all objects and archives, and the program; also of the names."""
    made = hashlib.sha256()
    files = [path for path in place.rglob("*") if path.suffix in (".o", ".a") or path.name == "config.h"]
    for path in sorted([*files, place / program]):
        made.update(f"{path.relative_to(place)}\\n".encode() + path.read_bytes())
    return f"{len(files)} {made.hexdigest()}"


def build(archive: Path, program: str, place: Path, watched: bool) -> Build:
    """Build a package anew, always in the same place: objects hold its name."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    subprocess.run(["tar", "-xf", archive, "-C", place, "--strip-components=1"], check=True)
    environment = {**os.environ, "FORCE_UNSAFE_CONFIGURE": "1", "LC_ALL": "C"}
    taken = [_step([*(_WATCHED if watched else []), *words], place, environment) for words in STEPS.values()]
    return Build([t[0] for t in taken], [t[1] for t in taken], _digest(place, program))


def measure(packages: Sequence[str], rounds: int, directory: Path) -> Table:
    """A row for each package's steps and their sum. Fails where a watched build makes another thing."""
    rows = [["", "alone", "splitlock", "ratio", "wall"]]
    for package in packages:
        pattern = f"{package}_*.orig.tar.*z"
        found = subprocess.run([_SOURCE, package, pattern, directory], stdout=subprocess.PIPE, text=True, check=True)
        archive = Path(found.stdout.strip())
        pairs = []
        for number_of in range(rounds + 1):
            alone, watched = (build(archive, PACKAGES[package], directory / package, w) for w in (False, True))
            if alone.made != watched.made:
                raise SystemExit(f"{package}: alone {alone.made}, watched {watched.made}")
            if number_of or not rounds:
                pairs.append((alone, watched))
        for name, steps in (*((step, [i]) for i, step in enumerate(STEPS)), ("both", [*range(len(STEPS))])):
            seconds = [[sum(one.processor[i] for i in steps) for one in pair] for pair in pairs]
            wall = [[sum(one.wall[i] for i in steps) for one in pair] for pair in pairs]
            medians = [number(statistics.median(pair[which] for pair in seconds)) for which in (0, 1)]
            ratios = [number(statistics.median(pair[1] / pair[0] for pair in two)) for two in (seconds, wall)]
            rows.append([f"{package}: {name}", *medians, *ratios])
    return Table("Processor time of all processes, seconds; wall time, alone = 1", rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packages", nargs="*", default=list(PACKAGES), help=f"of {', '.join(PACKAGES)}; all by default")
    parser.add_argument("--rounds", type=int, default=3, help="0: only whether the same is made")
    parser.add_argument("--markdown", type=Path, help="rewrite the section in this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        table = measure(args.packages, args.rounds, Path(name))
    heading = [machine(), f"Medians of {args.rounds} pairs; each pair has made the same bytes"]
    publish("builds", heading, [table], args.markdown)


if __name__ == "__main__":
    main()
