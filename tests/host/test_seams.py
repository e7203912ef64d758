"""Rotated files of which some are missing: what is left of a row must not be taken for the whole log."""

from __future__ import annotations

import gzip
import itertools
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from splitlock.commands import main
from splitlock.host.log.heard import Heard
from splitlock.host.root import Root

BOOTED = datetime(2026, 11, 1, 0, 10, tzinfo=UTC)
BANNER = (
    "[    0.000000] Linux version 6.12.48+deb13-amd64 (debian-kernel@lists.debian.org) (gcc) #1 SMP Debian 6.12.48-1"
)
WARN = (
    "[    0.112233] x86/split lock detection: #AC: crashing the kernel on kernel split_locks and warning on user-space "
    "split_locks"
)
#: How loggers write the time.
WALLS = {
    "rsyslog": "%b %e %H:%M:%S box kernel: ",
    "ISO": "%Y-%m-%dT%H:%M:%S.000001+00:00 box kernel: ",
    "no time but the kernel's": "",
}
#: Names of what was put aside on day `n` of `of`, the last is the one that is written.
NAMES = {
    "numbers": lambda n, of: f"kern.log.{of - 1 - n}.gz" if of - 1 - n > 1 else f"kern.log.{of - 1 - n}",
    "dateext": lambda n, of: f"messages-{BOOTED + timedelta(n + 1):%Y%m%d}",
    "dashes": lambda n, of: f"messages-{BOOTED + timedelta(n + 1):%Y-%m-%d}.gz",
    "-%s": lambda n, of: f"messages-{int((BOOTED + timedelta(n + 1)).timestamp()) - 600}",
    "dateyesterday": lambda n, of: f"messages-{BOOTED + timedelta(n):%Y%m%d}",
}
DAYS = 5


def _files(naming: str, wall: str, days: int = DAYS, every: int = 5) -> dict[str, bytes]:
    """A log of some days, put aside at each midnight, with a line every few hours, by its names, the oldest first."""
    found = {}
    hours = [hour for hour in range(24 * days) if not hour % every]
    for day in range(days):
        lines = []
        for hour in hours:
            if hour // 24 == day:
                when = BOOTED + timedelta(hours=hour)
                words = [BANNER, WARN] if not hour else [f"[{hour * 3600:5}.000000] eth0: Link is Up"]
                lines += [when.strftime(WALLS[wall]) + word for word in words]
        name = NAMES[naming](day, days) if day < days - 1 else "kern.log" if naming == "numbers" else "messages"
        text = "".join(f"{line}\n" for line in lines).encode()
        found[name] = gzip.compress(text) if name.endswith(".gz") else text
    return found


def _write(tmp_path: Path, files: dict[str, bytes]) -> list[str]:
    place = tmp_path / "var/log"
    place.mkdir(parents=True)
    for name, text in files.items():
        (place / name).write_bytes(text)
    return [str(place / name) for name in files]


