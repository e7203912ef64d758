"""Serial logs as others hand them in: cut off, spoilt, mixed, foreign."""

from __future__ import annotations

import binascii
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from splitlock._errors import SplitlockError
from splitlock.guest.probe.log import missing, read
from splitlock.guest.probe.verdict import report
from splitlock.report.probe import Report
from splitlock.report.probe_text import render


def line(words: str, version: int = 1) -> bytes:
    """A line as the image writes it."""
    raw = f"slp{version} {words}".encode()
    return b"%s *%04x\r\n" % (raw, binascii.crc_hqx(raw, 0))


def test_whole(tcg: bytes) -> None:
    log = read(tcg)
    assert (len(log.rows), log.damaged, missing(log)) == (46, 0, [])
    assert (
        b"".join(line(one.decode().rpartition(" *")[0][5:]) for one in tcg.splitlines() if one.startswith(b"slp1 "))
        in tcg
    )


def test_cut_off(tcg: bytes) -> None:
    """Wherever it is cut, what is missing is said."""
    for end in range(0, tcg.index(b"slp1 stop "), 97):
        log = read(tcg[:end])
        assert missing(log)[0].startswith("the end: the log breaks off ")
        assert [row.number for row in log.rows if row.outcome == "unended"] in ([], [len(log.rows) - 1])


def test_begins_late(tcg: bytes) -> None:
    assert missing(read(tcg[tcg.index(b"slp1 begin 3 ") :])) == ["rows 0, 1, 2: not in the log, or spoilt there"]


def test_mixed_with_others(tcg: bytes) -> None:
    """What stands between lines, and before one, does no harm; what stands within one spoils it."""
    mixed = b"".join(b"\x1b[2J[BIOS] " + one + b"\n\xff\xfe noise \n" for one in tcg.splitlines(keepends=True))
    log = read(mixed)
    assert (len(log.rows), log.damaged, missing(log)) == (46, 0, [])
    assert log.foreign > 46
    log = read(tcg.replace(b"end 7 done", b"end 7 d\xffone").replace(b"end 8 done", b"end 8 dome"))
    assert log.damaged == 1
    assert [row.number for row in log.rows if row.outcome == "unended"] == [7, 8]
    assert missing(log) == ["rows 7, 8: not in the log, or spoilt there"]
    assert report("", log).verdict == "nothing-to-handle"


def test_clock(tcg: bytes) -> None:
    """Each boot says its own; a log without one does not say that the image waited."""
    for source in ("hypervisor", "pit", "cpuid15", "cpuid16", "guess"):
        log = read(line("start from 0") + line(f"clock 2420000 {source} wait 35"))
        assert log.clock is not None
        assert (log.clock.khz, log.clock.source, log.clock.wait_ms, log.damaged) == (2420000, source, 35, 0)
        assert "time-stamp counter 2,420,000 kHz" in " ".join(render(report("", log)).split())
    again = read(line("start from 0") + line("clock 2420000 pit wait 35") + line("start from 0"))
    assert again.clock is None
    assert read(line("start from 0") + line("clock 2420000 sundial wait 35")).damaged == 1


def test_overflow(tcg: bytes) -> None:
    """What the image says of itself is not overlooked, however whole the rows are that came before."""
    start = tcg.index(b"slp1 end 20 ")
    log = read(tcg[:start] + line("overflow"))
    assert missing(log)[0].startswith("the rest: the image's own stacks overlapped, a fault of the probe's")
    assert not read(tcg[:start] + line("overflow") + tcg).overflowed


def test_two_runs(tcg: bytes) -> None:
    """The last one counts."""
    log = read(tcg[:3000] + tcg)
    assert (len(log.rows), missing(log)) == (46, [])


def test_resumed() -> None:
    log = read(line("start from 40") + line("begin 40 long64 cpl0 am1 ac0 tc0 split"))
    assert missing(log)[0].startswith("rows 0 to 39: run before this log began")
    assert missing(log)[1:] == ["the end: the log breaks off within row 40"]


def test_another_version() -> None:
    with pytest.raises(SplitlockError, match="another version of the probe, 2"):
        read(line("start from 0", version=2))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_anything(tcg: bytes, data: st.DataObject) -> None:
    """Any bytes, and any damage to a log: read, judged, and shown in 80 columns."""
    raw = bytearray(tcg)
    choose = random.Random(data.draw(st.integers(0, 1 << 32)))
    lines = raw.split(b"\r\n")
    for _ in range(data.draw(st.integers(0, 20))):
        at = choose.randrange(len(lines))
        match choose.randrange(4):
            case 0:
                del lines[at:]
                lines.append(bytearray(b""))
            case 1:
                lines.insert(at, bytearray(choose.randbytes(choose.randrange(50))))
            case 2:
                lines.insert(at, lines[choose.randrange(len(lines))])
            case 3 if lines[at].startswith(b"slp1 "):  # a sound sum over unsound words
                words = bytearray(lines[at][5:].rpartition(b" *")[0])
                if words:
                    words[choose.randrange(len(words))] = choose.randrange(32, 127)
                lines[at] = bytearray(line(words.decode()).strip())
    for damaged in (b"\r\n".join(lines), data.draw(st.binary(max_size=300))):
        told = report("fuzz", read(bytes(damaged)))
        assert Report.from_json(told.to_json()) == told
        for shown in (render(told), render(told, verbose=True)):
            assert max(map(len, shown.splitlines())) <= 80
