"""What follows a lock is executed in the arena as it was in its place, whichever way it goes, and when it faults."""

from __future__ import annotations

from pathlib import Path

from process.agent.conftest import AsAlone, Compiled

from splitlock.image.elf import Elf
from splitlock.process.agent.tails import Tails
from splitlock.process.functions import Text
from splitlock.process.runs import choose_runs

FUNCTIONS = ["plain", "over", "both", "back", "jump", "faults", "popped", "other", "loop"]


def test_each_way(as_alone: AsAlone, compiled: Compiled) -> None:
    run = as_alone([compiled("tails")])
    assert run.out.count("signal 11 at faults+") == 2
    assert run.report["watched"]["sites"] > len(FUNCTIONS)


def test_they_are_what_follows(compiled: Compiled) -> None:
    """By the program's own symbols: which function has one, and that those of more than one lock have theirs last."""
    path: Path = compiled("tails")
    elf = Elf(path.read_bytes())
    names = {symbol.name: symbol for symbol in elf.symbols()}
    runs = choose_runs(Text(elf))
    tails = Tails(runs)
    has = {}
    for name in FUNCTIONS:
        low, high = names[name].value, names[name].value + names[name].size
        has[name] = [len(tails.of(run)) for run in runs if low <= run.start < high]
    assert all(has[name][-1] for name in FUNCTIONS if name != "loop"), has
    assert has["other"][0] == 0  # another lock follows
