"""Every row of the image, on two processors: TCG's has no alignment checks, Bochs' has them."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
from guest.probe import flavours

from splitlock.guest.probe import emulator, image
from splitlock.guest.probe.log import read
from splitlock.guest.probe.verdict import report

STATES = [
    (mode, cpl, am, ac)
    for mode, cpl in (("real16", 0), ("prot32", 0), ("prot32", 3), ("long64", 0), ("long64", 3))
    for am in (False, True)
    for ac in (False, True)
]
ASKED = [state for state in STATES if state[1:] == (3, True, True)]


@pytest.mark.parametrize(
    ("where", "verdict", "trapped", "splits"),
    [("tcg", "nothing-to-handle", [], 40), ("bochs", "injects-when-asked", ASKED, 38)],
)
def test_rows(request: pytest.FixtureRequest, where: str, verdict: str, trapped: list[object], splits: int) -> None:
    raw = request.getfixturevalue(where)
    told = report(where, read(raw))
    assert (told.verdict, told.missing, told.damaged, told.expected) == (verdict, [], 0, 46)
    assert told.split_locks == splits <= 64
    assert f"stop rows 46 splits {splits} ".encode() in raw
    assert [row.number for row in told.rows] == list(range(46))
    for access in ("misaligned", "split"):
        rows = [row for row in told.rows if row.access == access]
        assert [(row.mode, row.cpl, row.am, row.ac) for row in rows] == STATES
        assert [(row.mode, row.cpl, row.am, row.ac) for row in rows if row.outcome != "completed"] == trapped
    assert all(row.memory_right for row in told.rows)
    for row in told.rows:
        if row.outcome == "raised":
            assert (row.vector, row.error, row.place, row.cycles) == (17, "0000", "at", [])
        else:
            assert len(row.cycles) == (2 if row.access == "split" else 3)
    assert [msr.number for msr in told.msrs] == ["000000cf", "00000033", "000001d9"]
    # Bochs raises #GP for an MSR that it does not know, TCG reads 0
    assert {msr.vector for msr in told.msrs} == ({None} if where == "tcg" else {13})


@pytest.mark.parametrize("where", ["tcg", "bochs"])
def test_a_row_that_resets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """It is found, and the next boot goes on with the row after it."""
    monkeypatch.setattr(image, "CODE", flavours.resets(tmp_path))
    ran = emulator.qemu("tcg", emulator.QEMU, 60) if where == "tcg" else emulator.bochs(emulator.BOCHS, 60)
    told = report(where, read(ran.log), ran.ended)
    assert (told.verdict, told.missing, told.expected) == ("breaks-guest", [], 46)
    assert [row.number for row in told.rows] == list(range(46))
    assert [row.number for row in told.rows if row.outcome == "reset"] == [42, 43, 44, 45]
    assert ran.log.count(b"slp1 start from ") == 5


def test_image(tmp_path: Path) -> None:
    """A few KB, and a CD whose boot record names it."""
    assert 2048 < len(image.code()) < 16384
    raw = image.iso()
    assert raw[17 * 2048 + 7 :].startswith(b"EL TORITO SPECIFICATION")
    assert raw.count(image.code()) == 1


def test_without_a_wait() -> None:
    """One number differs, and it is the one that the image tells."""
    waits, hastes = image.iso(), image.iso(wait=False)
    assert [at for at, (one, other) in enumerate(zip(waits, hastes, strict=True)) if one != other] == [
        waits.index(image.code()) + 8
    ]
    assert int.from_bytes(image.code()[8:12], "little") == 35


def test_screen(tmp_path: Path) -> None:
    """The screen shows what the serial line says."""
    (tmp_path / "probe.iso").write_bytes(image.iso())
    command = [
        emulator.QEMU, "-accel", "tcg", "-m", "32", "-display", "none", "-vga", "std", "-cdrom", "probe.iso",
        "-serial", "file:serial", "-monitor", "unix:monitor,server=on,wait=off",
    ]  # fmt: skip
    with emulator.started(command, tmp_path):
        deadline = time.monotonic() + 30
        serial = tmp_path / "serial"
        while not serial.exists() or b"the serial log." not in serial.read_bytes():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(10)
            monitor.connect(str(tmp_path / "monitor"))
            monitor.sendall(b"pmemsave 0xb8000 4000 screen\nquit\n")
            while monitor.recv(4096):
                pass
    characters = (tmp_path / "screen").read_bytes()[::2].decode("latin-1")
    lines = [characters[at : at + 80].rstrip() for at in range(0, 2000, 80)]
    assert lines[-4:] == [
        "",
        "Split locks that asked for no trap: 18 completed, 0 #AC, 0 another exception",
        "Done. splitlock probe read tells the rest from the serial log.",
        "",
    ]
    assert lines[0].startswith("slp1 ")
