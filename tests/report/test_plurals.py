"""One of a thing is said in the singular, and several in the plural, in every text report."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from report.made import MEASURED, RENDERERS, Filling, made

from splitlock.report import exports_text, guard_text, guest_text, matrix_vmx_text, probe_text, scan_text, simulate_text
from splitlock.report.exports import Report as Exports
from splitlock.report.guard import Decision
from splitlock.report.guard import Status as Gate
from splitlock.report.guest import Handling, Hypervisor
from splitlock.report.guest import Report as Guest
from splitlock.report.matrix_vmx import Report as Matrix
from splitlock.report.probe import Report as Probe
from splitlock.report.scan import Summary as Scanned
from splitlock.report.simulate import Step

_ONES = Filling(text="word", number=1, fraction=1.0, items=1)
# `1 more lines`, `1 bytes`: what ends in s is a plural, but for these words, and units of measure
_PLURAL = re.compile(r"(?<![\d,.:/+=-])1 ((?:more |possible |locked )*[A-Za-z#-]+s)\b")
_SINGULAR = {"process", "pass", "oops", "SIGBUS", "ms", "ns", "us", "is"}


def _cases() -> Iterator[Any]:
    for number, (kind, render) in enumerate(RENDERERS + MEASURED):
        for choice in range(8):
            yield pytest.param(kind, render, choice, id=f"{number}-{kind.__module__.rpartition('.')[2]}-{choice}")


@pytest.mark.parametrize(("kind", "render", "choice"), list(_cases()))
def test_one_of_each(kind: Any, render: Callable[[Any], str], choice: int) -> None:
    """By the types of the reports: where every number is 1, no plural follows one."""
    text = " ".join(render(made(kind, choice, filling=_ONES)).split())
    assert [found for found in _PLURAL.findall(text) if found.split()[-1] not in _SINGULAR] == []


def _guest(exits: int, injected: int) -> str:
    report: Guest = made(Guest, 0, filling=_ONES)
    assert report.detection is not None
    one = Handling(
        hypervisor=Hypervisor(module="m"), entries=9, exits=exits, injected=injected, straight=0, triple_faults=0
    )
    report.detection.hypervisors = [one]
    return guest_text.render(report)


def _exports(modules: int, lost: int) -> str:
    report: Exports = made(Exports, 0, filling=_ONES)
    report.question, report.modules, report.direct = "without", modules, lost
    report.losses *= lost
    return exports_text.render(report)


def _findings(more: int) -> str:
    decision: Decision = made(Decision, 0, filling=_ONES)
    decision.total = len(decision.findings) + more
    return guard_text.render(decision, verbose=True)


def _counters(number: int) -> str:
    status: Gate = made(Gate, 0, filling=_ONES)
    status.counters = dict.fromkeys(("decisions", "allowed", "doubts", "canaries", "nanoseconds"), number)
    return guard_text.render_status(status)


def _probe(number: int) -> str:
    report: Probe = made(Probe, 0, filling=_ONES)
    report.rows, report.split_locks, report.damaged, report.foreign = report.rows * number, number, number, number
    return probe_text.render(report, verbose=True)


def _matrix(cells: int) -> str:
    report: Matrix = made(Matrix, 0, filling=_ONES)
    report.cells *= cells
    for cell in report.cells:
        cell.executed, cell.outcome, cell.differs = cells, "completed", []
        assert cell.processor is not None
        cell.processor.traps = cells
    return matrix_vmx_text.render(report, verbose=True)


def _step(lines: int) -> str:
    step: Step = made(Step, 0, filling=_ONES)
    step.lines, step.held_back = lines, 3
    return simulate_text._times(step)


def _scanned(files: int) -> str:
    summary: Scanned = made(Scanned, 0, filling=_ONES)
    summary.files = files
    return scan_text.Text("refuse").end(summary).decode()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (lambda: _guest(1, 0), "module m: kept the only #AC from its guest"),
        (lambda: _guest(7, 0), "module m: kept all 7 #AC from its guests"),
        (lambda: _guest(1, 1), "NOT READY: the only #AC reached a guest that had not asked for it"),
        (lambda: _guest(3, 1), "NOT READY: 1 of 3 #AC reached a guest that had not asked for it"),
        (lambda: _guest(3, 2), "NOT READY: 2 of 3 #AC reached guests that had not asked for them"),
        (lambda: _exports(1, 0), "1 module read: it still loads"),
        (lambda: _exports(2, 0), "2 modules read: all of them still load"),
        (lambda: _exports(5, 1), "1 of 5 modules no longer loads: 1 directly, 0 through others"),
        (lambda: _exports(5, 2), "2 of 5 modules no longer load: 2 directly, 0 through others"),
        (lambda: _findings(1), "and 1 more finding "),
        (lambda: _findings(2), "and 2 more findings "),
        (lambda: _counters(1), "counted 1 decision, 1 allowed, 1 doubt, 1 canary "),
        (lambda: _counters(2), "counted 2 decisions, 2 allowed, 2 doubts, 2 canaries "),
        (lambda: _probe(1), "1 row, 1 split lock "),
        (lambda: _probe(1), "1 line is the probe's, but spoilt 1 line is not the probe's "),
        (lambda: _probe(2), "2 rows, 2 split locks "),
        (lambda: _probe(2), "2 lines are the probe's, but spoilt 2 lines are not the probe's "),
        (lambda: _matrix(1), "executed 1 time "),
        (lambda: _matrix(1), "the only one that simulate knows is as it says "),
        (lambda: _matrix(2), "executed 2 times "),
        (lambda: _matrix(2), "processor: 2 #AC in "),
        (lambda: _matrix(2), "none of the 2 that simulate knows not as it says "),
        (lambda: _step(1), "(1 time, 3 more held back"),
        (lambda: _step(2), "(2 times, 3 more held back"),
        (lambda: _scanned(1), "1 file scanned"),
        (lambda: _scanned(2), "2 files scanned"),
    ],
)  # fmt: skip
def test_one_and_several(text: Callable[[], str], said: str) -> None:
    """A sentence for each number that one report once had wrong."""
    assert said in " ".join(text().split()) + " "
