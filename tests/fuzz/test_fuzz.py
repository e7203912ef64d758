"""The fuzzers for some seconds, with a fixed seed, in little memory; `make fuzz` runs them for longer.

What they found is in tests/image/test_findings.py.
"""

from __future__ import annotations

import os
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import pytest
from fuzz import archives, images
from fuzz.targets import ALL, MEMORY, TARGETS, clock, limited, policies

from splitlock.image.package import File as Input
from splitlock.image.package import Member, read
from splitlock.modules.audit import Job, audit, examine
from splitlock.modules.scan import scan
from splitlock.report.scan import File

INPUTS = {"image": 6000, "package": 6000, "signature": 10000, "text": 3000, "oops": 1000, "kallsyms": 600}


@pytest.mark.parametrize("name", list(TARGETS))
def test_mutations(name: str) -> None:
    target, chance = TARGETS[name], Random(name)
    seeds = target.seeds()
    made = list(seeds)
    with limited(MEMORY):
        for number in range(len(seeds) + INPUTS[name]):
            raw = seeds[number] if number < len(seeds) else target.mutate(chance.choice(made), chance)
            made[len(seeds) + number % 500 :] = [raw]  # starts from the seeds again and again
            try:
                with clock():
                    target.check(raw)
            except BaseException as error:
                raise AssertionError(f"input {number}: {raw.hex()}") from error


def test_seeds_are_what_they_are_meant_to_be() -> None:
    """Damage is no test where the reader stops at the first byte anyhow."""
    kinds = [{found.kind for found in scan(raw, ALL).findings} for raw in images.seeds()]
    assert all({"VMLAUNCH", "WRMSR", "MOV CR4", "MOV DR7", "FOREIGN-CODE"} <= found for found in kinds[:4])
    assert all({"WRMSR", "VMXOFF", "MOV DR7"} <= found for found in kinds[4:7])
    assert {"pv_ops", "vmap", "printk"} == scan(images.linked()).exports
    assert scan(images.module()).signer == "Debian Secure Boot CA"


@pytest.mark.parametrize("number", range(len(archives.seeds())))
def test_packages_are_read(number: int, tmp_path: Path) -> None:
    raw = archives.seeds()[number]
    path = tmp_path / archives.NAMES[raw[0]]
    path.write_bytes(raw[1:])
    items = list(read(Input(str(path), True)))
    if raw.endswith(b"no image"):
        assert not any(isinstance(item, Member) for item in items)
    else:
        assert items
        assert all(isinstance(item, Member) for item in items)
        assert {item.data for item in items if isinstance(item, Member)} <= {images.module(), images.linked()}


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A directory in which every other file is damaged."""
    chance = Random(7)
    for number in range(60):
        raw = images.module() + number.to_bytes(4, "little") if number % 2 == 0 else b""
        while not raw:
            raw = images.mutate(images.module(), chance)
            if isinstance(_alone(raw), File):
                raw = b""
        (tmp_path / f"m{number:02}.ko").write_bytes(raw)
    return tmp_path


def _alone(raw: bytes) -> Any:
    """The result for one file, the reason where that is an error."""
    (file,) = examine([Member("a.ko", None, raw)], Job(policies()[0], ALL, True)).files
    return file.reason if file.verdict == "error" else file


@pytest.mark.parametrize("processes", [0, 2])
def test_damaged_files_leave_the_others_alone(mixed: Path, processes: int) -> None:
    job = Job(policies()[0], ALL, True)
    executor: Executor | None = ProcessPoolExecutor(processes) if processes else None
    files = [file for batch in audit([str(mixed)], job, executor=executor, workers=2) for file in batch.files]
    if executor is not None:
        executor.shutdown()
    assert [os.path.basename(file.path) for file in files] == [f"m{number:02}.ko" for number in range(60)]
    for number, file in enumerate(files):
        alone = _alone(Path(file.path).read_bytes())
        if number % 2:
            assert (file.verdict, file.reason, file.findings) == ("error", alone, [])
        else:
            assert file.verdict == "allow"
            assert file.findings == alone.findings
            assert len(file.findings) > 10
