"""`splitlock probe`: its commands, and every failure in one line with nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
from modules.debian import ROOT

from splitlock.report.probe import Report

SPLITLOCK = [sys.executable, "-m", "splitlock", "probe"]


def run(*words: str | Path, prefix: tuple[str, ...] = (), **more: object) -> subprocess.CompletedProcess[str]:
    command = [*prefix, *SPLITLOCK, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False, **more)  # type: ignore[call-overload,no-any-return]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go; nothing may be left there."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    return place


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A QEMU whose processor never starts."""
    script = tmp_path / "qemu"
    script.write_text('#!/bin/sh\nexec qemu-system-x86_64 "$@" -S\n')
    script.chmod(0o755)
    return script


def children(process: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def gone(pid: int) -> bool:
    return (
        not Path(f"/proc/{pid}").exists() or Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    )


def test_run_and_read(tmp_path: Path, temporary: Path) -> None:
    log = tmp_path / "serial.log"
    done = run("run", "--qemu", "tcg", "--format", "json", "--log", log)
    assert (done.returncode, done.stderr) == (0, "")
    jsonschema.validate(json.loads(done.stdout), json.loads((ROOT / "docs" / "probe.schema.json").read_text()))
    report = Report.from_json(done.stdout)
    assert report.source == "QEMU tcg"
    again = run("read", log, "-v")
    assert (again.returncode, again.stderr) == (0, "")
    assert max(map(len, again.stdout.splitlines())) <= 80
    assert again.stdout.startswith("verdict: no detection seen: nothing to handle\n")
    assert run("read", "-", input=log.read_text()).stdout.count("completes") == 40
    assert run("read", log, "-q").stdout == ""
    target = tmp_path / "report.json"
    assert run("read", log, "--format", "json", "-o", target).stdout == ""
    assert Report.from_json(target.read_bytes()).rows == report.rows
    assert list(temporary.iterdir()) == []


def test_bochs(temporary: Path) -> None:
    done = run("run", "--bochs")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("verdict: injects only when asked\n")
    assert list(temporary.iterdir()) == []


def test_build(tmp_path: Path) -> None:
    target = tmp_path / "probe.iso"
    done = run("build", "-o", target)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{target}: ")
    assert target.read_bytes()[0x8001:0x8006] == b"CD001"
    assert run("build", "-o", target, "-q").stdout == ""
    assert run("build", "-o", tmp_path / "no" / "where").stderr.endswith("name a file that can be written\n")


def test_logs_that_are_none(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.log"
    foreign.write_bytes(b"SeaBIOS (version 1.16)\n\x00\xff")
    for path, why in (
        (foreign, "no line of the probe's in it"),
        (tmp_path / "none", "No such file"),
        (tmp_path, "Is a dir"),
    ):
        done = run("read", path)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert why in done.stderr
        assert "name the log of the first serial port" in done.stderr


def test_truncated(tmp_path: Path, bochs: bytes) -> None:
    """What is there is shown, what is not is said, and the exit status says so, too."""
    log = tmp_path / "serial.log"
    log.write_bytes(bochs[: bochs.index(b"end 30 ")])
    done = run("read", log)
    assert (done.returncode, done.stderr) == (2, "")
    assert "missing: the end: the log breaks off within row 30\n" in done.stdout


@pytest.mark.parametrize("option", ["--qemu-binary", "--bochs-binary"])
def test_emulator_missing(temporary: Path, option: str) -> None:
    where = ["--qemu", "tcg"] if option == "--qemu-binary" else ["--bochs"]
    done = run("run", *where, option, "/no/such/program")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "/no/such/program: not found; install " in done.stderr
    done = run("run", *where, option, "false")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "ended with status 1" in done.stderr
    assert list(temporary.iterdir()) == []


def test_qemu_says_why(temporary: Path, tmp_path: Path) -> None:
    script = tmp_path / "qemu"
    script.write_text('#!/bin/sh\nexec qemu-system-x86_64 "$@" -device nonsense\n')
    script.chmod(0o755)
    done = run("run", "--qemu", "tcg", "--qemu-binary", script)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "'nonsense' is not a valid device model name" in done.stderr


def test_deadline(temporary: Path, stopped: Path) -> None:
    done = run("run", "--qemu", "tcg", "--qemu-binary", stopped, "--timeout", "1")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "no end after 1 s" in done.stderr
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("victim", ["us", "emulator"])
def test_ended(temporary: Path, stopped: Path, end: signal.Signals, victim: str) -> None:
    """Whoever is ended, no emulator stays; and a valid report comes of Ctrl-C."""
    command = [*SPLITLOCK, "run", "--qemu", "tcg", "--qemu-binary", str(stopped), "--format", "json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        started = children(process.pid)
        if started and "qemu-system" in os.readlink(f"/proc/{started[0]}/exe"):
            break
        time.sleep(0.02)
    (emulator,) = started
    os.kill(process.pid if victim == "us" else emulator, end)
    out, err = process.communicate(timeout=30)
    for _ in range(100):
        if gone(emulator):
            break
        time.sleep(0.05)
    assert gone(emulator)
    if victim == "emulator":
        assert process.returncode == 2
        assert err.count("\n") == 1
        assert f"was killed by signal {end:d} (" in err or "QEMU ended with status 0" in err
    elif end != signal.SIGKILL:
        assert (process.returncode, err) == (130, "")
        assert "interrupted" in Report.from_json(out).missing
    if (victim, end) != ("us", signal.SIGKILL):
        assert list(temporary.iterdir()) == []


_NONE, _DENIED = "true", "touch /dev/kvm && chown 65534 /dev/kvm && chmod 0 /dev/kvm"
_OTHER = "mknod /dev/kvm c 1 3"


@pytest.mark.parametrize(("where", "script", "why"), [
    ("--kvm", _NONE, "No such file or directory; load kvm_intel or kvm_amd, or use --qemu tcg"),
    ("--kvm", _DENIED, "Permission denied; be root, or join the group kvm"),
    ("--kvm", _OTHER, "Inappropriate ioctl for device; use --qemu tcg"),
    ("--qemu=kvm", _NONE, "No such file or directory; load kvm_intel or kvm_amd, or use --qemu tcg"),
    ("--qemu=kvm", _DENIED, "Permission denied; be root, or join the group kvm"),
])  # fmt: skip
def test_kvm_missing(where: str, script: str, why: str) -> None:
    """With a /dev of its own, in which there is no KVM, or none for us, or something else."""
    if os.geteuid():
        pytest.skip("needs root, for a /dev of its own")
    shell = f'mount -t tmpfs none /dev && {script} && exec setpriv --bounding-set=-dac_override,-dac_read_search "$@"'
    done = run("run", where, prefix=("unshare", "--mount", "sh", "-c", shell, "sh"))
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"splitlock: /dev/kvm: {why}\n")


def test_usage() -> None:
    for words in (["--help"], ["build", "--help"], ["run", "--help"], ["read", "--help"]):
        done = run(*words)
        assert done.returncode == 0
        assert max(map(len, done.stdout.splitlines())) <= 80
    for words in ([], ["run"], ["run", "--kvm", "--bochs"], ["run", "--kvm", "--timeout", "0"], ["read"]):
        assert run(*words).returncode == 2
