"""What the kernel says once: events in generated orders, beside a reckoning of who was spoken of."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from splitlock.linux.often import printed
from splitlock.model.run import run
from splitlock.model.scenario import load
from splitlock.report.simulate import Report

MACHINES, PROGRAMS = {"a": 301, "b": 302}, (11, 12, 13)


def played(tmp_path: Path, linux: str, mode: str, events: list[tuple[str, int, bool]]) -> Report:
    """Events: a machine's name or `host`, the task, and whether it asks."""
    text = [f'title = "generated"\n[host]\nprocessor = ["#AC"]\nlinux = "{linux}"\nmode = "{mode}"\n']
    for name, pid in MACHINES.items():
        text.append(f'[[vm]]\nname = "{name}"\nhypervisor = "kvm"\nlinux = "6.1"\npid = {pid}\n')
    for where, pid, asks in events:
        text.append(f'[[event]]\nlock = "{where}"\n' + (f"pid = {pid}\n" if where == "host" else ""))
        text.append("asks = true\n" if asks else "")
    path = tmp_path / "generated.toml"
    path.write_text("".join(text))
    return run(load(str(path)), "generated.toml", lambda name: b"")


def said(report: Report) -> list[list[str]]:
    """Of each event, what kinds of lines the host's kernel logged."""
    kinds = ("took a split_lock", "fatal split_lock", "bogus split_lock", "trap alignment check")
    return [
        [kind for step in event.steps if step.who == "host kernel" for kind in kinds if kind in step.log]
        for event in report.events[1:]
    ]


def reckoned(linux: str, mode: str, events: list[tuple[str, int, bool]]) -> list[list[str]]:
    """The same by hand: handle_user_split_lock(), handle_guest_split_lock(), split_lock_warn()."""
    found: list[list[str]] = []
    warned: set[int] = set()
    once = False
    for where, pid, asks in events:
        if where != "host" and asks:
            found.append([])  # KVM injects it
        elif where != "host" and mode == "fatal":
            found.append([] if once else ["fatal split_lock"])
            once = True
        elif where == "host" and (asks or mode == "fatal"):
            found.append(["trap alignment check"])
            warned.discard(pid)  # it is dead, and the next one of that number is new
        else:
            found.append([] if pid in warned else ["took a split_lock"])
            warned.add(pid)
    return found


@pytest.mark.parametrize("mode", ["warn", "fatal"])
@pytest.mark.parametrize("linux", ["5.10.262", "6.1.192", "6.12.118", "7.2.13"])
def test_any_order(tmp_path: Path, linux: str, mode: str) -> None:
    for seed in range(25):
        chance = random.Random(f"{linux} {mode} {seed}")
        events = []
        for _ in range(30):
            where = chance.choice(["host", *MACHINES])
            pid = chance.choice(PROGRAMS) if where == "host" else MACHINES[where]
            events.append((where, pid, chance.random() < 0.3))
        assert said(played(tmp_path, linux, mode, events)) == reckoned(linux, mode, events), seed


@pytest.mark.parametrize(("linux", "lines"), [("5.10.262", 10), ("5.18.19", 10), ("5.19.2", 1), ("6.12.118", 1)])
def test_for_ever(tmp_path: Path, linux: str, lines: int) -> None:
    """A guest that is handed what it cannot turn off says so each time until 5.18: ten lines in five seconds."""
    path = tmp_path / "blind.toml"
    path.write_text(
        'title = "blind"\n[host]\nprocessor = ["#AC"]\nlinux = "5.7"\n[[vm]]\nname = "guest"\n'
        f'hypervisor = "kvm-2020"\nlinux = "{linux}"\n[[event]]\nlock = "guest"\n'
    )
    event = run(load(str(path)), "blind.toml", lambda name: b"").events[1]
    assert event.fate == "livelock"
    assert [step.lines for step in event.steps if step.log] == [lines]


@pytest.mark.parametrize("mode", ["warn", "ratelimit:1000"])
@pytest.mark.parametrize(("number", "every"), [(9, 0), (15, 0), (40, 1000), (100, 300), (3, 20_000)])
def test_bus_locks(tmp_path: Path, mode: str, number: int, every: int) -> None:
    """Each has a line, as far as the limit lets it through; what it does not is counted."""
    path = tmp_path / "db.toml"
    path.write_text(
        f'title = "db"\n[host]\nprocessor = ["#DB"]\nlinux = "6.12.118"\nmode = "{mode}"\n[[event]]\nlock = "host"\n'
        f"number = {number}\nevery_ms = {every}\n"
    )
    step = run(load(str(path)), "db.toml", lambda name: b"").events[1].steps[-1]
    assert step.lines == printed([every * index for index in range(number)])
    assert step.lines + step.held_back == number
