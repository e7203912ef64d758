"""What a real kernel makes of an exception, and whether the report says so: each of its answers."""

from __future__ import annotations

import re

import pytest
from guest.detection.conftest import Boot, sites

from splitlock.guest.answers import Console, answers
from splitlock.guest.shared import Entry, Totals


def test_warned_then_oops(boot: Boot) -> None:
    """`warn`: a program is warned, delayed and goes on; a module's split lock is an oops, and the guest lives on."""
    report = boot("demo 3\ninsmod /splitmod.ko", "--sld")
    (demo,) = sites(report, "demo")
    assert (demo["hits"], demo["answers"]) == (3, ["warned", "executed"])
    assert demo["traps"] >= 1  # a task that a busy host keeps back for two jiffies traps again
    assert 1 <= demo["delays"] <= demo["traps"]
    assert demo["delay_ms"] > 5
    assert re.match(r"x86/split lock detection: #AC: demo/\d+ took a split_lock trap at address: 0x", demo["said"])
    (module,) = [site for site in report["sites"] if site["where"] == "module"]
    assert (module["hits"], module["traps"], module["answers"]) == (0, 1, ["oops"])
    assert module["function"].startswith("splitmod_bump")
    assert "Split lock detected" in module["said"]
    assert report["watched"]["end"] == "power off"
    said = "#AC: crashing the kernel on kernel split_locks and warning on user-space split_locks"
    assert report["detection"]["said"] == [f"x86/split lock detection: {said}"]


def test_killed(boot: Boot) -> None:
    """`fatal`: SIGBUS, and the kernel's line of it; the instruction never executed."""
    report = boot("demo 3", "--sld", append="split_lock_detect=fatal")
    (demo,) = sites(report, "demo")
    assert (demo["hits"], demo["answers"], demo["delay_ms"]) == (0, ["sigbus"], None)
    assert 1 <= demo["traps"] <= 3  # it has three threads
    assert re.search(r"demo\[\d+\] trap alignment check", demo["said"])


@pytest.mark.slow
def test_off(boot: Boot) -> None:
    """`off`: nothing is raised."""
    report = boot("demo 3", "--sld", append="split_lock_detect=off")
    (demo,) = sites(report, "demo")
    assert (demo["hits"], demo["traps"], demo["answers"]) == (3, 0, [])
    assert report["detection"]["traps"] == 0


def test_panic_and_reboot(boot: Boot) -> None:
    """`oops=panic panic=1`: the machine begins anew, and does so again."""
    report = boot(
        "insmod /splitmod.ko", "--sld", "--until", r"(?s)Linux version.*Linux version", append="oops=panic panic=1"
    )
    (module,) = report["sites"]
    assert (module["hits"], module["answers"]) == (0, ["oops", "panic", "reboot"])
    assert report["detection"]["resets"] >= 1  # the BIOS adds one of its own


@pytest.mark.slow
def test_panic_in_interrupt(boot: Boot) -> None:
    """An oops in a timer's interrupt is the kernel's end; it stands still."""
    report = boot("insmod /splitmod.ko timer=1", "--sld", "--until", "end Kernel panic")
    (module,) = report["sites"]
    assert (module["traps"], module["answers"]) == (1, ["oops", "panic"])
    assert "Fatal exception in interrupt" in report["console"]
    assert report["detection"]["resets"] == 0


@pytest.mark.slow
def test_livelock(boot: Boot) -> None:
    """Forwarded to a kernel whose processor has no detection: it warns, turns off what is not there, and retries."""
    report = boot("demo 3", "--forward-ac")
    (demo,) = sites(report, "demo")
    assert (demo["hits"], demo["answers"]) == (0, ["warned", "livelock"])
    assert demo["traps"] > 100
    assert report["watched"]["end"] == "livelock"
    assert report["watched"]["seconds"] < 60


@pytest.mark.parametrize(
    ("mode", "answers", "least"),
    [
        ("warn", ["warned", "executed"], 0),
        pytest.param("ratelimit:10", ["warned", "executed"], 0.4, marks=pytest.mark.slow),
        pytest.param("fatal", ["sigbus", "executed"], 0, marks=pytest.mark.slow),
    ],
)
def test_bus_lock(boot: Boot, mode: str, answers: list[str], least: float) -> None:
    """`#DB` comes after each bus lock of a program's, none after the kernel's; a rate limit takes its time."""
    script = (
        "insmod /splitmod.ko count=77\nread begin rest </proc/uptime\ndemo 15\n"
        "read end rest </proc/uptime\necho from $begin to $end"
    )
    report = boot(script, "--bus-lock", append=f"split_lock_detect={mode}")
    (demo,) = sites(report, "demo")
    assert (demo["hits"], demo["answers"]) == (demo["traps"], answers)
    # In fatal each of its three threads may execute one before SIGBUS ends them all.
    assert demo["hits"] in ((1, 2, 3) if mode == "fatal" else (15,))
    (module,) = [site for site in report["sites"] if site["where"] == "module"]
    assert (module["hits"], module["traps"]) == (77, 0)
    times = re.search(r"from ([\d.]+) to ([\d.]+)", report["console"])
    assert times
    assert float(times[2]) - float(times[1]) >= least


@pytest.mark.parametrize(("stuck", "answer"), [(False, "never executed"), (True, "livelock")])
def test_who_is_stuck(stuck: bool, answer: str) -> None:
    """In a guest that was ended for a livelock: the instruction that did nothing but trap, and another one."""
    entry = Entry(traps=1000, trapped_at=1)
    assert answers(entry, "nested", set(), Console(b""), Totals(*bytes(len(Totals._fields))), stuck) == ([answer], None)
