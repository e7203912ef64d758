"""Cells of `splitlock matrix --vmx` held against the model: what agrees is silent, whatever does not is told."""

from __future__ import annotations

from typing import Any

import pytest

from splitlock.model.measured import simulate
from splitlock.report.matrix_vmx import Cell

PREFIX = "x86/split lock detection: #AC: "
TOOK = f"{PREFIX}vmm/132 took a split_lock trap at address: 0x1000"
FATAL = f"{PREFIX}vmm/172 fatal split_lock trap at address: 0x1000"
BOGUS = f"{PREFIX}blind_handle/84 bogus split_lock trap at address: 0xffffffffc0201004"
MS = 1_000_000


def cell(words: str, outcome: str, kernel: str = "6.1.0-57-cloud-amd64", **more: Any) -> Cell:
    """`words`: mode, hypervisor, guest."""
    mode, hypervisor, guest = words.split()
    values: dict[str, Any] = {
        "kernel": kernel, "mode": mode, "hypervisor": hypervisor, "guest": guest, "outcome": outcome,
        "executed": int(outcome == "completed"), **more,
    }  # fmt: skip
    return Cell(**values)


def differs(*cells: Cell) -> list[list[str]]:
    simulate(cells)
    return [one.differs for one in cells]


def test_agree() -> None:
    """One of each outcome, as it was measured: vmx-ac's tables."""
    assert (
        differs(
            cell("warn kvm kernel", "completed", log=[TOOK], nanoseconds=34 * MS),
            cell("warn kvm asked_idt", "handled", nanoseconds=13 * MS),
            cell("fatal kvm kernel", "sigbus", log=[FATAL]),
            cell("fatal kvm user_idt", "sigbus"),  # the line comes once a boot
            cell("fatal forward kernel", "triple-fault"),
            cell("fatal off kernel", "completed"),
            cell("unaware kvm real", "derailed"),
            cell("unaware kvm kernel", "triple-fault"),
            cell("unaware kvm linux_user", "livelock", executed=None),
            cell("unaware kvm linux_module", "oops", executed=None),
            cell("unaware handle kernel", "sigbus", log=[BOGUS]),
            cell("off kvm asked", "triple-fault"),
            cell("off through kernel", "completed"),
        )
        == [[]] * 13
    )


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (cell("fatal kvm kernel", "completed"), "completed, simulate: sigbus"),
        (cell("unaware kvm kernel", "handled"), "handled, simulate: triple-fault"),
        (cell("off kvm kernel", "completed", executed=2), "the split lock was executed 2 times"),
        (cell("off kvm kernel", "completed", log=[TOOK]), "the kernel logs a line, simulate does not"),
        (cell("fatal kvm kernel", "sigbus"), "simulate logs a line, the kernel does not"),
    ],
)
def test_differ(made: Cell, said: str) -> None:
    assert differs(made) == [[said]]


@pytest.mark.parametrize(("kernel", "waits"), [("5.10.0-46-cloud-amd64", False), ("6.12.117+deb12-cloud-amd64", True)])
@pytest.mark.parametrize("took", [22 * MS, 34 * MS])
def test_waiting(kernel: str, waits: bool, took: int) -> None:
    """Against a guest of the same boot that nobody kept waiting; 5.10 has no wait in warn."""
    cells = (
        cell("warn kvm asked_idt", "handled", kernel, nanoseconds=13 * MS),
        cell("warn kvm kernel", "completed", kernel, nanoseconds=took, log=[TOOK]),
    )
    waited = took == 34 * MS
    expected = [] if waited == waits else ["waited" if waited else "did not wait"]
    assert differs(*cells) == [[], expected]


@pytest.mark.parametrize(("took", "waited"), [(24 * MS, True), (8 * MS, False)])  # the second: the line alone
def test_waiting_of_linux(took: int, waited: bool) -> None:
    """By its own clock, in which there is no entry into the guest: what the small guests took does not matter."""
    cells = (
        cell("warn kvm asked_idt", "handled", nanoseconds=13 * MS),
        cell("warn kvm linux_user", "completed", nanoseconds=took, log=[TOOK]),
    )
    assert differs(*cells) == [[], [] if waited else ["did not wait"]]


def test_each_task() -> None:
    """A VMM that is another task has a line of its own, on kernels that say it once a task."""
    several = [cell("warn kvm kernel", "completed", log=[TOOK]) for _ in range(3)]
    assert differs(*several) == [[], [], []]


def test_no_such_event() -> None:
    """The model knows no guest that writes TEST_CTRL; what was not tried is nobody's."""
    written = cell("warn kvm wrmsr_idt", "gp")
    untried = cell("warn kvm kernel", "not-tried")
    assert differs(written, untried) == [[], []]
    assert written.simulated is None
    assert untried.simulated is None
