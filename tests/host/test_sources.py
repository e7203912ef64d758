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
from splitlock.host.log import sources
from splitlock.host.log.heard import Log
from splitlock.host.log.wrappings import Record
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
    events = list(Watch(Log(sources.Stored(str(path)))).events())
    assert [event.kind for event in events] == ["trap", "trap"]


class _Million(sources.Source):
    """Lines that are all different."""

    def __init__(self) -> None:
        super().__init__("lines")
        self.number = 0

    def __iter__(self) -> Iterator[Record]:
        for count in range(self.number):
            yield Record(_trap(f"task{count % 50_000}", count, 0x400000 + count)[:-1])


def test_a_million_lines_in_flat_memory() -> None:
    """All different: what is kept does not grow after the first."""
    lines = _Million()
    watch = Watch(Log(lines))
    lines.number = 30_000
    for _ in watch.events():
        pass
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines.number = 100_000
    for _ in watch.events():
        pass
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    summary = watch.summary(complete=True)
    assert grown < 4096  # KiB
    assert summary.traps == 130_000
    assert summary.uncounted + sum(count.lines for count in summary.counts) == 130_000
    assert len(summary.counts) == 10_000


@pytest.mark.parametrize("line_break", ["\n", " "])
def test_a_log_larger_than_what_is_read_of_other_files(line_break: str, tmp_path: Path) -> None:
    """It is never held whole, not even where its lines were put into one."""
    path = tmp_path / "kern.log"
    block = "".join(
        f"[{4000 + n // 100:5}.000000] audit: type=1400 apparmor=DENIED name=/proc/{n}/stat{line_break}"
        for n in range(9_000)
    )
    with path.open("w") as file:
        file.write(f"[    0.000000] Linux version 6.12.48 (a@b) (gcc) #1 SMP{line_break}")
        while file.tell() < 72 << 20:
            file.write(block.replace("[ 40", "[ 50") if file.tell() > 1 << 20 else block)
        file.write(_trap())
    code = (  # getrusage() would tell what the parent had, if that was more
        "import re, sys; from splitlock.commands import main; main(sys.argv[1:]); "
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, "watch", "-q", path], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("1 trap\n")
    assert int(done.stdout.split()[-1]) < 80 << 10  # KiB


def test_the_kernels_buffer() -> None:
    """Its records are numbered without gaps, from the first that is left."""
    records = list(sources.Kmsg(follow=False))
    assert records
    assert all(record.live for record in records)
    assert sum(record.lost for record in records) == 0
    assert any(record.time and abs(record.time - time.time()) < 10 * 365 * 86400 for record in records)


class Buffer(sources.Kmsg):
    """A kernel's buffer whose records are these."""

    def __init__(self, *records: bytes) -> None:
        super().__init__(os.devnull, follow=False)
        self._records = records

    def _raw(self, file: int) -> Iterator[bytes]:
        yield from self._records


def test_records_that_were_overwritten_are_counted() -> None:
    raw = b"4,%d,1500000,-;words \\xe2\\x82\\xac\n SUBSYSTEM=x\n"
    booted = time.time() - time.clock_gettime(time.CLOCK_MONOTONIC)
    first, second, none = Buffer(raw % 7, raw % 12, b"nonsense")
    assert (first.text, first.lost, first.live, first.speaker) == ("words €", 0, True, "")
    assert first.time == pytest.approx(booted + 1.5, abs=5)
    assert second.lost == 4
    assert none == Record(None, live=True)
    buffer = Buffer(raw % 7, raw % 12)
    watch = Watch(Log(buffer))
    assert [event.kind for event in watch.events()] == ["lost"]
    summary = watch.summary(complete=True)
    assert (summary.lost, buffer.begins, summary.whole) == (4, False, False)
    assert "its beginning was overwritten" in summary.doubts


def test_what_programs_write_to_the_kernels_buffer_is_not_the_kernels() -> None:
    """The kernel gives records from /dev/kmsg a facility of their own, and nobody can have its own (printk.c)."""
    words = "x86/split lock detection: #AC: a/1 took a split_lock trap at address: 0x1"
    watch = Watch(Log(Buffer(f"12,1,1,-;{words}\n".encode(), f"4,2,1,-;{words}\n".encode())))
    assert [event.speaker for event in watch.events()] == ["user space", ""]
    found = watch.summary(complete=True)
    assert (found.traps, found.others) == (1, {"user space": 1})


