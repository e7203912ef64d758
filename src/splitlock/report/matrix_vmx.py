"""The report of `splitlock matrix --vmx`: plain data, what is in the JSON of schema `splitlock/matrix-vmx/1`."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from splitlock.report.document import Document
from splitlock.report.matrix import End, Kernel

SCHEMA: Final = "splitlock/matrix-vmx/1"

#: split_lock_detect=; unaware: detection is on, and the kernel does not know that the processor has it
Mode = Literal["off", "warn", "fatal", "unaware"]
#: kvm: kvm-intel of the same kernel; the others are blind.ko, by what it does with #AC: injects it into the guest, does
#: not intercept it, turns detection off meanwhile, or asks the kernel (handle_guest_split_lock)
Hypervisor = Literal["kvm", "forward", "through", "off", "handle"]
Guest = Literal[
    "real", "kernel", "kernel_idt", "user_idt", "am_idt", "ac_idt", "asked", "asked_idt", "wrmsr_idt", "linux_user",
    "linux_module",
]  # fmt: skip
Outcome = Literal[
    "completed", "handled", "gp", "triple-fault", "derailed", "sigbus", "livelock", "oops", "panic", "hang", "reset",
    "other", "not-tried", "impossible",
]  # fmt: skip


class Boot(msgspec.Struct, kw_only=True):
    """One boot."""

    kernel: str  #: its release
    mode: Mode
    command_line: str
    log: list[str]  #: the kernel's lines about split locks, before anything was tried
    split_lock_detect: bool | None  #: /proc/cpuinfo has this flag; null: it never got so far
    end: End  #: done: init came to its end
    seconds: float  #: of the host's


class Side(msgspec.Struct, kw_only=True):
    """The processor's own account of the `#AC`s of one cell."""

    place: str | None  #: where the first one was: no-vmx, vmx-root, guest, nested; null: there was none
    cpl: int | None
    traps: int
    exits: int  #: led to a VM exit
    injected: int  #: a hypervisor gave it to its guest
    delivered: int  #: went to a handler at once
    triple_faults: int


class Signal(msgspec.Struct, kw_only=True):
    """The signal that the VMM got."""

    number: int
    code: int  #: si_code; 1 is BUS_ADRALN
    address: str  #: si_addr, hex


class Simulated(msgspec.Struct, kw_only=True):
    """What `splitlock simulate` says."""

    outcome: Outcome
    delayed: bool
    log: str  #: the host's line; empty: none


class Cell(msgspec.Struct, kw_only=True):
    """One split lock, in one guest of one hypervisor, on one kernel in one mode."""

    kernel: str  #: its release
    mode: Mode
    hypervisor: Hypervisor
    guest: Guest
    outcome: Outcome
    reason: str | None = None  #: why it was not tried, is impossible, or what else came
    nanoseconds: int | None = None  #: from the guest's entry to its end, by the host's clock
    executed: int | None = None  #: how often the split lock was executed
    exit: int | None = None  #: KVM's exit reason, or VMX's for blind.ko
    error: int | None = None  #: the error code that the guest's handler, or the VMM, was given
    at_instruction: bool | None = None  #: the handler's IP was the split lock's; null: no handler
    signal: Signal | None = None
    warnings: int = 0  #: lines of the kernel's that a task took a trap
    log: list[str] = []  #: the kernel's lines about it
    guest_log: list[str] = []  #: a Linux guest's own
    processor: Side | None = None
    boot: int | None = None  #: the number of its boot
    simulated: Simulated | None = None  #: null: the model has no such event
    differs: list[str] = []  #: in what it is not as simulated


class Report(Document, kw_only=True):
    """What was measured."""

    schema: Literal["splitlock/matrix-vmx/1"]
    emulator: str  #: Bochs' version
    kernels: list[Kernel]
    boots: list[Boot]
    cells: list[Cell]
    notes: list[str]  #: what this cannot tell
    interrupted: bool  #: some cells are missing
