"""A dump whose first line is lost: explained as far as it tells, never as certain, and never counted."""

from __future__ import annotations

import re

import pytest
from host.dumps import DATA, HERE, real

from splitlock.host.log.heard import Log
from splitlock.host.log.sources import Text
from splitlock.host.watch import Watch
from splitlock.report.watch import Event
from splitlock.report.watch_text import is_found, render

NAMES = ["6.1-module", "6.1-timer", "6.12-module", "6.12-skb", "7.2-skb", "7.2-timer", "xdp-7.1.8"]
#: What only a dump that says it may say.
CERTAIN = ("took a split lock", "This is a bug")


def lines(name: str) -> list[str]:
    return (DATA / f"oops-{name}.txt").read_text().splitlines()


def events(records: list[str]) -> list[Event]:
    """Those that have an oops; what is not counted is asserted here."""
    watch = Watch(Log(Text("\n".join(["[    0.000000] usb 1-1: new device", *records]))), files=HERE)
    found = [event for event in watch.events() if event.oops]
    summary = watch.summary(complete=True)
    if any(event.oops and event.oops.inferred for event in found):
        assert not is_found(summary)
        assert not summary.whole
        assert any("an oops whose first line is missing" in doubt for doubt in summary.doubts)
    return found


def one(records: list[str]) -> Event:
    (event,) = events(records)
    return event


def at(records: list[str], words: str) -> int:
    return next(number for number, line in enumerate(records) if words in line)


@pytest.mark.parametrize("name", NAMES)
def test_as_far_as_it_tells(name: str) -> None:
    whole, full = lines(name), real(name)
    for lost in range(1, at(whole, "IP: 0010:") + 1):
        event = one(whole[lost:])
        oops = event.oops
        assert oops is not None
        assert oops.inferred
        assert (oops.place, oops.instruction, oops.operand, oops.fits) == (
            full.place, full.instruction, full.operand, "yes"
        )  # fmt: skip
        assert (oops.frames, oops.panic, oops.ended) == (full.frames, full.panic, full.ended)
        assert (oops.comm, oops.pid) == ((full.comm, full.pid) if lost <= at(whole, "CPU: ") else ("", None))
        said = " ".join(render(event).split())
        assert not [word for word in CERTAIN if word in said]
        assert "most likely for a split lock (inferred: the dump's first line is missing)" in said
        assert "not known: why the kernel stopped" in said
        assert event.kind == "unknown"
        assert event.causes == []


@pytest.mark.parametrize("name", NAMES)
def test_with_its_first_line_it_is_certain(name: str) -> None:
    event = one(lines(name))
    assert event.oops is not None
    assert not event.oops.inferred
    assert "took a split lock" in event.oops.says
    assert event.kind == "oops"


@pytest.mark.parametrize("name", NAMES)
def test_no_registers_no_likelihood(name: str) -> None:
    event = one([line for line in lines(name)[1:] if not re.search(r"\bR[A-D1ISB][\dXIP]?\w?: |\bRSP: |R08: ", line)])
    assert event.oops is not None
    assert event.oops.fits == "unknown"
    said = " ".join(render(event).split())
    assert "perhaps for a split lock (a guess" in said
    assert "Report it to" not in said


@pytest.mark.parametrize("name", NAMES)
def test_another_instruction_is_another_reason(name: str) -> None:
    """0x90 is no locked instruction; and an operand on one line does not split."""
    whole = lines(name)
    event = one([re.sub("<f0>", "<90>", line) for line in whole[1:]])
    assert event.oops is not None
    assert event.oops.fits == "no"
    assert "for another reason than a split lock" in event.oops.says
    assert "bug" not in " ".join(event.oops.means)
    full = real(name)
    assert full.instruction is not None
    (used,) = re.findall(r"\[(\w+)\+", full.instruction.text)
    register = used.upper()
    event = one([re.sub(rf"\b{register}: \w{{16}}", f"{register}: ffff888000000000", line) for line in whole[1:]])
    assert event.oops is not None
    # 0x3d + 4 bytes cross a line there, 0x20 + 4 do not
    assert event.oops.fits == ("yes" if "+0x3d]" in full.instruction.text else "no")


@pytest.mark.parametrize(
    "head",
    [
        "BUG: unable to handle page fault for address: ffff888004fc56be",
        "general protection fault, probably for non-canonical address 0xdead: 0000 [#1] PREEMPT SMP",
        "------------[ cut here ]------------",
        "watchdog: BUG: soft lockup - CPU#1 stuck for 22s!",
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_a_dump_that_says_something_else_is_none(name: str, head: str) -> None:
    whole = lines(name)
    assert events([f"[    8.313685] {head}", *whole[at(whole, "CPU: ") :]]) == []
