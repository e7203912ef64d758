#!/usr/bin/env python3
"""What it takes to make an image ready for `splitlock run`, once a file: processor time and memory.

    benchmarks/plans.py                     what is installed, a minute
    benchmarks/plans.py /usr/lib/firefox-esr/libxul.so --before ../old --rounds 3 --markdown docs/benchmarks.md

Nothing is run but the analysis. `--before` names another checkout, to measure beside this one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

from tables import Table, machine, number, publish

_HERE = Path(__file__).parents[1]
_LIBRARIES = "/usr/lib/x86_64-linux-gnu"
_INSTALLED = [
    f"{_LIBRARIES}/libc.so.6", f"{_LIBRARIES}/libstdc++.so.6", f"{_LIBRARIES}/libcrypto.so.3", "/usr/bin/python3.11",
    "/usr/bin/node", "/usr/lib/jvm/default-java/lib/server/libjvm.so", "/usr/lib/firefox-esr/libxul.so",
    "/usr/lib/chromium/chromium",
]  # fmt: skip
# The analysis as the agent's supervisor makes it, in a process of its own; the number of sites as its output.
_BUILD = """
import sys
sys.path.insert(0, sys.argv[1])
from splitlock.process.agent.image import make
with open(sys.argv[2], "rb", buffering=0) as file:
    print(len(make(file.read(), (0,) * 5)[1].sites))
"""

Taken = tuple[float, float]  # seconds of processor time, MiB


def _once(source: Path, image: str, output: Path) -> Taken:
    command = [sys.executable, "-I", "-c", _BUILD, str(source / "src"), image]
    opened = (os.POSIX_SPAWN_OPEN, 1, str(output), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    _, status, usage = os.wait4(os.posix_spawn(sys.executable, command, os.environ, file_actions=[opened]), 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{image}: cannot be analysed by {source}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def measure(images: list[str], sources: list[Path], rounds: int) -> Table:
    """Medians of all rounds, each checkout in turns. Fails where they find different numbers of sites."""
    heading = [["before, CPU s", "MiB"], ["CPU s", "MiB"]][-len(sources) :]
    rows = [["", "MB", "sites", *(cell for pair in heading for cell in pair)]]
    with tempfile.TemporaryDirectory() as name:
        output = Path(name, "sites")
        for image in images:
            taken: list[list[Taken]] = [[] for _ in sources]
            sites = set()
            for _ in range(rounds):
                for place, source in enumerate(sources):
                    taken[place].append(_once(source, image, output))
                    sites.add(output.read_text().strip())
            (count,) = sites
            medians = [number(statistics.median(each)) for peer in taken for each in zip(*peer, strict=True)]
            rows.append([Path(image).name, number(os.stat(image).st_size / 1e6), f"{int(count):,}", *medians])
    return Table("The whole process, the start of Python included: medians.", rows)


def main() -> None:
    """Measure, print, and keep where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", metavar="FILE", help="besides what is installed")
    parser.add_argument("--before", type=Path, metavar="DIR", help="another checkout of splitlock, to measure too")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="each image, in turns (default: 3)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="rewrite FILE between plans:begin and plans:end")
    arguments = parser.parse_args()
    images = [os.path.realpath(path) for path in [*_INSTALLED, *arguments.images] if os.path.exists(path)]
    sources = [*([arguments.before] if arguments.before else []), _HERE]
    load = os.getloadavg()[0]
    table = measure(images, sources, arguments.rounds)
    heading = [
        f"{machine()}, load {load:.2f} before, {os.getloadavg()[0]:.2f} after",
        f"{arguments.rounds} rounds of each image" + (", in turns" if arguments.before else ""),
    ]
    publish("plans", heading, [table], arguments.markdown)


if __name__ == "__main__":
    main()
