"""The text of a matrix: 80 columns, whatever is in it."""

from __future__ import annotations

from typing import Any

from splitlock.report.matrix import SCHEMA, Boot, Cell, Kernel, Report, Signal
from splitlock.report.matrix_text import render


def _cell(kind: Any, mode: str, outcome: Any, **more: Any) -> Cell:
    return Cell(kernel="6.1.0", processor="ac", mode=mode, kind=kind, outcome=outcome, **more)


def _report(*cells: Cell) -> Report:
    boots = [
        Boot(
            kernel="6.1.0", processor="ac", mode=mode, command_line="", log=log, split_lock_detect=True,
            bus_lock_detect=False, split_lock_mitigate=1, end="done", seconds=5.0,
        )
        for mode, log in (("warn", ["x86/split lock detection: " + "#AC " * 20]), ("off", []))
    ]  # fmt: skip
    kernel = Kernel(release="6.1.0", banner="Linux version 6.1.0", path="/vmlinuz", member=None, headers=None)
    return Report(
        schema=SCHEMA, qemu="7.2.22", documentation="a book", kernels=[kernel], boots=boots, cells=list(cells),
        notes=["it is emulated"], interrupted=False,
    )  # fmt: skip


def test_text() -> None:
    """A line a kind, a column a mode; what differs is marked and told."""
    text = render(
        _report(
            _cell("module", "warn", "oops"),
            _cell("user", "warn", "completed", nanoseconds=[18_400_000], warnings=1, log=["x \x1b[2J"]),
            _cell("user", "off", "completed", nanoseconds=[18_400], differs=["logged 1 times, not never"]),
            _cell("module", "off", "not-tried", reason="no headers for this kernel"),
            _cell("repeat", "off", "completed", nanoseconds=[1_400_000_000], warnings=1),
            _cell("repeat", "warn", "completed", muted=True),
            _cell("user", "fatal", "sigbus",
                  signal=Signal(number=7, code=1, address="0x0", executed=False, place="at")),
        ),
        verbose=True,
    )  # fmt: skip
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[2:6] == [
        "          warn          off           fatal",
        "user      warned 18ms   completed!    SIGBUS",
        "repeat    (muted)       warned 1.4s",
        "module    oops          -",
    ]
    assert "! off user: logged 1 times, not never" in lines
    assert "- off module: not tried: no headers for this kernel" in lines
    assert "off:          (nothing about split locks)" in lines
    assert "signal 7, si_code 1, si_addr 0x0, at the instruction, which was not executed" in text
    assert "\x1b" not in text
    assert "6 cells measured in 2 boots of QEMU 7.2.22; 1 not as documented (a book)" in lines


def test_many_modes() -> None:
    """More columns than fit are more tables."""
    text = render(_report(*(_cell("user", f"ratelimit:{n}", "completed", muted=True) for n in range(991, 1001))))
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("\nuser  ") == 3  # two tables, and what the word means
