"""The report of `splitlock matrix`: plain data, what is in the JSON of schema `splitlock/matrix/1`."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from splitlock.report.document import Document

SCHEMA: Final = "splitlock/matrix/1"

Processor = Literal["ac", "db", "both"]  #: which detection it has: #AC for split locks, #DB for bus locks
Kind = Literal["user", "user32", "signal", "ac", "repeat", "module", "kthread", "interrupt", "together", "after"]
Outcome = Literal["completed", "sigbus", "killed", "oops", "panic", "hang", "reset", "not-tried"]
End = Literal["done", "reset", "hang"]  #: of a boot


class Kernel(msgspec.Struct, kw_only=True):
    """A kernel that was booted."""

    release: str
    banner: str  #: "Linux version ..."
    path: str
    member: str | None  #: its name inside the package at `path`
    headers: str | None  #: the directory that the module was built with; null: there were none


class Boot(msgspec.Struct, kw_only=True):
    """One boot."""

    kernel: str  #: its release
    processor: Processor
    mode: str
    command_line: str
    log: list[str]  #: the kernel's lines about split locks, before anything was tried
    split_lock_detect: bool | None  #: /proc/cpuinfo has this flag; null: it never got so far
    bus_lock_detect: bool | None
    split_lock_mitigate: int | None  #: the sysctl; null: this kernel has none
    end: End  #: done: init came to its end
    seconds: float  #: of the host's


class Signal(msgspec.Struct, kw_only=True):
    """The first SIGBUS, as its handler saw it."""

    number: int
    code: int  #: si_code; 1 is BUS_ADRALN
    address: str  #: si_addr, hex
    executed: bool  #: the locked instruction had been executed
    place: Literal["at", "after", "elsewhere"]  #: where the program was interrupted, seen from that instruction


class Documented(msgspec.Struct, kw_only=True):
    """What the kernel's documentation says."""

    outcome: Literal["completed", "sigbus", "oops"]
    warned: Literal["never", "once", "always"] | None = None  #: a log line: once a task, or for each
    delayed: bool | None = None  #: by 10 ms
    serialised: bool | None = None  #: one processor at a time
    limited: int | None = None  #: so many a second


class Cell(msgspec.Struct, kw_only=True):
    """One kind of split lock, with one kernel and processor in one mode."""

    kernel: str  #: its release
    processor: Processor
    mode: str  #: off, warn, fatal, ratelimit:N; mitigate=0 is warn with kernel.split_lock_mitigate=0
    kind: Kind
    outcome: Outcome
    reason: str | None = None  #: why it was not tried, or the signal that killed it
    nanoseconds: list[int] = []  #: that each split lock took, by the guest's clock; of those that completed
    executed: bool | None = None  #: their operands had the right values after them
    apart: list[int] = []  #: `together`: nanoseconds between the ends of two, each time that they overlapped
    warnings: int = 0  #: lines of the kernel's that a task took a trap
    muted: bool = False  #: there may have been more: the kernel logs ten of them in five seconds
    signal: Signal | None = None
    log: list[str] = []  #: the kernel's lines about it
    boot: int | None = None  #: the number of its boot
    documented: Documented | None = None  #: null: it says nothing about this
    differs: list[str] = []  #: in what the kernel does otherwise than documented


class Report(Document, kw_only=True):
    """What was measured."""

    schema: Literal["splitlock/matrix/1"]
    qemu: str  #: its version
    documentation: str  #: what `documented` is taken from
    kernels: list[Kernel]
    boots: list[Boot]
    cells: list[Cell]
    notes: list[str]  #: what this cannot tell
    interrupted: bool  #: some cells are missing
