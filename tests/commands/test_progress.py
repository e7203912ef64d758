"""The progress bar of scan and exports: on a terminal only, and never in the way of a report."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from modules.debian import modules, packages

SPLITLOCK = [sys.executable, "-m", "splitlock"]


@pytest.fixture(scope="session")
def package() -> str:
    """Debian's kernel for clouds: takes some seconds."""
    return str(packages("cloud-amd64")["cloud-amd64"])


@cache
def plain(*words: str) -> str:
    """What goes into a pipe."""
    return subprocess.run([*SPLITLOCK, *words], capture_output=True, text=True, check=False).stdout


def on_a_terminal(words: list[str], out: int | None = None, kind: str = "xterm") -> str:
    """What a terminal is sent; standard output goes to `out` where that is given."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": kind, "NO_COLOR": "1"}
    process = subprocess.Popen(words, stdin=follower, stdout=out or follower, stderr=follower, env=environment)
    os.close(follower)
    seen = b""
    try:
        while data := os.read(leader, 65536):
            seen += data
    except OSError:  # closed at the other end
        pass
    os.close(leader)
    process.wait()
    return seen.decode()


def shown(sent: str) -> str:
    """What a terminal shows in the end: it knows line ends, a line up (CSI A) and erasing a line (CSI K)."""
    lines, row, column = [""], 0, 0
    for number, action, end, text in re.findall(r"\x1b\[\??([\d;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)", sent):
        if action == "A":
            row -= int(number or 1)
        elif action == "K":
            lines[row] = ""
        elif end == "\r":
            column = 0
        elif end:
            row += 1
            lines += [""] * (row >= len(lines))
        elif text:
            lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + len(text) :]
            column += len(text)
    return "\n".join(line.rstrip() for line in lines)


@pytest.mark.parametrize("words", [["exports", "--users", "vmap", "--modules"], ["scan"]])
def test_it_keeps_out_of_a_report_that_goes_elsewhere(words: list[str], package: str, tmp_path: Path) -> None:
    with open(tmp_path / "report", "wb") as report:
        sent = on_a_terminal([*SPLITLOCK, *words, package, "--format", "json"], report.fileno())
    assert {"exports": "reading modules", "scan": "scanning"}[words[0]] in sent
    assert re.search(r"\d+ files", sent)  # a package: nobody knows of how many
    assert not shown(sent).strip()
    json.loads((tmp_path / "report").read_text())


def test_it_steps_aside_on_the_same_terminal(package: str) -> None:
    sent = on_a_terminal([*SPLITLOCK, "scan", package])
    assert "scanning" in sent
    assert shown(sent) == plain("scan", package)


@pytest.mark.parametrize(("more", "kind"), [(["--format", "json"], "xterm"), ([], "dumb")])
def test_there_is_none_where_it_would_disturb(package: str, more: list[str], kind: str) -> None:
    words = ["scan", package, *more]
    assert on_a_terminal([*SPLITLOCK, *words], kind=kind).replace("\r\n", "\n") == plain(*words)


def test_of_how_many(tmp_path: Path) -> None:
    """Of files the number is known: here a large module many times over, which takes longer than a moment."""
    for number in range(1000):
        (tmp_path / f"{number}.ko").symlink_to(modules("cloud-amd64")["xfs.ko"])
    sent = on_a_terminal([*SPLITLOCK, "scan", "-j", "1", "-o", "/dev/null", str(tmp_path)])
    assert re.search(r"\d+ of 1,000 files", sent), sent
