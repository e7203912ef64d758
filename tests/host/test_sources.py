"""Logs as they are: rotated, cut off, endless lines, the kernel's own buffer, systemd's journal; a million lines."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from splitlock._errors import SplitlockError
from splitlock.host import sources
from splitlock.host.sources import Record
from splitlock.host.watch import Watch
from splitlock.report.watch import Event, Summary

DOCS = Path(__file__).parents[2] / "docs"
SPLITLOCK = [sys.executable, "-m", "splitlock"]
TRAP = "[  688.792264] x86/split lock detection: #AC: {comm}/{pid} took a split_lock trap at address: {address:#x}\n"


def _trap(comm: str = "osu!.exe", pid: int = 11382, address: int = 0x7AA6806D) -> str:
    return TRAP.format(comm=comm, pid=pid, address=address)


class Follower:
    """`splitlock watch` in the background, by its JSON lines."""

    def __init__(self, *words: object) -> None:
        command = [*SPLITLOCK, "watch", "--format", "json", *map(str, words)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.lines: list[dict[str, Any]] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(json.loads(line))

    def wait(self, number: int, seconds: float = 20) -> list[dict[str, Any]]:
        """Until it has said so many lines."""
        deadline = time.monotonic() + seconds
        while len(self.lines) < number:
            assert time.monotonic() < deadline, self.lines
            time.sleep(0.02)
        return self.lines

    def end(self, by: signal.Signals = signal.SIGINT) -> dict[str, Any]:
        """Ctrl-C: its sum."""
        self.process.send_signal(by)
        self.process.wait(20)
        self._thread.join(10)
        return self.lines[-1]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "kern.log"
    path.write_text("something before\n" + _trap())
    return path


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_its_end(log: Path, by: signal.Signals) -> None:
    """However it is told to end, it tells its sum; with nohup(1) a terminal that goes away is nothing to it."""
    follower = Follower("-f", log)
    follower.wait(1)
    summary = follower.end(by)
    assert (summary["traps"], summary["complete"], follower.process.returncode) == (1, True, 1)
    if by == signal.SIGHUP:
        before = signal.signal(by, signal.SIG_IGN)
        follower = Follower("-f", log)
        signal.signal(by, before)
        follower.wait(1)
        follower.process.send_signal(by)
        with log.open("a") as file:
            file.write(_trap(pid=2))
        follower.wait(2)
        assert follower.end()["traps"] == 2


def test_rotation(log: Path) -> None:
    """Renamed and made anew with lines still coming to the old one, cut off in place, and gone for a while."""
    follower = Follower("-f", log)
    follower.wait(1)
    with log.open("a") as old:
        log.rename(log.with_suffix(".1"))
        old.write(_trap(pid=2))
        old.flush()
        log.write_text(_trap(pid=3))
        follower.wait(3)
    with log.open("a") as file:
        file.truncate(0)
    time.sleep(1.2)  # it looks twice a second
    with log.open("a") as file:
        file.write(_trap(pid=4))
    follower.wait(4)
    log.unlink()
    time.sleep(0.7)
    log.write_text(_trap(pid=5)[:40])
    time.sleep(0.7)
    with log.open("a") as file:  # the rest of a line that was being written
        file.write(_trap(pid=5)[40:])
    follower.wait(5)
    summary = follower.end()
    assert [line["tid"] for line in follower.lines[:-1]] == [11382, 2, 3, 4, 5]
    assert follower.process.returncode == 1
    assert (summary["traps"], summary["lost"], summary["complete"]) == (5, 0, True)
    jsonschema.validate(summary, json.loads((DOCS / "watch-summary.schema.json").read_text()))
    for line in follower.lines[:-1]:
        jsonschema.validate(line, json.loads((DOCS / "watch.schema.json").read_text()))


def test_garbage(tmp_path: Path) -> None:
    path = tmp_path / "garbage"
    path.write_bytes(
        os.urandom(1 << 20)
        + b"\n"
        + b"x" * (3 << 20)
        + b"\n\n"
        + _trap().encode()
        + b"\xff\xfe"
        + _trap().encode()[:-1]
    )
    watch = Watch("garbage")
    events = list(watch.events(sources.file(str(path), follow=False)))
    assert [event.kind for event in events] == ["trap", "trap"]


def _million(number: int) -> Iterator[Record]:
    for count in range(number):
        yield Record(_trap(f"task{count % 50_000}", count, 0x400000 + count)[:-1], None, 0, False)


def test_a_million_lines_in_flat_memory() -> None:
    """All different: what is kept does not grow after the first."""
    watch = Watch("lines")
    for _ in watch.events(_million(30_000)):
        pass
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in watch.events(_million(100_000)):
        pass
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    summary = watch.summary(complete=True)
    assert grown < 4096  # KiB
    assert summary.traps == 130_000
    assert summary.uncounted + sum(count.lines for count in summary.counts) == 130_000
    assert len(summary.counts) == 10_000


def test_the_kernels_buffer() -> None:
    """Its records are numbered without gaps, from the first that is left."""
    records = list(sources.kmsg(follow=False))
    assert records
    assert all(record.live for record in records)
    assert sum(record.lost for record in records) == 0
    assert any(record.time and abs(record.time - time.time()) < 10 * 365 * 86400 for record in records)


def test_records_that_were_overwritten_are_counted() -> None:
    booted, raw = 1_000_000.0, b"4,%d,1500000,-;words \\xe2\\x82\\xac\n SUBSYSTEM=x\n"
    record, expected = sources._kmsg_record(raw % 7, booted, None)
    assert (record, expected) == (Record("words €", 1_000_001.5, 0, True), 8)
    record, _ = sources._kmsg_record(raw % 12, booted, expected)
    assert record.lost == 4
    assert sources._kmsg_record(b"nonsense", booted, 9) == (Record(None, None, 0, True), 9)
    watch = Watch("x")
    assert [event.kind for event in watch.events([record])] == ["lost"]
    assert watch.summary(complete=True).lost == 4


def test_suppressed_lost_oops_and_mode() -> None:
    lines = [
        "x86/split lock detection: #AC: crashing the kernel on kernel split_locks and warning on user-space "
        "split_locks",
        "split_lock_warn: 35 callbacks suppressed", "handle_bus_lock: 7 callbacks suppressed",
        "** 9 printk messages dropped **", "Split lock detected : 0000 [#1] SMP", "CPU: 0 PID: 1",
        "RIP: 0010:split_it+0x10/0x20 [splitmod]",
        "x86/split lock detection: #AC: CPU 0/KVM/9 fatal split_lock trap at address: 0x1000",
        "traps: demo[155] trap alignment check ip:1260 sp:7f0a error:0 in demo[1000+1000]",
    ]  # fmt: skip
    watch = Watch("lines")
    events = list(watch.events(Record(line, None, 0, False) for line in lines))
    assert [event.kind for event in events] == ["mode", "suppressed", "suppressed", "lost", "oops", "guest", "killed"]
    assert events[4].detail == "split_it+0x10/0x20"
    found = watch.summary(complete=True)
    assert (found.mode, found.suppressed, found.lost, found.oopses, found.guests, found.killed) == (
        "warn",
        42,
        9,
        1,
        1,
        1,
    )


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """Journal files with kernel messages, written by systemd's own tool."""
    tool = shutil.which("systemd-journal-remote", path="/usr/lib/systemd:/lib/systemd:/usr/bin")
    if tool is None:
        pytest.fail("not installed: systemd-journal-remote; make setup")
    entries = []
    for number, words in enumerate([_trap()[15:-1], "something else", "Missed 20 kernel messages"]):
        transport = "driver" if words.startswith("Missed") else "kernel"
        entries.append(
            f"__REALTIME_TIMESTAMP={1_700_000_000_000_000 + number}\n__MONOTONIC_TIMESTAMP={number + 1}\n"
            f"_BOOT_ID=0123456789abcdef0123456789abcdef\n_TRANSPORT={transport}\nMESSAGE={words}\n\n"
        )
    target = tmp_path / "journal"
    target.mkdir()
    done = subprocess.run(
        [tool, "-o", str(target / "system.journal"), "-"],
        input="".join(entries),
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return target


def test_journal(journal: Path) -> None:
    watch = Watch("the journal")
    first, lost = watch.events(sources.journal(follow=False, files=[str(journal / "system.journal")]))
    assert (first.kind, lost.kind, lost.number) == ("trap", "lost", 20)


def test_errors(tmp_path: Path) -> None:
    for words, said in (
        (["/none"], "/none: No such file"), ([str(tmp_path)], "Is a directory"), (["--journal", "x"], "leave one out"),
        (["--maps", "/none", "x"], "--maps /none: No such file"), (["--root", "x"], "--root: goes with"),
        (["--listen", "here", "-"], "not HOST:PORT"), (["-o", "/none/x", "-"], "-o /none/x"),
    ):  # fmt: skip
        done = subprocess.run(
            [*SPLITLOCK, "watch", *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (2, ""), words
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
    with pytest.raises(SplitlockError):
        list(sources.kmsg("/none", follow=False))


def test_schemas_are_the_published_ones() -> None:
    for name, kind in (("watch", Event), ("watch-summary", Summary)):
        assert json.loads((DOCS / f"{name}.schema.json").read_text()) == msgspec.json.schema(kind), "make schema"
