"""Is the kernel's word understood, whatever tool had it in between? The corpus: real lines, real tools."""

from __future__ import annotations

import datetime
import json
import lzma
import random
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import pytest

from splitlock._errors import SplitlockError
from splitlock.host.log.heard import Log
from splitlock.host.log.sources import Stored
from splitlock.host.watch import Watch
from splitlock.report.watch import Event, Summary
from splitlock.report.watch_text import is_found, render_summary

CORPUS = Path(__file__).with_name("corpus")
DATA: dict[str, Any] = tomllib.loads((CORPUS / "lines.toml").read_text())
LINES: list[dict[str, Any]] = DATA["line"]
SHAPES: dict[str, dict[str, bool]] = tomllib.loads((CORPUS / "shapes.toml").read_text())
FILES = sorted(path.name for path in (CORPUS / "shapes").iterdir())
BOOTED = 1_782_847_936  # as in make.py
GUESTS: dict[str, dict[str, Any]] = tomllib.loads((CORPUS / "guests.toml").read_text())
_MISSED = 20
_BARE = ("mode", "note")  # nobody's words, without the kernel's prefix


def test_what_is_said_of_shapes_is_of_shapes() -> None:
    assert set(SHAPES) <= set(FILES)
    assert {key for said in SHAPES.values() for key in said} <= {"spoken", "forged", "missed", "cut", "bare", "time"}
    assert len({line["id"] for line in LINES}) == len(LINES)
    assert len(FILES) > 60


def _read(path: Path, directory: Path) -> tuple[list[Event], Summary]:
    if path.name == "journal.xz":  # journalctl reads files
        unpacked = directory / "system.journal"
        unpacked.write_bytes(lzma.decompress(path.read_bytes()))
        path = unpacked
    watch = Watch(Log(Stored(str(path))))
    events = [Event(**{name: getattr(event, name) for name in event.__struct_fields__}) for event in watch.events()]
    return events, watch.summary(complete=True)


def _right(line: dict[str, Any]) -> dict[str, Any]:
    address = line.get("address")
    return {
        "kind": line["kind"], "exception": line["exception"], "comm": line.get("comm", ""), "tid": line.get("pid"),
        "address": None if address is None else f"{address:#x}", "number": line.get("number", 1),
        "detail": line.get("detail", ""), "guest": line.get("guest", False),
    }  # fmt: skip


def _told(event: Event) -> dict[str, Any]:
    return {name: getattr(event, name) for name in _right(LINES[3])}


@pytest.mark.parametrize("shape", [name for name in FILES if not SHAPES.get(name, {}).get("cut")])
def test_every_line_in_every_wrapping(shape: str, tmp_path: Path) -> None:
    known = SHAPES.get(shape, {})
    events, summary = _read(CORPUS / "shapes" / shape, tmp_path)
    kernels = [event for event in events if not event.speaker and event.kind != "lost" and event.comm != "forged"]
    right = [line for line in LINES if "kind" in line]
    if known.get("bare"):
        right = [line for line in right if line["kind"] not in _BARE]
        kernels = [event for event in kernels if event.kind not in _BARE]
    assert [_told(event) for event in kernels] == [_right(line) for line in right]
    assert [event.number for event in events if event.kind == "lost"] == [_MISSED] * known.get("missed", False)
    assert summary.unknown == 0
    # a line by another than the kernel: shown, not counted; where nothing tells, it is taken for the kernel's
    forged = [event for event in events if event.comm == "forged"]
    assert [bool(event.speaker) for event in forged if known.get("forged") or event.speaker] == (
        [False] if known.get("forged") else [True] if summary.others else []
    )
    assert summary.traps == sum(line["kind"] == "trap" for line in right) + known.get("forged", False)
    assert bool(summary.others) == (known.get("spoken", False) and shape != "journal.xz")
    if known.get("time"):
        for event, line in zip(kernels, right, strict=True):
            assert event.time
            seconds = datetime.datetime.fromisoformat(event.time).timestamp()
            assert abs(seconds - BOOTED - line["at"]) < 0.01


