"""`--slow`: the same processor by QEMU's gdb stub, on a QEMU that exports none of its functions."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from guest.conftest import command
from guest.detection.conftest import Boot, sites
from guest.unexported import unexported

_FORMS = ["add", "btc", "cmpxchg", "cmpxchg8b", "inc", "neg", "xadd", "xchg"]
#: By a file: else the console may have a line of the kernel's within one of theirs.
_FORMS_SAID = "forms {} >/said\ncat /said"
_BOTH = pytest.mark.parametrize("qemu", ["7.2", pytest.param("10.0", marks=pytest.mark.slow)], indirect=True)


@pytest.fixture(scope="session")
def bare(qemu: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Such a QEMU."""
    return unexported(qemu, tmp_path_factory.mktemp("unexported"))


def _last_pass(report: dict[str, Any]) -> str:
    """What its console said."""
    return str(report["console"].rpartition("splitlock: pass ")[2])


def _by_stub(report: dict[str, Any]) -> None:
    """All was seen, and it says how."""
    assert (report["detection"]["by"], report["detection"]["untrapped"]) == ("gdb stub", 0)
    assert f"splitlock: pass {report['detection']['passes']}: " in report["console"]
    assert report["unwatched"] == []


@_BOTH
def test_refused_without(bare: Path) -> None:
    """Without --slow: one line, which names it."""
    words = command("--qemu", bare, "--sld", "--kernel", "/bin/true")
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "does not export its functions" in done.stderr
    assert "--slow" in done.stderr


@_BOTH
@pytest.mark.parametrize("count", [10, pytest.param(250, marks=pytest.mark.slow)])
def test_fatal(boot: Boot, bare: Path, count: int, tmp_path: Path) -> None:
    """Each split lock is SIGBUS before anything was done, on two CPUs, for every form; page faults come first."""
    traps = tmp_path / "traps"
    script = f"{_FORMS_SAID.format(f'{count} skip')}\nfaults\ninsmod /msr.ko\nprocessor"
    report = boot(
        script, "--sld", "--slow", "--qemu", bare, "--traps", traps,
        append="split_lock_detect=fatal", timeout=900,
    )  # fmt: skip
    _by_stub(report)
    found = sites(report, "forms")
    assert [(site["traps"], site["hits"], site["answers"]) for site in found] == [(2 * count, 0, ["sigbus"])] * 8
    assert {(site["mode"], site["image"]) for site in found} == {(64, "/forms")}
    said = "#AC: crashing the kernel on kernel split_locks and sending SIGBUS on user-space split_locks"
    assert report["detection"]["said"] == [f"x86/split lock detection: {said}"]

    console = _last_pass(report)
    right = re.findall(r"form (\w+) on CPU (\d): right\r?\n", console)
    assert sorted(right) == sorted((form, cpu) for form in _FORMS for cpu in "01")
    for cpu in (0, 1):
        assert f"CPU {cpu}: EDX[30] 1 ECX[24] 0 CORE_CAPABILITIES 0x20 TEST_CTRL 0x20000000" in console
    assert "CORE_CAPABILITIES refused, TEST_CTRL bit 0 refused, off on CPU 1 written" in console
    assert re.search(r"CPU 0: SIGBUS\s+CPU 1: executed", console)
    assert "case second page unmapped: signal 11 code 1" in console
    assert "case second page read-only: signal 11 code 2" in console
    assert "case copied: signal 7 code 1" in console

    lines = [json.loads(line) for line in traps.read_text().splitlines()]
    assert len(lines) == report["detection"]["traps"]
    assert {(line["trap"], line["cpl"]) for line in lines} == {("#AC", 3)}


@pytest.mark.slow
@_BOTH
def test_warn_then_oops(boot: Boot, bare: Path) -> None:
    """`warn`: a program is warned and goes on with the right results; a module's split lock is an oops.

    First on one CPU: the kernel turns detection off on a CPU that has warned, and where two take turns its work that
    turns it on again may run on the other (6.1: kernel/workqueue.c, __queue_work: where it ran last, if it still does).
    """
    script = f"taskset 1 demo 3\nsleep 1\ntaskset 1 insmod /splitmod.ko\n{_FORMS_SAID.format(5)}"
    report = boot(script, "--sld", "--slow", "--qemu", bare)
    _by_stub(report)
    (demo,) = sites(report, "demo")
    assert (demo["hits"], demo["answers"]) == (3, ["warned", "executed"])
    (module,) = [site for site in report["sites"] if site["where"] == "module"]
    assert (module["hits"], module["traps"], module["answers"]) == (0, 1, ["oops"])
    assert module["function"].startswith("splitmod_bump")
    console = _last_pass(report)
    assert "#AC: crashing the kernel on kernel split_locks and warning on user-space split_locks" in console
    assert len(re.findall(r"form \w+ on CPU \d: right\r?\n", console)) == 16


@pytest.mark.slow
@_BOTH
def test_ratelimit(boot: Boot, bare: Path) -> None:
    """Bus locks: ten a second, each with its #DB right behind the instruction."""
    report = boot("time demo 30", "--bus-lock", "--slow", "--qemu", bare, append="split_lock_detect=ratelimit:10")
    _by_stub(report)
    (demo,) = sites(report, "demo")
    assert (demo["hits"], demo["traps"]) == (30, 30)
    assert "warned" in demo["answers"]
    seconds = re.search(r"real\s+0m (\d+\.\d+)s", _last_pass(report))
    assert seconds is not None
    assert float(seconds[1]) > 2


@pytest.mark.slow
@_BOTH
def test_forwarded(boot: Boot, bare: Path) -> None:
    """An #AC that nobody asked for: the retry executes, or nothing ever does."""
    report = boot("forms 20\ninsmod /formsmod.ko count=20", "--forward-ac=once", "--slow", "--qemu", bare)
    _by_stub(report)
    assert [(site["traps"], site["hits"]) for site in report["sites"]] == [(40, 40)] * 16
    report = boot("demo 3", "--forward-ac", "--slow", "--qemu", bare)
    _by_stub(report)
    assert report["watched"]["end"] == "livelock"
    assert "livelock" in [answer for site in report["sites"] for answer in site["answers"]]


@pytest.mark.slow
def test_what_escapes(boot: Boot, bare: Path) -> None:
    """Code that is elsewhere in each pass is not trapped, and the report says so."""
    words = ("--sld", "--slow", "--qemu", bare)
    report = boot("wander", *words, append="split_lock_detect=fatal quiet", timeout=600)
    assert (report["detection"]["passes"], report["detection"]["untrapped"], report["hits"]) == (8, 5, 5)
    assert "5 executions were not trapped: QEMU's gdb stub had no stop for them" in report["unwatched"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--slow", "--kernel", "/bin/true"], "--slow: goes with --sld"),
        (["--slow", "--sld", "--cdrom", "/bin/true"], "--slow: needs --kernel"),
    ],
)
def test_wrong_usage(words: list[str], said: str) -> None:
    """One line each."""
    done = subprocess.run(command(*words), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert said in done.stderr
