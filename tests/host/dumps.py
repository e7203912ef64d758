"""Dumps of oopses for tests: those of real kernels, and what they are read with."""

from __future__ import annotations

from pathlib import Path

from splitlock.host.oops.explanation import explain
from splitlock.host.oops.files import Files
from splitlock.linux.dump import Dump
from splitlock.linux.oops import Collector, head
from splitlock.report.oops import Oops

DATA = Path(__file__).parents[1] / "linux" / "data"
HERE = Files(root=None)  # this machine's own files are not looked at


def read(text: str) -> Dump:
    """The only dump in a text."""
    found: list[Collector] = []
    for line in text.splitlines():
        if head(line):
            found.append(Collector(line))
        elif found:
            found[-1].feed(line)
    (one,) = found
    return one.dump


def real(name: str) -> Oops:
    """One of a guest's, explained from its text alone."""
    return explain(read((DATA / f"oops-{name}.txt").read_text()), HERE)
