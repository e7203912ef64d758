"""`splitlock watch`: its text, its JSON, its counters, its unit and dashboard."""

from __future__ import annotations

import gzip
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
[    0.000000] Linux version 6.13.1-arch1-1 (linux@archlinux) (gcc (GCC) 14.2.1 20250128) #1 SMP PREEMPT_DYNAMIC
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
    assert done.stdout.endswith("read 7 records of -, none known to be lost, mode warn\n")
    assert "held back by the kernel's rate limit: 35 lines more\n" in done.stdout
    assert run("-q", "-").stdout.startswith("4 traps\n")


def test_nothing() -> None:
    """Said of a log that is whole since boot, by a kernel that detects; of any other it is not known."""
    log = "".join(LOG.splitlines(keepends=True)[:2]) + "[  999.000000] usb 1-1: new high-speed USB device\n"
    done = run("-", log=log)
    said = "[    0.000000] #DB: warning on user-space bus_locks (mode warn)\nno split or bus lock logged since boot\n"
    assert (done.returncode, done.stdout) == (0, f"{said}read 3 records of -, none known to be lost, mode warn\n")
    assert run("-q", "-", log=log).stdout == ""
    done = run("-", log="nothing\n")
    assert done.returncode == 2
    assert done.stdout.startswith("no split or bus lock in what was read\nread 1 record of -, none known to be lost\n")
    assert "(Linux version ...) is not in it" in done.stdout
    assert run("-q", "-", log="nothing\n").stdout == done.stdout


def test_one_address_under_many_names() -> None:
    """Threads of a program, most likely: one line as it comes, one in the sum; the hint once, of options there are."""
    names = ["RenderThread 1", "RenderThread 2", "AudioMixer", "RenderThread 1", "physics"]
    done = run("-", log="".join(_line(name, number) for number, name in enumerate(names, 40)))
    assert done.stdout.count("took a split lock") == 1
    assert done.stdout.count("the address alone") == 1
    assert "0x7ff6a31c2e3d: 5 lines by 4 names (RenderThread 1," in " ".join(done.stdout.split())
    hint = " ".join(done.stdout.split())
    options = subprocess.run([*SPLITLOCK, "--help"], capture_output=True, text=True, check=True).stdout
    assert "`splitlock watch --maps SAVED`" in hint
    assert "--maps SAVED" in options


def _line(name: str, number: int) -> str:
    return f"x86/split lock detection: #AC: {name}/{number} took a split_lock trap at address: 0x7ff6a31c2e3d\n"


def test_a_line_that_is_not_understood() -> None:
    """Never nothing: it is counted and shown, and the exit status says that it could not be told."""
    log = (
        "".join(LOG.splitlines(keepends=True)[:2]) + "[  999.000000] x86/split lock detection: #AC: a/1 did something\n"
    )
    done = run("-", log=log)
    assert done.returncode == 2
    assert "no split or bus lock in what was read" in done.stdout
    assert "1 line in the kernel's words is not understood, first: x86/split lock detection: #AC: a/1 did" in " ".join(
        done.stdout.split()
    )
    *_, summary = map(json.loads, run("--format", "json", "-", log=log).stdout.splitlines())
    assert (summary["unknown"], summary["whole"]) == (1, False)


def test_logs_that_are_several_files(tmp_path: Path) -> None:
    """As the shell names them, and as a directory."""
    lines = LOG.splitlines(keepends=True)
    (tmp_path / "kern.log").write_text("")
    (tmp_path / "kern.log.1").write_text("".join(lines[4:]))
    (tmp_path / "kern.log.2.gz").write_bytes(gzip.compress("".join(lines[:4]).encode()))
    whole = [json.loads(line) for line in run("--format", "json", "-").stdout.splitlines()]
    for words in ([tmp_path], sorted(tmp_path.iterdir())):
        told = [json.loads(line) for line in run("--format", "json", *words).stdout.splitlines()]
        assert told[:-1] == whole[:-1]
        assert (told[-1]["traps"], told[-1]["read"]) == (4, 7)
    done = run(tmp_path / "kern.log")
    assert done.returncode == 2
    assert "kern.log.2.gz, kern.log.1" in done.stdout
    assert run("-f", *tmp_path.iterdir()).returncode == 2


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
