"""How it ends: on Ctrl-C, when somebody is killed, on what cannot be booted. Nothing is left, nothing written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from guard.machine import Kernel
from guest import boots
from guest.conftest import command


def _children(pid: int) -> list[int]:
    """Of a process, and theirs."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *_children(child)]
    return found


def _gone(pids: list[int], seconds: float = 8) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]
                   for pid in pids):  # fmt: skip
            return True
        time.sleep(0.1)
    return False


@pytest.fixture
def running(cloud: Kernel, built: dict[str, Path], tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A guest that has taken 300 split locks and goes on idling."""
    script = "demo 300\necho it goes on\nsleep 1000"
    initramfs = boots.initramfs(tmp_path / "initramfs", script, {"demo": built["demo"]})
    words = command("--kernel", cloud.image, "--initrd", initramfs, "--format", "json", "-o", tmp_path / "report.json")
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
    assert process.stderr
    seen = b""
    while b"it goes on" not in seen:
        data = os.read(process.stderr.fileno(), 65536)
        assert data, seen
        seen += data
    yield process
    process.kill()
    process.wait()


def _report(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "report.json").read_text())
    return found


@pytest.mark.parametrize("how", ["interrupted", "killed"])
def test_counts_survive(running: subprocess.Popen[bytes], tmp_path: Path, how: str) -> None:
    """Ctrl-C, or QEMU dies of kill -9: the report has all that was counted."""
    children = _children(running.pid)
    assert children
    if how == "interrupted":
        running.send_signal(signal.SIGINT)
    else:
        os.kill(children[0], signal.SIGKILL)
    running.communicate(timeout=30)
    assert running.returncode == 1
    report = _report(tmp_path)
    assert report["hits"] == 300
    assert report["sites"][0]["comm"] == "demo"
    assert report["watched"]["end"] == {"interrupted": "interrupted", "killed": "qemu: killed by signal 9"}[how]
    assert _gone(children)


def test_qemu_dies_with_us(running: subprocess.Popen[bytes]) -> None:
    """Killed, we leave no QEMU behind."""
    children = _children(running.pid)
    running.kill()
    assert _gone(children)


def _fails(*words: object) -> str:
    done = subprocess.run(command(*words), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--disk", "/none"], "--disk /none: No such file"),
        (["--kernel", "/etc"], "--kernel /etc: Is a directory"),
        (["--kernel", "/etc/passwd"], "--kernel /etc/passwd: neither a bzImage (vmlinuz) nor a vmlinux"),
        (["--kernel", "/bin/true", "--duration", "0"], "argument --duration: invalid seconds value: '0'"),
        (["--cdrom", "/dev/null"], "--cdrom /dev/null: empty"),
        ([], "nothing to boot"),
        (["--disk", "/bin/true", "--initrd", "/bin/true"], "--initrd: goes with --kernel"),
        (["--kernel", "/bin/true", "--qemu", "/none"], "/none: not found"),
        (["--kernel", "/bin/true", "--qemu", "/bin/true"], "is no qemu-system-x86_64"),
        (["--kernel", "/bin/true", "--smp", "0"], "--smp 0"),
        (["--kernel", "/bin/true", "--firmware", "/none"], "--firmware /none: no such file"),
        (["--kernel", "/bin/true", "-m", "900000G"], "take less"),
        (["--kernel", "/bin/true", "--until", "("], "no regular expression"),
        (["--kernel", "/bin/true", "--", "-nonsense"], "-nonsense"),
        (["--kernel", "/bin/true", "-o", "/none/x"], "-o /none/x"),
    ],
)
def test_errors(words: list[str], said: str) -> None:
    """One line each, which names the file or the option."""
    assert said in _fails(*words)


@pytest.mark.parametrize("what", ["a disk of zeros", "a kernel that does not run"])
def test_nothing_came_up(tmp_path: Path, cloud: Kernel, what: str) -> None:
    """No Linux kernel was seen: that is no clean guest, and -q does not hide it."""
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    words = ["--disk", disk] if what == "a disk of zeros" else ["--kernel", cloud.image]
    stopped = ["--", "-S"] if what != "a disk of zeros" else []
    done = subprocess.run(
        command(*words, "--duration", "1", "-q", *stopped), capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout.startswith("no split locks in what was watched\n")
    assert "unknown, no Linux kernel was seen" in done.stdout


def test_no_qemu(tmp_path: Path) -> None:
    """Not installed: what to install."""
    done = subprocess.run(
        command("--kernel", "/bin/true"), capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 2
    assert "install qemu-system-x86" in done.stderr


def test_truncated(built: dict[str, Path], tmp_path: Path) -> None:
    """Images that were cut short, of either format, are told apart from whole ones, and left as they are."""
    raw = tmp_path / "raw.img"
    with raw.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["sfdisk", "-q", raw], input="label: gpt\nstart=2048, size=20000\n", text=True, check=True)
    table = shutil.copy(raw, tmp_path / "whole.img")
    os.truncate(raw, 8 << 20)
    assert "truncated" in _fails("--disk", raw)

    data = tmp_path / "data.img"
    data.write_bytes(os.urandom(4 << 20))
    qcow2 = tmp_path / "image.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", data, qcow2], check=True)
    for size in (qcow2.stat().st_size - (1 << 20), 1 << 17, 100):
        os.truncate(qcow2, size)
        assert "truncated" in _fails("--disk", qcow2)

    before = hashlib.sha256(Path(table).read_bytes()).digest()
    done = subprocess.run(command("--disk", table, "--duration", "3"), capture_output=True, check=False)
    assert done.returncode == 2, done.stderr  # whole, but there is no system on it
    assert b"no Linux kernel was seen" in done.stdout
    assert hashlib.sha256(Path(table).read_bytes()).digest() == before
