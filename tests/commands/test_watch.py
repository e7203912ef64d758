"""`splitlock watch`: its text, its JSON, its counters, its unit and dashboard."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

import splitlock

SPLITLOCK = [sys.executable, "-m", "splitlock", "watch"]
HOST = Path(splitlock.__file__).parent / "host"
LOG = """\
[    0.000000] x86/split lock detection: #DB: warning on user-space bus_locks
[  688.792264] x86/split lock detection: #AC: osu!.exe/11382 took a split_lock trap at address: 0x7aa6806d
[  688.792874] x86/split lock detection: #AC: osu!.exe/11360 took a split_lock trap at address: 0x7aa6806d
[  689.000000] x86/split lock detection: #AC: CPU 1/KVM/33027 took a split_lock trap at address: 0xbff4b050
[  690.000000] x86/split lock detection: #DB: \x1b[2Jbad/5 took a bus_lock trap at address: 0x10
[  696.619251] split_lock_warn: 35 callbacks suppressed
"""


def run(*words: object, log: str = LOG) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SPLITLOCK, *map(str, words)], input=log, capture_output=True, text=True, timeout=60, check=False
    )


def test_text() -> None:
    done = run("-")
    assert (done.returncode, done.stderr) == (1, "")
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert done.stdout.count("took a split lock at 0x7aa6806d") == 1  # once a place
    assert run("-v", "-").stdout.count("took a split lock at 0x7aa6806d") == 2
    assert "an address in the guest, not QEMU's own" in done.stdout
    assert "\x1b" not in done.stdout
    assert "4 traps\n      2  #AC osu!.exe        0x7aa6806d\n" in done.stdout
    assert done.stdout.endswith("read 6 records of -, none known to be lost, mode warn\n")
    assert "held back by the kernel's rate limit: 35 lines more\n" in done.stdout
    assert run("-q", "-").stdout.startswith("4 traps\n")


def test_nothing() -> None:
    done = run("-", log="nothing\n")
    assert (done.returncode, done.stdout) == (
        0,
        "no split or bus lock logged\nread 1 record of -, none known to be lost\n",
    )
    assert run("-q", "-", log="nothing\n").stdout == ""


def test_json() -> None:
    done = run("--format", "json", "-")
    *events, summary = map(json.loads, done.stdout.splitlines())
    assert [event["kind"] for event in events] == ["mode", *["trap"] * 4, "suppressed"]
    assert (summary["traps"], summary["suppressed"], summary["mode"]) == (4, 35, "warn")
    assert (events[1]["stamp"], events[1]["address"], events[1]["tid"]) == ("[  688.792264]", "0x7aa6806d", 11382)


def test_counters(tmp_path: Path) -> None:
    """What Prometheus is given, and that the dashboard asks for just these names."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path / "log"
    log.write_text(LOG)
    with subprocess.Popen(
        [*SPLITLOCK, "-f", "-q", "--listen", f"127.0.0.1:{port}", log], stdout=subprocess.DEVNULL
    ) as process:
        text = ""
        deadline = time.monotonic() + 20
        while "suppressed_total{" not in text and time.monotonic() < deadline:
            time.sleep(0.1)
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                    text = answer.read().decode()
            except OSError:
                pass
        process.terminate()
        assert process.wait(20) == 1
    labels = 'comm="osu!.exe",exception="#AC",function="",guest="no",image="",kind="trap"'
    assert f"splitlock_watch_lines_total{{{labels}}} 2.0" in text
    assert 'guest="yes",image="",kind="trap"} 1.0' in text
    assert 'splitlock_watch_suppressed_total{exception="#AC"} 35.0' in text
    dashboard = (HOST / "grafana" / "splitlock-watch.json").read_text()
    asked = set(re.findall(r"splitlock_watch_\w+", dashboard))
    assert asked == {"splitlock_watch_lines_total", "splitlock_watch_suppressed_total", "splitlock_watch_lost_total"}
    assert all(f"# TYPE {name} counter" in text for name in asked)
    groups = {label.strip() for found in re.findall(r"by \(([^)]*)\)", dashboard) for label in found.split(",")}
    assert groups <= {"comm", "image", "function", "exception", "guest", "kind", "instance"}


def test_unit() -> None:
    """systemd takes it, but for the path of the program."""
    unit = HOST / "units" / "splitlock-watch.service"
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if "splitlock-watch" in line and "is not executable" not in line]
    assert said == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give up capabilities")
def test_the_units_capabilities(tmp_path: Path) -> None:
    """They do for another process's program that was deleted since."""
    unit = (HOST / "units" / "splitlock-watch.service").read_text()
    kept = re.findall(r"CAP_(\w+)", unit.partition("CapabilityBoundingSet=")[2].partition("\n")[0])
    program = tmp_path / "sleeps"
    shutil.copy(shutil.which("sleep") or "", program)
    with subprocess.Popen([program, "60"]) as process:
        while Path(f"/proc/{process.pid}/comm").read_text() != "sleeps\n":
            time.sleep(0.01)
        program.unlink()
        maps = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
        code = next(line for line in maps if " r-xp " in line and str(program) in line)
        line = f"#AC: sleeps/{process.pid} took a split_lock trap at address: 0x{code.split('-')[0]}"
        done = subprocess.run(
            ["setpriv", "--bounding-set", ",".join(["-all", *(f"+{name.lower()}" for name in kept)]), "--no-new-privs",
             sys.executable, "-m", "splitlock", "explain", "--pid", str(process.pid), "--format", "json", line],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        process.kill()
    place = json.loads(done.stdout)["place"]
    assert place["image"] == str(program)
    assert place["offset"]


@pytest.mark.parametrize("closed", [True, False])
def test_a_reader_that_has_seen_enough(closed: bool) -> None:
    command = " ".join([*SPLITLOCK, "-v", "-"]) + (" | head -n 1" if closed else "")
    done = subprocess.run(["sh", "-c", command], input=LOG * 2000, capture_output=True, text=True, check=False)
    assert done.stderr == ""