def test_an_oops_is_one_record_with_two_lines() -> None:
    """/dev/kmsg has a line break in it; what follows names the function and its module."""
    records = [
        "0,8,1,-;Oops: Split lock detected\\x0a: 0000 [#1] SMP NOPTI",
        "0,9,2,-;CPU: 1 PID: 2 Comm: a Not tainted 6.1.0",
        "0,10,3,-;RIP: 0010:split_it+0x10/0x20 [splitmod]",
        "4,11,4,-;---[ end trace 0000000000000000 ]---",
    ]
    watch = Watch(Log(Buffer(*(f"{record}\n".encode() for record in records))))
    (event,) = watch.events()
    assert (event.kind, event.detail) == ("oops", "split_it+0x10/0x20 [splitmod]")
    assert watch.summary(complete=True).oopses == 1


def test_suppressed_lost_oops_and_mode() -> None:
    lines = [
        "x86/split lock detection: #AC: crashing the kernel on kernel split_locks and warning on user-space "
        "split_locks",
        "split_lock_warn: 35 callbacks suppressed", "handle_bus_lock: 7 callbacks suppressed",
        "show_signal_msg: 99 callbacks suppressed",
        "** 9 printk messages dropped **", "Split lock detected", ": 0000 [#1] SMP", "CPU: 0 PID: 1",
        "RIP: 0010:split_it+0x10/0x20 [splitmod]", "---[ end trace 0000000000000000 ]---", *["usb"] * 40,
        "x86/split lock detection: #AC: CPU 0/KVM/9 fatal split_lock trap at address: 0x1000",
        "traps: demo[155] trap alignment check ip:1260 sp:7f0a error:0 in demo[1000+1000]",
    ]  # fmt: skip
    watch = Watch(Log(sources.Text("\n".join(lines))))
    events = list(watch.events())
    assert [event.kind for event in events] == [
        "mode", *["suppressed"] * 3, "lost", "oops", "guest", "killed"
    ]  # fmt: skip
    assert events[5].detail == "split_it+0x10/0x20 [splitmod]"
    found = watch.summary(complete=True)
    assert (found.mode, found.suppressed, found.lost) == ("warn", 42, 9)
    assert (found.oopses, found.guests, found.killed) == (1, 1, 1)


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


def test_journal_files_are_read_in_the_order_of_their_entries(tmp_path: Path) -> None:
    """system.journal is the newest, whatever its name sorts before."""
    tool = shutil.which("systemd-journal-remote", path="/usr/lib/systemd:/lib/systemd:/usr/bin")
    assert tool
    for name, at, comm in (("system.journal", 3, "newest"), ("system@0.journal", 1, "oldest"), ("a.journal", 2, "old")):
        entry = (
            f"__REALTIME_TIMESTAMP={1_800_000_000_000_000 + at}\n__MONOTONIC_TIMESTAMP={at}\n"
            f"_BOOT_ID={at:032x}\n_TRANSPORT=kernel\nMESSAGE={_trap(comm, at)[15:-1]}\n\n"
        )
        (tmp_path / "all").mkdir(exist_ok=True)
        target = tmp_path / "all" / name
        subprocess.run([tool, "-o", str(target), "-"], input=entry, text=True, capture_output=True, check=True)
    watch = Watch(Log(sources.Stored(str(tmp_path / "all"))))
    assert [event.comm for event in watch.events()] == ["oldest", "old", "newest"]


def test_journal(journal: Path) -> None:
    watch = Watch(Log(sources.Stored(str(journal))))
    first, lost = watch.events()
    assert (first.kind, lost.kind, lost.number) == ("trap", "lost", 20)


def test_errors(tmp_path: Path) -> None:
    for words, said in (
        (["/none"], "/none: No such file"), ([str(tmp_path)], "no kernel log in this directory"),
        (["--journal", "x"], "leave one out"),
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
        list(sources.Kmsg("/none", follow=False))


def test_schemas_are_the_published_ones() -> None:
    for name, kind in (("watch", Event), ("watch-summary", Summary)):
        assert json.loads((DOCS / f"{name}.schema.json").read_text()) == msgspec.json.schema(kind), "make schema"
