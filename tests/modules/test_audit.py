"""The audit's machinery: batches, executors, workers that die, and memory that stays flat."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from splitlock.image.package import Failure, File
from splitlock.modules import audit as tested
from splitlock.modules.audit import Job, audit, batches, examine
from splitlock.modules.policy import load
from splitlock.report.scan import Report
from splitlock.x86.privileged import DEFAULT


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A hundred small objects: every tenth one is a hypervisor, every ninth is damaged."""
    objects = {}
    for name, text in (("clean", "nop"), ("vmx", "vmlaunch")):
        source = tmp_path / f"{name}.S"
        source.write_text(
            f'.section .modinfo,"a"\n.asciz "license=GPL"\n.text\n.type f,@function\nf: {text}\nret\n.size f,.-f\n'
        )
        subprocess.run(["cc", "-c", "-o", tmp_path / f"{name}.o", source], check=True)
        objects[name] = (tmp_path / f"{name}.o").read_bytes()
    place = tmp_path / "modules"
    place.mkdir()
    for number in range(100):
        data = objects["vmx" if number % 10 == 0 else "clean"]
        (place / f"toy-{number:03}.ko").write_bytes(data[:100] if number % 9 == 8 else data)
    return place


def job(every: bool = False) -> Job:
    return Job(load("refuse"), DEFAULT, every)


def flat(directory: Path, *, every: bool = False, **options: Any) -> tuple[list[tuple[str, str]], int]:
    found: list[tuple[str, str]] = []
    clean = 0
    for batch in audit([str(directory)], job(every), **options):
        found += [(os.path.basename(file.path), file.verdict) for file in batch.files]
        clean += batch.clean
    return found, clean


def test_the_same_on_any_executor(directory: Path) -> None:
    found, clean = flat(directory)
    assert len(found) + clean == 100
    bad = {n for n in range(100) if n % 9 == 8}
    assert found == [
        (f"toy-{n:03}.ko", "error" if n in bad else "refuse") for n in range(100) if n % 10 == 0 or n in bad
    ]
    for executor in (ThreadPoolExecutor(3), ProcessPoolExecutor(2)):
        with executor:
            assert flat(directory, executor=executor, workers=2) == (found, clean)
            assert flat(directory, executor=executor, workers=2, send=True) == (found, clean)


def test_every_lists_clean_files_with_names_of_the_kernels(directory: Path) -> None:
    found, clean = flat(directory, every=True)
    assert (len(found), clean) == (100, 0)
    (batch,) = audit([str(directory / "toy-001.ko")], job(True))
    assert (batch.files[0].name, batch.files[0].verdict, batch.files[0].reason) == ("toy_001", "allow", "nothing found")


def test_batches(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big = directory / "toy-050.ko"
    monkeypatch.setattr(tested, "_BIG", big.stat().st_size * 2)
    big.write_bytes(big.read_bytes() * 3)
    sizes = [len(batch) for batch in batches([str(directory), "/nonexistent"])]
    assert sizes == [48, 2, 1, 48, 2]
    (last,) = list(batches(["/nonexistent"]))
    assert isinstance(last[0], Failure)


def test_not_more_than_a_few_batches_ahead(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tested, "_FILES", 1)
    outstanding = most = 0

    class Lazy(Executor):
        """Runs what it was given when the result is asked for."""

        def submit(self, function: Any, /, *arguments: Any, **_: Any) -> Future[Any]:
            nonlocal outstanding, most
            outstanding += 1
            most = max(most, outstanding)
            future: Future[Any] = Future()

            def result(timeout: float | None = None) -> Any:
                nonlocal outstanding
                outstanding -= 1
                return function(*arguments)

            future.result = result  # type: ignore[method-assign]
            return future

    found, clean = flat(directory, executor=Lazy(), workers=2)
    assert len(found) + clean == 100
    assert most == 8


def _die(items: list[Any], job: Job) -> Any:
    if any("toy-030" in item.path for item in items):
        os._exit(9)
    return examine(items, job)


def test_a_worker_that_dies_is_an_error(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tested, "examine", _die)
    monkeypatch.setattr(tested, "_FILES", 4)  # some are handed in after it died
    with ProcessPoolExecutor(1) as executor:
        found, clean = flat(directory, executor=executor)
    reported = {name for name, verdict in found if verdict == "error"}
    assert "toy-030.ko" in reported
    assert len(found) + clean == 100


def test_jobs_can_be_sent() -> None:
    sent = pickle.loads(pickle.dumps(Job(load("kernel-2020"), DEFAULT)))
    assert sent.policy.linear
    assert sent.policy.kinds == load("kernel-2020").kinds
    assert pickle.loads(pickle.dumps(File("/x", True))) == File("/x", True)


def test_memory_does_not_grow_with_what_is_scanned(tmp_path: Path) -> None:
    """A thousand modules or four thousand: the same."""
    source = tmp_path / "big.S"
    source.write_text(
        '.section .modinfo\n.asciz "license=GPL"\n.text\n.fill 400000, 1, 0x90\n'
        ".type f,@function\nf: vmlaunch\n.size f,.-f\n"
    )
    subprocess.run(["cc", "-c", "-o", tmp_path / "big.o", source], check=True)
    data = (tmp_path / "big.o").read_bytes()
    code = (
        "import resource, sys; from splitlock.commands import main; main(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for count in (1000, 4000):
        place = tmp_path / str(count)
        place.mkdir()
        (place / "0.ko").write_bytes(data)
        for number in range(1, count):
            (place / f"{number}.ko").hardlink_to(place / "0.ko")
        words = [sys.executable, "-c", code, "scan", "--format", "json", "-o", str(tmp_path / "report"), str(place)]
        peaks.append(int(subprocess.run(words, capture_output=True, text=True, check=True).stdout))
        assert Report.from_json((tmp_path / "report").read_text()).summary.refuse == count
    assert peaks[1] < peaks[0] * 1.2
