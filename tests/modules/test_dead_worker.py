"""A worker process that dies, as the kernel's out-of-memory killer has it: only what it died of is an error."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import time
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from splitlock.modules import audit as tested
from splitlock.modules.audit import Batch, Job, audit, examine
from splitlock.modules.policy import load
from splitlock.modules.workers import Workers
from splitlock.report.scan import File
from splitlock.x86.privileged import DEFAULT

JOB = Job(load("refuse"), DEFAULT, True)
NAMES = [f"toy-{number:02}.ko" for number in range(30)]
FATAL = "toy-13.ko"


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Thirty modules, handed out four at a time."""
    monkeypatch.setattr(tested, "_FILES", 4)
    source = tmp_path / "toy.S"
    source.write_text(".text\n.type f,@function\nf: ret\n.size f,.-f\n")
    subprocess.run(["cc", "-c", "-o", tmp_path / "toy.o", source], check=True)
    place = tmp_path / "modules"
    place.mkdir()
    for name in NAMES:
        (place / name).hardlink_to(tmp_path / "toy.o")
    return place


def killed_by_it(items: list[Any], job: Job) -> Batch:
    """As `examine`, but one file is the death of whoever looks at it."""
    if any(item.path.endswith(FATAL) for item in items):
        os.kill(os.getpid(), signal.SIGKILL)
    return examine(items, job)


def killed_once(items: list[Any], job: Job) -> Batch:
    """As `examine`, but the first to look at one file dies."""
    for item in items:
        mark = Path(item.path).parent.parent / "died"
        if item.path.endswith(FATAL) and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return examine(items, job)


def files(directory: Path, executor: Executor) -> list[File]:
    """The results for all files."""
    return [file for batch in audit([str(directory)], JOB, executor=executor, workers=2) for file in batch.files]


@pytest.mark.parametrize("kind", [Workers, ProcessPoolExecutor])
def test_only_the_file_that_killed_is_an_error(
    directory: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Executor]
) -> None:
    monkeypatch.setattr(tested, "examine", killed_by_it)
    with kind(2) as executor:  # type: ignore[call-arg]
        found = files(directory, executor)
    assert [os.path.basename(file.path) for file in found] == NAMES
    (failed,) = [file for file in found if file.verdict == "error"]
    assert failed.path.endswith(FATAL)
    assert failed.reason == "not scanned: the process that scanned it died (out of memory?)"


def test_what_dies_once_is_scanned_again(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tested, "examine", killed_once)
    with Workers(2) as executor:
        found = files(directory, executor)
    assert [os.path.basename(file.path) for file in found] == NAMES
    assert {file.verdict for file in found} == {"allow"}
    assert (directory.parent / "died").exists()


def test_contents_that_were_sent_are_scanned_again_too(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tested, "examine", killed_by_it)
    with Workers(2) as executor:
        batches = list(audit([str(directory)], JOB, executor=executor, workers=2, send=True))
    assert [os.path.basename(f.path) for b in batches for f in b.files if f.verdict == "error"] == [FATAL]


def test_workers_are_replaced() -> None:
    with Workers(2) as workers:
        with pytest.raises(BrokenExecutor):
            workers.submit(os._exit, 1).result()
        assert workers.submit(os.getpid).result() != os.getpid()
        assert workers.submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_IGN


def interrupted_at_work() -> None:
    with Workers(1) as workers:
        workers.submit(time.sleep, 60)
        raise KeyboardInterrupt


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN, lambda *_: None], ids=["none", "ignored", "own"])
def test_workers_are_ended_by_an_exception(handler: Any) -> None:
    """Whatever the process that started them makes of SIGTERM."""
    before = signal.signal(signal.SIGTERM, handler)
    begin = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted_at_work()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert time.monotonic() - begin < 20
    assert not multiprocessing.active_children()
