"""A log in which a stranger wrote numbers without end, brackets by the thousand, words by which programs are slowed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from splitlock.host.log.boots import _unheard
from splitlock.host.log.heard import Log
from splitlock.host.log.sources import Stored
from splitlock.host.watch import Watch
from splitlock.linux.oops import Collector
from splitlock.report.watch_text import render_summary

SHAPES = Path(__file__).parents[1] / "linux" / "corpus" / "shapes"
NINES = b"9" * 5000  # int() raises ValueError beyond 4300
NUMBER = re.compile(rb"\d+")


def _watched(path: Path) -> int:
    """How many lines are found in it."""
    watch = Watch(Log(Stored(str(path))))
    events = list(watch.events())
    assert render_summary(watch.summary(complete=True))
    return len(events)


def _kinds(text: bytes) -> list[bytes]:
    """A line of each form that its lines have, as far as they may speak of a kernel; at most three."""
    found: dict[bytes, bytes] = {}
    for line in text.split(b"\n"):
        if len(line) < 600 and (b"kernel" in line or b"plit" in line or b"[" in line):
            found.setdefault(re.sub(rb"\d+|[a-z]+", b"", line)[:40], line)
    return list(found.values())[:3]


@pytest.mark.parametrize(
    "shape", sorted(path for path in SHAPES.iterdir() if path.is_file() and path.suffix != ".xz"), ids=lambda p: p.name
)
def test_each_number_may_be_without_end(shape: Path, tmp_path: Path) -> None:
    """In each form that a log has: one number after the other, and all of them; alone, and with what is around."""
    text = shape.read_bytes()
    lines = []
    for line in _kinds(text):
        found = list(NUMBER.finditer(line))[:8]
        lines += [line[: each.start()] + NINES + line[each.end() :] for each in found]
        lines.append(NUMBER.sub(NINES, line))
    (tmp_path / "made").write_bytes(b"\n".join(lines) + b"\n")
    _watched(tmp_path / "made")
    (tmp_path / "all").write_bytes(NUMBER.sub(NINES, text[:2000]))
    _watched(tmp_path / "all")


@pytest.mark.parametrize(
    "line",
    [
        b"Nov 30 10:00:00 h kernel: [%b.1] hi",
        b"[%b.000001] hi",
        b"<6>[ %b.000001] hi",
        b"kern  :info  : [%b.000001] hi",
        b"6,%b,5,-;x86/split lock detection: disabled",
        b"6,5,%b,-;x86/split lock detection: disabled",
        b'{"__REALTIME_TIMESTAMP":"%b","_TRANSPORT":"kernel","MESSAGE":"x86/split lock detection: disabled"}',
        b'{"time":%b.5,"msg":"x86/split lock detection: disabled"}',
        b'{"time":1e999,"msg":"x86/split lock detection: disabled"}<%b>',
        b"__REALTIME_TIMESTAMP=%b\n_TRANSPORT=kernel\nMESSAGE=x86/split lock detection: disabled\n",
        b"Oops#%b Part1\n[1.000001] hi",
        b"Oops#1 Part%b\n[1.000001] hi",
        b"[1.000001] Oops: Split lock detected\n[1.000001] : 0000 [#%b] SMP\n[1.000002] CPU: %b PID: 1 Comm: a Not",
    ],
)
@pytest.mark.parametrize("digits", [b"9" * 5000, b"9" * 17, b"9" * 12])
def test_a_clock_without_end(line: bytes, digits: bytes, tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(line.replace(b"%b", digits) + b"\n" + line.replace(b"%b", b"7") + b"\n")
    _watched(tmp_path / "log")


def test_the_command_line_says_it_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"Nov 30 10:00:00 h kernel: [%b.1] hi\n" % NINES)
    done = subprocess.run(
        [sys.executable, "-m", "splitlock", "watch", tmp_path / "log"], capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 2)


@pytest.mark.parametrize("deep", [50, 150, 400, 900, 990, 1100, 5000])
def test_values_within_each_other(deep: int, tmp_path: Path) -> None:
    """What is too deep to be looked into counts as lost, or is read as words."""
    said = b'{"msg":"x86/split lock detection: #AC: a/1 took a split_lock trap at address: 0x1"}'
    for begin, end in ((b'{"log":', b"}"), (b'{"log":[', b"]}")):
        (tmp_path / "log").write_bytes(begin * deep + said + end * deep + b"\n")
        watch = Watch(Log(Stored(str(tmp_path / "log"))))
        assert [event.kind for event in watch.events()][:1] in (["trap"], ["lost"])


def test_code_that_goes_on_in_blanks() -> None:
    """The line behind `Code:` may be its rest; a pattern that shared out its blanks took ever longer."""
    collector = Collector("Oops: Split lock detected\n: 0000 [#1] SMP")
    collector.feed("RIP: 0010:f+0x1/0x2")
    collector.feed("Code: 90 90")
    collector.feed(" " * 4000 + "z")
    collector.feed("90 <f0> 0f  ")
    assert not collector.done


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Nov 30 10:00:00 h rsyslogd: imuxsock lost 5 messages", ""),
        ("rsyslogd: imjournal: 12 messages lost due to rate-limiting", "rsyslogd: imjournal: 12 messages lost"),
        ("h rsyslogd[733]: begin to drop messages due to rate-limiting", "rsyslogd: begin to drop messages"),
        ("h rsyslogd-2177: imuxsock[pid 9]: begin to drop messages",
         "rsyslogd: imuxsock[pid 9]: begin to drop messages"),
        ("h systemd-journald[1]: Forwarding to syslog missed 7 messages.",
         "systemd-journald: Forwarding to syslog missed 7 messages"),
        ("h syslog-ng[1]: Destination queue full, dropping messages;",
         "syslog-ng: Destination queue full, dropping messages"),
        ("rsyslogd " * 5900 + ": " * 5900, ""),
        ("rsyslogd: " * 5900, ""),
    ],
)  # fmt: skip
def test_what_a_daemon_says_that_it_lost(text: str, said: str) -> None:
    assert _unheard(text) == said
