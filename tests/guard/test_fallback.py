"""The fanotify gate, for real: on a file system of the test's own, with files as insmod and others open them.

This kernel need not be able to load modules: what insmod says tells who refused (EPERM: the gate).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from x86.building import assemble

from splitlock.guard import fallback
from splitlock.guard.fallback import Gate, is_loader, looks_like_module
from splitlock.modules.policy import load
from splitlock.report.guard import Decision

_MODULE = """.section .modinfo,"a"; .asciz "name=toy"; .asciz "vermagic=6.1.0 SMP"
.text; .globl f; .type f,@function; f: {}; ret; .size f,.-f"""


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs with modules and other files."""
    if os.geteuid():
        pytest.skip("needs root: mounts a file system and marks it with fanotify")
    bad, good = (assemble(tmp_path, _MODULE.format(word), word).read_bytes() for word in ("vmlaunch", "nop"))
    directory = tmp_path / "fs"
    directory.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "none", directory], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    (directory / "bad.ko").write_bytes(bad)
    (directory / "good.ko").write_bytes(good)
    (directory / "broken.ko").write_bytes(bad[:100])
    (directory / "text").write_text("hello")
    yield directory
    subprocess.run(["umount", "-l", directory], check=True)


class Running:
    """A gate in a thread, with what it told."""

    def __init__(self, directory: Path, *, audit: bool = False, patience: float = 20) -> None:
        self.told: list[Decision] = []
        self.going = True
        self.gate = Gate(load("refuse"), audit, self.told.append, patience)
        self.gate.watch(str(directory))
        self.thread = threading.Thread(target=self.gate.serve, args=(lambda: self.going,), daemon=True)
        self.thread.start()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.going = False
        self.thread.join(10)
        self.gate.notify.close()


def insmod(path: Path) -> str:
    """What insmod says of a file."""
    done = subprocess.run(["insmod", path], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode  # whatever the reason: no kernel takes these
    return done.stderr.strip().rpartition(": ")[2]


def test_bad_modules_are_refused_and_nothing_else(watched: Path) -> None:
    with Running(watched) as running:
        assert insmod(watched / "bad.ko") == "Operation not permitted"
        assert insmod(watched / "good.ko") != "Operation not permitted"
        assert insmod(watched / "broken.ko") == "Operation not permitted"
        copied = watched / "a copy with no ending"
        shutil.copy(watched / "bad.ko", copied)  # who does not load may read it
        assert insmod(copied) == "Operation not permitted"
        assert (watched / "text").read_text() == "hello"
        assert len(subprocess.run(["cat", watched / "bad.ko"], capture_output=True, check=True).stdout) > 100
    said = [(d.comm, d.verdict, d.refused, d.doubt, d.gate) for d in running.told]
    assert said == [
        ("insmod", "refuse", True, None, "fanotify"),
        ("insmod", "allow", False, None, "fanotify"),
        ("insmod", "refuse", True, "malformed", "fanotify"),
        ("insmod", "refuse", True, None, "fanotify"),
    ]
    assert [finding.kind for finding in running.told[0].findings] == ["VMLAUNCH"]
    assert running.told[0].reason == "VMLAUNCH: a hypervisor, neither sld_safe nor SLD-aware"


def test_compressed_ones_too(watched: Path) -> None:
    subprocess.run(["xz", "-k", "--check=crc32", watched / "bad.ko"], check=True)
    with Running(watched):
        assert insmod(watched / "bad.ko.xz") == "Operation not permitted"


def test_audit_lets_all_in(watched: Path) -> None:
    with Running(watched, audit=True) as running:
        assert insmod(watched / "bad.ko") != "Operation not permitted"
    assert [(d.verdict, d.refused) for d in running.told] == [("refuse", False)]


def test_not_judged_in_time_is_refused(watched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fallback, "scan", lambda *_: time.sleep(3))
    with Running(watched, patience=0.3):
        before = time.monotonic()
        assert insmod(watched / "good.ko") == "Operation not permitted"
        assert time.monotonic() - before < 2.5
        assert (watched / "text").read_text() == "hello"


def test_a_judge_that_fails_refuses(watched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(fallback, "scan", fails)
    with Running(watched):
        assert insmod(watched / "good.ko") == "Operation not permitted"


def test_many_at_once(watched: Path) -> None:
    with Running(watched) as running:
        words = [["insmod", str(watched / ("bad.ko" if n % 2 else "good.ko"))] for n in range(40)]
        children = [subprocess.Popen(each, stderr=subprocess.PIPE, text=True) for each in words]
        said = [child.communicate(timeout=60)[1] for child in children]
    for number, text in enumerate(said):
        assert ("Operation not permitted" in text) == bool(number % 2)
    assert len(running.told) == 40


def test_what_looks_like_a_module(tmp_path: Path) -> None:
    assert looks_like_module(assemble(tmp_path, "nop").read_bytes()[:20])
    assert not looks_like_module(Path("/proc/self/exe").read_bytes()[:20])
    assert not looks_like_module(b"")
    assert not is_loader(os.getpid())
    assert not is_loader(0x7FFFFFFF)
