"""Scenarios of which right outcomes were written down, from docs/linux.md and the source, before the model played them.

In scenarios/*.toml a comment `#> FATE VICTIM` behind an event is what comes of it, `#> log: LINE` what the kernel says,
in order, and nothing else; before the first event: as the host boots.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from splitlock.model.run import run
from splitlock.model.scenario import load

SCENARIOS = sorted((Path(__file__).parent / "scenarios").glob("*.toml"))
MODULE = """
asm(".section .modinfo, \\"a\\"; .asciz \\"name=hypervisor\\"; .asciz \\"license=GPL\\"; .text");
void enter(void) { asm volatile("vmlaunch"); }
"""


@pytest.fixture(scope="module")
def find(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytes]:
    """A module that enters guests."""
    path = tmp_path_factory.mktemp("module") / "hypervisor.ko"
    subprocess.run(["gcc", "-O2", "-x", "c", "-c", "-o", path, "-"], input=MODULE.encode(), check=True)
    return {"hypervisor": path.read_bytes()}.__getitem__


def expected(path: Path) -> list[list[str]]:
    """What is written down: for the boot, and for each event."""
    found = [["executed"]]
    for line in path.read_text().splitlines():
        if line == "[[event]]":
            found.append([])
        elif line.startswith("#> "):
            found[-1].append(line[3:].replace("\\n", "\n"))
    return found


def test_there_are_enough() -> None:
    assert len(SCENARIOS) >= 40


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_scenario(path: Path, find: Callable[[str], bytes]) -> None:
    told = []
    for event in run(load(str(path)), path.name, find).events:
        told.append([f"{event.fate} {event.victim}".strip(), *(f"log: {step.log}" for step in event.steps if step.log)])
    assert told == expected(path)