@pytest.mark.parametrize("shape", [name for name in FILES if SHAPES.get(name, {}).get("cut")])
def test_no_line_that_was_cut_is_passed_over(shape: str, tmp_path: Path) -> None:
    """It is counted as not understood, or what is left of it is understood; never with half an address."""
    content = (CORPUS / "shapes" / shape).read_text()
    events, summary = _read(CORPUS / "shapes" / shape, tmp_path)
    right = [line for line in LINES if "kind" in line]
    whole = [_right(line) for line in right if line["text"].partition("\n")[0] in content]
    told = [_told(event) for event in events if not event.speaker and event.kind not in ("lost", "unknown")]
    assert whole
    assert [each for each in told if each in whole] == whole
    rest = [each for each in told if each not in whole]
    for each in rest:
        (line,) = [_right(line) for line in right if (line.get("pid"), line.get("kind")) == (each["tid"], each["kind"])]
        assert each["address"] in (None, line["address"])
        assert each["comm"] == line["comm"]
    assert len(rest) + summary.unknown == len(right) - len(whole)
    assert is_found(summary)
    assert "not understood, first: x86/split lock" in " ".join(render_summary(summary).split())


@pytest.mark.parametrize("seed", range(3))
def test_damaged_files_are_survived(seed: int, tmp_path: Path) -> None:
    """Bytes changed, taken out, put in from another file: no exception but one line for a person."""
    chance = random.Random(seed)
    files = sorted(path for path in (CORPUS / "shapes").iterdir() if path.is_file())
    said: list[str] = []
    for _ in range(120):
        data = bytearray(chance.choice(files).read_bytes())
        for _ in range(chance.choice((1, 4, 40))):
            at = chance.randrange(len(data) + 1)
            data[at : at + chance.randrange(200)] = chance.choice((
                b"", b"\n", chance.randbytes(4), chance.choice(files).read_bytes()[: chance.randrange(400)]
            ))  # fmt: skip
        path = tmp_path / "damaged"
        path.write_bytes(data)
        try:
            _, summary = _read(path, tmp_path)
        except SplitlockError as error:
            said.append(str(error))
        else:
            render_summary(summary)
    assert not any("\n" in words for words in said)


@pytest.fixture(scope="module")
def consoles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("consoles")
    with tarfile.open(CORPUS / "guests.tar.xz") as archive:
        for member in archive:  # not extractall(filter=): Debian 12's Python 3.11.2 is older than that
            if (stored := archive.extractfile(member)) is not None:
                (place / member.name).write_bytes(stored.read())
    return place


@pytest.mark.parametrize("guest", GUESTS)
def test_what_real_kernels_log_in_every_mode(consoles: Path, guest: str, tmp_path: Path) -> None:
    """As counted by grep; and where programs took split locks of which no line tells, it is not said that none did."""
    right = GUESTS[guest]
    events, summary = _read(consoles / guest, tmp_path)
    traps = [event.exception for event in events if event.kind == "trap"]
    assert (traps.count("#AC"), traps.count("#DB"), summary.killed) == (right["split"], right["bus"], right["killed"])
    held = right.get("held", {})
    assert summary.suppressed == held.get("split_lock_warn", 0) + held.get("handle_bus_lock", 0)
    assert (summary.unknown, summary.others) == (0, {})
    assert is_found(summary) is not right.get("deaf", False)
    assert not summary.whole
    if right.get("deaf"):
        assert "no split or bus lock logged" not in render_summary(summary)
    mode = guest.rpartition("-")[2].replace("ratelimit10", "ratelimit:10")
    assert summary.mode in (mode, None)  # off is silent since 7.1; a rate limit without #DB always
    assert (summary.mode is None) == (guest in ("6.1-sld-ratelimit10", "6.12-sld-ratelimit10") or guest in _SILENT)


_SILENT = ("7.2-sld-ratelimit10", "7.2-sld-off", "7.2-bus-lock-off", "7.2-both-off")


@pytest.mark.parametrize("shape", ["dmesg-color", "dmesg.gz", "json-array", "utf-16le-bom", "terminal-80"])
def test_explain_takes_its_line_through_the_same_door(shape: str) -> None:
    """The first with an address, of a log on standard input."""
    with (CORPUS / "shapes" / shape).open("rb") as given:
        done = subprocess.run(
            [sys.executable, "-m", "splitlock", "explain", "--format", "json", "-"],
            stdin=given, capture_output=True, text=True, check=False,
        )  # fmt: skip
    told = json.loads(done.stdout)
    assert (told["comm"], told["tid"], told["address"]) == ("osu!.exe", 11382, "0x7aa6806d")
    assert "`splitlock watch -` explains all" in done.stderr
