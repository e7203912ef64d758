"""The text of `splitlock matrix --vmx`: 80 columns, each cell in its place, nothing silent."""

from __future__ import annotations

from typing import Any

from splitlock.report.matrix import Kernel
from splitlock.report.matrix_vmx import Boot, Cell, Report, Side, Signal, Simulated
from splitlock.report.matrix_vmx_text import render

_LINE = "x86/split lock detection: #AC: vmm/132 took a split_lock trap at address: 0x1000"


def _cell(mode: str, hypervisor: str, guest: str, outcome: str, **more: Any) -> Cell:
    values: dict[str, Any] = {"mode": mode, "hypervisor": hypervisor, "guest": guest, "outcome": outcome, **more}
    return Cell(kernel="6.1.0-57-cloud-amd64", **values)


def _report(*cells: Cell, interrupted: bool = False) -> Report:
    boot = Boot(
        kernel="6.1.0-57-cloud-amd64",
        mode="warn",
        command_line="",
        log=[],
        split_lock_detect=True,
        end="done",
        seconds=12.0,
    )
    kernel = Kernel(
        release="6.1.0-57-cloud-amd64", banner="Linux version 6.1", path="/boot/vmlinuz", member=None, headers=None
    )
    return Report(
        schema="splitlock/matrix-vmx/1", emulator="3.0", kernels=[kernel], boots=[boot], cells=list(cells),
        notes=["one"], interrupted=interrupted,
    )  # fmt: skip


def test_table() -> None:
    simulated = Simulated(outcome="completed", delayed=True, log=_LINE)
    differs = "triple-fault, simulate: completed"
    side = Side(place="guest", cpl=0, traps=1, exits=1, injected=0, delivered=0, triple_faults=0)
    text = render(
        _report(
            _cell("warn", "kvm", "kernel", "completed", warnings=1, nanoseconds=34_400_000, log=[_LINE],
                  executed=1, exit=2, processor=side, simulated=simulated),
            _cell("warn", "kvm", "asked", "triple-fault", simulated=simulated, differs=[differs]),
            _cell("warn", "kvm", "real", "not-tried", reason="open: ENODEV"),
            _cell("warn", "forward", "real", "impossible", reason="its guest is 64-bit"),
            _cell("warn", "through", "real", "impossible", reason="its guest is 64-bit"),
            _cell("fatal", "kvm", "kernel", "sigbus", signal=Signal(number=7, code=1, address="0x0"), error=0),
            interrupted=True,
        ),
        verbose=True,
    )  # fmt: skip
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split() for line in lines[:6] if line.startswith("kvm ")] == [
        ["kvm", "kernel", "warned", "34ms", "SIGBUS"],
        ["kvm", "asked", "triple", "fault!"],
        ["kvm", "real", "-"],
    ]
    assert f"! warn kvm asked: {differs}" in lines
    assert "- warn kvm real: open: ENODEV" in lines
    assert "- forward, through: not real: its guest is 64-bit" in lines
    assert "warn:         (nothing about split locks)" in lines
    assert "  processor: 1 #AC in guest at CPL 0: 1 VM exit, 0 injected, 0 delivered at" in lines
    assert "  VMM: signal 7, si_code 1, si_addr 0x0" in lines
    assert lines[-1] == "interrupted: the rest was not measured"
    assert "3 cells measured in 1 boot of Bochs 3.0; 1 of the 2 that simulate knows not as" in text
