"""The model beside real kernels: every cell of every matrix in data/, as `splitlock matrix` measured it (JSON).

What is not compared, and where they differ, is in docs/simulate.md under "Where model and life are not the same".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import median_low
from typing import Any

import pytest

from splitlock.linux.often import printed
from splitlock.linux.sentences import PREFIX
from splitlock.model.cpu import Access, Processor
from splitlock.model.kernel import Linux, Locks, boot
from splitlock.model.machine import Host, native
from splitlock.model.scenario import linux

PROCESSORS = {
    "ac": Processor(True, alignment=False),  # QEMU's TCG raises no alignment checks of its own
    "db": Processor(False, True, alignment=False),
    "both": Processor(True, True, alignment=False),
}
ACCESSES = {
    "user": Access(), "signal": Access(), "repeat": Access(), "together": Access(), "after": Access(),
    "user32": Access(bits=32), "ac": Access(ac=True),
    "module": Access("kernel"), "kthread": Access("kernel"), "interrupt": Access("interrupt"),
}  # fmt: skip
LOCKS = {"repeat": 15, "together": 14, "after": 2}  # how many each kind takes
TASKS = {"together": 2, "after": 2}
#: Where a real kernel may log one line and the model has two, one for each task. `together`: they trap at once, and who
#: does not get the rate limit's lock does not log. `after`: 6.12 turns detection on again on one processor only.
FEWER = {"together": "", "after": "6.12"}
FATES = {"executed": "completed", "slowed": "completed"}
MATRICES = {
    path.stem: json.loads(path.read_bytes()) for path in sorted((Path(__file__).parent / "data").glob("*.json"))
}


def kernel(cell: dict[str, Any]) -> Linux:
    mode = "warn" if cell["mode"] == "mitigate=0" else cell["mode"]
    return linux(cell["kernel"], mode, mitigate=cell["mode"] != "mitigate=0")


def blank(text: str) -> str:
    """Without process numbers, addresses, the count of oopses, and the place behind `traps:` lines.

    That place is not there where the kernel cannot look: print_vma_addr() waits for no lock (`together`).
    """
    text = re.sub(r" in \S+\[[0-9a-f,+]+\]", "", text)
    return re.sub(r"(?<=/)\d+|\[\d+\]|0x[0-9a-f]+|(?<=[ip]:)[0-9a-f]+|(?<=#)\d+", "N", text)


def cells() -> Iterator[Any]:
    """All that was tried, which is all there are."""
    for name, matrix in MATRICES.items():
        assert matrix["schema"] == "splitlock/matrix/1"
        assert len(matrix["cells"]) == 150  # 3 processors, 5 modes, 10 kinds
        for cell in matrix["cells"]:
            yield pytest.param(cell, id=f"{name}-{cell['processor']}-{cell['mode']}-{cell['kind']}")


@pytest.mark.parametrize("cell", list(cells()))
def test_cell(cell: dict[str, Any]) -> None:
    host = Host(PROCESSORS[cell["processor"]], kernel(cell))
    kind, tasks = cell["kind"], TASKS.get(cell["kind"], 1)
    found = native(host, ACCESSES[kind], Locks(LOCKS.get(kind, 1), comm=kind))
    assert FATES.get(found.fate, found.fate) == cell["outcome"]
    step = found.steps[-1]
    log = "\n".join(cell["log"])
    if step.log.startswith(PREFIX):
        by_task = "#AC" in step.log  # #AC: once a task; #DB: each, and the kernel's rate limit mutes some
        most = tasks if by_task else LOCKS.get(kind, 1)
        assert cell["warnings"] <= most
        if kind in FEWER and by_task and cell["kernel"].startswith(FEWER[kind]):
            assert cell["warnings"] >= 1
        elif not cell["muted"]:
            assert cell["warnings"] == most
        assert cell["muted"] or blank(step.log) in blank(log)
    elif step.log:
        assert blank(step.log) in blank(log)
    else:
        assert cell["warnings"] == 0
    times = [nanoseconds / 1e6 for nanoseconds in cell.get("nanoseconds", [])]
    if found.fate == "slowed" and "#AC" in step.log:
        assert min(times) >= (16 if cell["kernel"].startswith("6.1.") else 12)  # docs/linux.md; Debian's HZ is 250
    elif found.fate == "slowed":
        assert max(times) >= 20
        assert sum(times) <= 2 * step.milliseconds + 1000  # of two tasks, and the window may have begun before
    elif found.fate == "executed" and kind in ("repeat", "after"):
        assert median_low(times) < 10  # a busy host delays some


@pytest.mark.parametrize("name", MATRICES)
def test_rate_limit(name: str) -> None:
    """Where a real kernel held lines back, those of all kinds together are what the limit lets through."""
    boots: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell in MATRICES[name]["cells"]:
        boots.setdefault((cell["processor"], cell["mode"]), []).append(cell)
    for one in boots.values():
        if any(cell["muted"] for cell in one):
            locks = sum(LOCKS.get(cell["kind"], 1) for cell in one if cell["kind"] in ("user", "repeat"))
            assert locks > 10
            assert sum(cell["warnings"] for cell in one) == printed([0.0] * locks) == 10


@pytest.mark.parametrize("name", MATRICES)
def test_boot(name: str) -> None:
    """The kernel's line as it boots."""
    for told in MATRICES[name]["boots"]:
        armed = boot(kernel(told), PROCESSORS[told["processor"]])
        assert [line for line in told["log"] if line.startswith(PREFIX)] == ([armed.line] if armed.line else [])