@pytest.mark.parametrize("wall", WALLS)
@pytest.mark.parametrize("naming", NAMES)
def test_of_a_row_any_may_be_missing(
    naming: str, wall: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All are there: whole. One or two are not, in the beginning, in the middle or at the end: not known, exit 2."""
    files = _files(naming, wall)
    for number, lost in enumerate(
        [*itertools.combinations(files, 0), *itertools.combinations(files, 1), *itertools.combinations(files, 2)]
    ):
        left = {name: text for name, text in files.items() if name not in lost}
        paths = _write(tmp_path / str(number), left)
        report = Heard(Root(str(tmp_path / str(number)))).report()
        assert report.whole == (not lost), (lost, report.why)
        status = main(["watch", *paths])
        said = " ".join(capsys.readouterr().out.split())
        assert status == (2 if lost else 0), (lost, said)
        assert ("no split or bus lock logged since boot" in said) == (not lost)
        words = ["missing"]
        if naming == "numbers" and lost:
            words = (
                ["beginning is missing"]
                if "kern.log.4.gz" in lost
                else [f"{name.removesuffix('.gz')} " for name in lost]
            )
        assert not lost or any(word in said for word in words), (lost, said)


def test_a_file_that_is_missing_before_the_boot_is_no_gap(tmp_path: Path) -> None:
    files = _files("dateext", "rsyslog")
    names = list(files)
    files[names[3]] = files[names[0]] + files[names[3]]
    del files[names[1]]
    _write(tmp_path, files)
    assert Heard(Root(str(tmp_path))).report().whole


def test_a_quiet_log_that_is_put_aside_each_week_is_whole(tmp_path: Path) -> None:
    """Two days without a line are no gap there: a file that is missing would leave a week."""
    first = "Nov  1 00:10:00 box kernel: "
    line = "Nov {:2} {}:00:00 box kernel: [{}.000000] eth0: Link is Up\n"
    files = {
        "messages-20261108": f"{first}{BANNER}\n{first}{WARN}\n" + line.format(6, 20, 504_000),
        "messages-20261115": line.format(8, 23, 700_000) + line.format(14, 10, 1_159_800),
        "messages": line.format(16, 12, 1_339_800),
    }
    _write(tmp_path, {name: text.encode() for name, text in files.items()})
    assert Heard(Root(str(tmp_path))).report().whole
    (tmp_path / "var/log/messages-20261115").unlink()
    found = Heard(Root(str(tmp_path))).report()
    assert not found.whole
    assert "between messages-20261108 and messages" in found.why


def test_one_that_was_put_aside_is_not_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = _files("numbers", "rsyslog", 1)
    (path,) = _write(tmp_path, {"kern.log.1": files["kern.log"]})
    assert main(["watch", path]) == 2
    assert "kern.log is missing" in capsys.readouterr().out


def _journal(path: Path, entries: range, whole: range) -> None:
    """A journal file by systemd's own tool, with these of the entries' numbers."""
    text = ""
    for number in whole:
        words = BANNER[15:] if number == 1 else WARN[15:] if number == 2 else "eth0: Link is Up"
        text += (
            f"__CURSOR=s={'ab' * 16};i={number:x};b={1:032x};m={number:x};t={number:x};x=0\n__SEQNUM={number}\n"
            f"__REALTIME_TIMESTAMP={1_800_000_000_000_000 + number}\n__MONOTONIC_TIMESTAMP={number * 60_000_000}\n"
            f"_BOOT_ID={1:032x}\n_TRANSPORT=kernel\nMESSAGE={words}\n\n"
            if number in entries
            else ""
        )
    tool = "/usr/lib/systemd/systemd-journal-remote"
    subprocess.run([tool, "-o", str(path), "-"], input=text, text=True, capture_output=True, check=True)
    # journald goes on counting over its files; the tool begins each at 1
    with path.open("r+b") as file:
        file.seek(72)
        file.write(b"\xab" * 16)
        file.seek(160)
        file.write(entries[-1].to_bytes(8, "little") + entries[0].to_bytes(8, "little"))


@pytest.mark.parametrize("lost", ["", "system@1.journal", "system@2.journal"])
def test_a_file_of_the_journals(lost: str, tmp_path: Path) -> None:
    """journald counts its entries, users' too: what no file has is missing."""
    place = tmp_path / "var/log/journal"
    place.mkdir(parents=True)
    parts = {"system@1.journal": range(1, 5), "system@2.journal": range(5, 9), "user-1000.journal": range(9, 11)}
    for name, entries in (parts | {"system.journal": range(11, 14)}).items():
        if name != lost:
            _journal(place / name, entries, range(1, 14))
    found = Heard(Root(str(tmp_path))).report()
    assert found.whole == (not lost), found.why
    if lost == "system@2.journal":
        assert "4 entries between system@1.journal and user-1000.journal are missing" in found.why
