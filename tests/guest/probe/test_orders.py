"""Does a row's outcome depend on what ran before it, how deep the stack was, or what the host does between rows?"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest
from guest.probe import flavours

from splitlock.guest.probe import emulator, image
from splitlock.guest.probe.log import read
from splitlock.guest.probe.verdict import report
from splitlock.report.probe import Report, Row

State = tuple[str, int, bool, bool, bool, str]
BOCHS_KHZ = 4000  # by its own default: ips=4000000
#: How many rows; the words of `splitlock guest` for the machine, or none of it: QEMU and Bochs as they are.
MACHINES: dict[str, tuple[int, tuple[str, ...]]] = {
    "bochs": (46, ()),
    "sld-bus-lock": (68, ("--sld", "--bus-lock", "--smp", "2")),
    "forward-ac": (46, ("--forward-ac", "--smp", "1")),
    "forward-ac-asked": (46, ("--forward-ac=asked", "--smp", "1")),
}


def state(row: Row) -> State:
    return row.mode, row.cpl, row.am, row.ac, row.detecting, row.access


def ends(told: Report) -> dict[State, tuple[object, ...]]:
    """How each row ended, by what it is and not by its number."""
    return {state(row): (row.outcome, row.vector, row.error, row.place, row.memory_right) for row in told.rows}


def run(where: str, directory: Path) -> Report:
    """The probe of `image.CODE` on one of these machines."""
    _, words = MACHINES[where]
    if not words:
        ran = emulator.bochs(emulator.BOCHS, 60)
        return report(where, read(ran.log), ran.ended)
    disc = directory / "probe.iso"
    disc.write_bytes(image.iso())
    command = [sys.executable, "-m", "splitlock", "guest", *words, "--cdrom", str(disc), "-m", "64M", "--until",
               "the serial log", "--duration", "60", "-o", str(directory / "guest")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, timeout=90, check=False)
    return report(where, read(done.stderr))


@pytest.fixture(scope="module")
def as_planned(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Report]:
    """The report of the image as it is, on each machine once."""
    kept: dict[str, Report] = {}

    def told(where: str) -> Report:
        if where not in kept:
            kept[where] = run(where, tmp_path_factory.mktemp(where))
        return kept[where]

    return told


ORDERS = [("bochs", 1), ("bochs", 2), ("bochs", 3), ("bochs", 4), ("sld-bus-lock", 5)]
MORE_ORDERS = [("sld-bus-lock", 6), ("sld-bus-lock", 7), ("forward-ac", 8), ("forward-ac-asked", 9)]


@pytest.mark.parametrize(
    ("where", "seed"), [*ORDERS, *(pytest.param(*order, marks=pytest.mark.slow) for order in MORE_ORDERS)]
)
def test_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_planned: Callable[[str], Report], where: str, seed: int
) -> None:
    planned = as_planned(where)
    assert (planned.missing, len(ends(planned))) == ([], MACHINES[where][0])
    monkeypatch.setattr(image, "CODE", flavours.shuffled(tmp_path, seed))
    told = run(where, tmp_path)
    assert (told.missing, told.damaged) == ([], 0)
    assert [state(row) for row in told.rows] != [state(row) for row in planned.rows]
    assert ends(told) == ends(planned)


def test_whatever_was_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_planned: Callable[[str], Report]
) -> None:
    """Flags, control registers, segments and results as badly as a row could leave them."""
    planned = ends(as_planned("bochs"))  # before the other image takes its place
    monkeypatch.setattr(image, "CODE", flavours.dirty(tmp_path))
    told = run("bochs", tmp_path)
    assert told.missing == []
    assert ends(told) == planned


def test_however_deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_planned: Callable[[str], Report]) -> None:
    """No exception's stack lies within its caller's: not at any depth, in steps of 16 bytes."""
    planned = ends(as_planned("bochs"))  # before the other image takes its place
    monkeypatch.setattr(image, "CODE", flavours.deep(tmp_path, "number++ % 192 * 16"))
    told = run("bochs", tmp_path)
    assert told.missing == []
    assert ends(told) == planned


def test_too_deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stack that outgrows its place is said, and what was found with it does not count."""
    monkeypatch.setattr(image, "CODE", flavours.deep(tmp_path, "number++ < 60 ? 0 : 4096"))
    told = run("bochs", tmp_path)
    assert (
        "the rest: the image's own stacks overlapped, a fault of the probe's, not of the hypervisor's" in told.missing
    )
    assert told.verdict == "unclear"
    assert told.rows[-1].outcome == "unended"


@pytest.fixture(scope="module")
def machine_khz(tmp_path_factory: pytest.TempPathFactory) -> float:
    """The frequency of this machine's time-stamp counter, by its clock."""
    directory = tmp_path_factory.mktemp("tsc")
    source, program = directory / "tsc.c", directory / "tsc"
    source.write_text(
        "#include <stdio.h>\n#include <time.h>\n#include <unistd.h>\n#include <x86intrin.h>\n"
        "static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t);"
        " return t.tv_sec * 1e3 + t.tv_nsec / 1e6; }\n"
        "int main(void) { double from = now(); unsigned long long tsc = __rdtsc(); usleep(100000);"
        ' printf("%.0f", (__rdtsc() - tsc) / (now() - from)); }\n'
    )
    subprocess.run(["cc", "-O1", source, "-o", program], check=True)
    return median(float(subprocess.run([program], capture_output=True, check=True).stdout) for _ in range(5))


@pytest.mark.parametrize("wait", [True, False])
def test_a_host_in_warn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine_khz: float, wait: bool) -> None:
    """It makes a guest wait for 10 ms, then hears nothing of it for 30 ms: who does not wait himself sees little."""
    monkeypatch.setattr(image, "CODE", flavours.throttles(tmp_path, int(machine_khz), wait=wait))
    ran = emulator.qemu("tcg", emulator.QEMU, 60)
    told = report("tcg", read(ran.log), ran.ended)
    assert told.missing == []
    slow = [row for row in told.rows if row.access == "split" and max(row.cycles) >= 10 * int(machine_khz)]
    if wait:
        assert (told.verdict, len(slow)) == ("throttles", 20)
    else:
        assert len(slow) < 20


def test_how_fast_the_counter_runs(tcg: bytes, bochs: bytes, machine_khz: float) -> None:
    """Bochs counts its instructions, TCG gives this machine's counter; who is interrupted measures too much."""
    clock = read(bochs).clock
    assert clock is not None
    assert clock.source == "pit"
    assert clock.khz == pytest.approx(BOCHS_KHZ, rel=0.02)
    clock = read(tcg).clock
    assert clock is not None
    assert 0.99 * machine_khz < clock.khz < 4 * machine_khz
