"""Logs of several machines, and of boots whose first line is missing: each word is of its own machine and boot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from splitlock.commands import main
from splitlock.host.log.heard import Heard
from splitlock.host.root import Root

BANNER = "Linux version 6.12.48+deb13-amd64 (debian-kernel@lists.debian.org) (gcc) #1 SMP Debian 6.12.48-1"
PREFIX = "x86/split lock detection: "
WARN = PREFIX + "#AC: crashing the kernel on kernel split_locks and warning on user-space split_locks"
TRAP = PREFIX + "#AC: {}/901 took a split_lock trap at address: 0x55d0c2a417f2"
QUIET = "eth0: Link is Up"
FIRST = "the kernel's first line (Linux version ...) is not in it"

Line = tuple[str, int, str]  # host, seconds since boot, words


def _entry(host: str, clock: int, words: str) -> dict[str, str]:
    return {
        "_HOSTNAME": host, "_MACHINE_ID": f"{sum(host.encode()):032x}", "_BOOT_ID": f"{sum(host.encode()) + 1:032x}",
        "__REALTIME_TIMESTAMP": str(1_800_000_000_000_000 + clock * 1_000_000), "_TRANSPORT": "kernel",
        "SYSLOG_IDENTIFIER": "kernel", "MESSAGE": words,
    }  # fmt: skip


def _export(host: str, clock: int, words: str) -> str:
    return "".join(f"{name}={value}\n" for name, value in _entry(host, clock, words).items()) + "\n"


#: What loggers make of a line: of each a file's text.
SHAPES: dict[str, Callable[[str, int, str], str]] = {
    "rsyslog": lambda host, clock, words: f"Nov  1 10:00:00 {host} kernel: [{clock:5}.000000] {words}\n",
    "ISO": lambda host, clock, words: f"2026-11-01T10:00:00.5+01:00 {host} kernel: [{clock:5}.000000] {words}\n",
    "no clock": lambda host, clock, words: f"Nov  1 10:00:00 {host} kernel: {words}\n",
    "RFC 5424": lambda host, clock, words: (
        f"<4>1 2026-11-01T10:00:00Z {host} kernel - - - [{clock:5}.000000] {words}\n"
    ),
    "short-monotonic": lambda host, clock, words: f"[{clock:5}.000000] {host} kernel: {words}\n",
    "short-full": lambda host, clock, words: f"Sun 2026-11-01 10:00:00 UTC {host} kernel: {words}\n",
    "short-unix": lambda host, clock, words: f"1800000000.123456 {host} kernel: {words}\n",
    "journal, JSON": lambda host, clock, words: json.dumps(_entry(host, clock, words)) + "\n",
    "journal, export": _export,
    "rsyslog, JSON": lambda host, clock, words: (
        json.dumps({"hostname": host, "programname": "kernel", "msg": f"[{clock:5}.000000] {words}"}) + "\n"
    ),
}


def _boot(host: str) -> list[Line]:
    return [(host, 0, BANNER), (host, 0, WARN), (host, 4000, QUIET)]


def _turns(one: list[Line], other: list[Line]) -> list[Line]:
    return [line for pair in zip(one, other, strict=True) for line in pair]


_ONE, _OTHER = _boot("web1"), _boot("web2")
#: Lines; what `status` on web1 must find: lines, whether whole; what `watch` must say: exit status, words.
LOGS: dict[str, tuple[list[Line], tuple[int, bool], tuple[int, str]]] = {
    "one": (_ONE, (0, True), (0, "")),
    "by its whole name": (_boot("web1.example.org"), (0, True), (0, "")),
    "in turns": (_turns(_ONE, _OTHER), (0, True), (0, "")),
    "one after the other": (_OTHER + _ONE, (0, True), (0, "")),
    "the other trapped": ([*_turns(_ONE, _OTHER), ("web2", 4100, TRAP.format("b"))], (0, True), (1, "")),
    "this one trapped, then the other booted": ([*_ONE, ("web1", 4100, TRAP.format("a")), *_OTHER], (1, True), (1, "")),
    "the other's beginning is missing": ([*_ONE, ("web2", 4000, QUIET)], (0, True), (2, f"web2: {FIRST}")),
    "the other's beginning is missing, and many lines": (
        [*_ONE, *[("web1", 4000 + n, QUIET) for n in range(1500)], ("web2", 4000, QUIET),
         *[("web1", 8000 + n, QUIET) for n in range(1500)]], (0, True), (2, "web2: the kernel's first line")),
    "this one's beginning is missing": ([*_OTHER, ("web1", 4000, QUIET)], (0, False), (2, f"web1: {FIRST}")),
    "the other is deaf": (
        [*_ONE, ("web2", 0, BANNER), ("web2", 0, PREFIX + "disabled"), ("web2", 4000, QUIET)], (0, True),
        (2, "web2: detection is off")),
    "this one is deaf, the other is not": (
        [("web1", 0, BANNER), ("web1", 0, PREFIX + "disabled"), ("web1", 4000, QUIET), *_OTHER], (0, True),
        (2, "web1: detection is off")),
}  # fmt: skip


def _write(tmp_path: Path, text: str, hostname: str = "web1") -> Path:
    path = tmp_path / "var/log/kern.log"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/hostname").write_text(f"{hostname}\n")
    return path


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("log", LOGS)
def test_each_word_is_of_its_machine(log: str, shape: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines, (found, whole), (status, words) = LOGS[log]
    path = _write(tmp_path, "".join(SHAPES[shape](*line) for line in lines))
    report = Heard(Root(str(tmp_path))).report()
    assert (report.lines, report.whole) == (found, whole), report.why
    assert main(["watch", str(path)]) == status
    said = " ".join(capsys.readouterr().out.split())
    assert words in said
    others = {host.partition(".")[0] for host, _, _ in lines}
    assert len(others) == 1 or all(host in said for host in others), said


@pytest.mark.parametrize("hostname", ["", "localhost", "localhost.localdomain"])
@pytest.mark.parametrize("shape", SHAPES)
def test_which_machine_is_not_known(shape: str, hostname: str, tmp_path: Path) -> None:
    """Without a name of its own it may be either."""
    _write(tmp_path, "".join(SHAPES[shape](*line) for line in _turns(_ONE, _OTHER)), hostname)
    found = Heard(Root(str(tmp_path))).report()
    assert not found.whole
    assert "several machines are in it" in found.why


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if not shape.startswith("journal")])
def test_a_machine_gets_its_name_as_it_boots(shape: str, tmp_path: Path) -> None:
    """Until then it is `localhost`, in logs of one machine; with two nobody can tell."""
    lines = [("localhost", 0, BANNER), ("localhost", 0, WARN), ("web1", 4000, QUIET)]
    path = _write(tmp_path, "".join(SHAPES[shape](*line) for line in lines))
    assert Heard(Root(str(tmp_path))).report().whole
    assert main(["watch", str(path)]) == 0
    path.write_text("".join(SHAPES[shape](*line) for line in [*lines, *_OTHER]))
    assert main(["watch", str(path)]) == 2


@pytest.mark.parametrize("soon", ["web1", "web2"])
@pytest.mark.parametrize("shape", ["rsyslog", "ISO", "RFC 5424", "short-monotonic", "rsyslog, JSON"])
def test_one_of_them_ends_with_its_boot(
    shape: str, soon: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [*_ONE, *_OTHER]
    lines = [(f"{host}.lan", 7 if host == soon and clock else clock, words) for host, clock, words in lines]
    path = tmp_path / "saved"
    path.write_text("".join(SHAPES[shape](*line) for line in lines))
    assert main(["watch", str(path)]) == 2
    assert f"{soon}: it ends with the boot" in " ".join(capsys.readouterr().out.split())


#: By the kernel's clock and its words: is the last boot's beginning there?
BOOTS: dict[str, tuple[list[tuple[int, str]], bool]] = {
    "one": ([(0, BANNER), (0, WARN), (4000, QUIET)], True),
    "its processors' clocks differ": ([(0, BANNER), (0, WARN), (4000, QUIET), (3998, QUIET), (4001, QUIET)], True),
    "again": ([(0, BANNER), (0, WARN), (4000, QUIET), (0, BANNER), (0, WARN), (100, QUIET)], True),
    "again, microcode first": (
        [(0, BANNER), (0, WARN), (4000, QUIET), (0, "microcode: updated"), (0, BANNER), (0, WARN), (100, QUIET)], True),
    "again, and not from its beginning": ([(0, BANNER), (0, WARN), (4000, QUIET), (12, QUIET), (900, QUIET)], False),
    "for longer than before": ([(0, BANNER), (0, WARN), (4000, QUIET), (12, QUIET), (90_000, QUIET)], False),
    "the mode is there, and no first line": ([(0, BANNER), (0, WARN), (4000, QUIET), (0, WARN), (900, QUIET)], False),
}  # fmt: skip


@pytest.mark.parametrize("many", [0, 1500])
@pytest.mark.parametrize("shape", ["rsyslog", "ISO", "RFC 5424", "short-monotonic", "rsyslog, JSON", "dmesg", "kmsg"])
@pytest.mark.parametrize("boots", BOOTS)
def test_a_boot_whose_first_line_is_missing(boots: str, shape: str, many: int, tmp_path: Path) -> None:
    """The clock goes back: what was said before is of another boot. `many`: lines of no interest between."""
    lines, whole = BOOTS[boots]
    made = {
        "dmesg": lambda host, clock, words: f"[{clock:5}.000000] {words}\n",
        "kmsg": lambda host, clock, words: f"6,{clock},{clock}000000,-;{words}\n",
    }
    if shape == "kmsg" and "differ" in boots:
        pytest.skip("its numbers here are the clock's")
    text = ""
    for clock, words in lines:
        text += (made | SHAPES)[shape]("web1", clock, words)
        filler = (made | SHAPES)[shape]("web1", clock, QUIET) if words == QUIET and shape != "kmsg" else ""
        text += filler * many
    if shape == "kmsg":  # each record has a number
        text = "".join(f"6,{n},{line.split(',', 2)[2]}\n" for n, line in enumerate(text.splitlines()))
    path = _write(tmp_path, text)
    found = Heard(Root(str(tmp_path))).report()
    assert found.whole == whole, found.why
    assert main(["watch", "-q", str(path)]) == (0 if whole else 2)


def test_journalctl_says_where_a_boot_begins(tmp_path: Path) -> None:
    rows = [SHAPES["no clock"](*line) for line in _ONE]
    for between in (f"-- Boot {'ab' * 16} --\n", "-- Reboot --\n"):
        path = tmp_path / "saved"
        path.write_text("".join([*rows, between, SHAPES["no clock"]("web1", 50, QUIET)]))
        assert main(["watch", "-q", str(path)]) == 2
        path.write_text("".join([*rows, between, *rows]))
        assert main(["watch", "-q", str(path)]) == 0


def test_the_journals_ids_tell_boots_and_machines(tmp_path: Path) -> None:
    """A machine that is renamed is one; two of one name are two; a boot's id without its first line is not whole."""
    base = [_entry("web1", clock, words) for _, clock, words in _ONE]
    renamed = [*base, {**base[-1], "_HOSTNAME": "db1"}]
    twins = [*base, {**base[-1], "_MACHINE_ID": "7" * 32, "_BOOT_ID": "8" * 32}]
    again = [*base, {**base[-1], "_BOOT_ID": "9" * 32}]
    for entries, status in ((renamed, 0), (twins, 2), (again, 2), ([*again, *base], 0)):
        path = tmp_path / "saved.json"
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        assert main(["watch", "-q", str(path)]) == status, entries
