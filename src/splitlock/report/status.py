"""The report of `splitlock status`: plain data, what is in the JSON of schema `splitlock/status/1`."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from splitlock.report.document import Document
from splitlock.report.judgement import Judgement, Known, Use
from splitlock.report.oops import KnownCause

SCHEMA: Final = "splitlock/status/1"

Mode = Literal["off", "warn", "fatal", "ratelimit", "unknown"]


class Detection(msgspec.Struct, kw_only=True):
    """One of the processor's two ways to detect."""

    supported: Known  #: by the processor
    used: Use  #: by this kernel, in some mode
    enabled: Known  #: on now: on all processors where registers could be read, else as the kernel says
    source: str  #: what says so
    registers: str | None  #: TEST_CTRL, DEBUGCTL as read; null: they could not be


class Processor(msgspec.Struct, kw_only=True):
    """The processor."""

    name: str | None
    vendor: str | None
    family: int | None
    model: int | None
    stepping: int | None
    count: int | None  #: logical processors
    split_lock: Detection  #: #AC
    bus_lock: Detection  #: #DB
    hypervisor: str | None  #: what this machine runs in; null: nothing, as far as can be told


class Setting(msgspec.Struct, kw_only=True):
    """A setting that was found."""

    where: str  #: the file, by its name on that machine; proc/cmdline: of the kernel that runs
    text: str
    counts: Known  #: at the next boot; of proc/cmdline: now
    why: str  #: why not, or why that is not known; may be empty


class Kernel(msgspec.Struct, kw_only=True):
    """The kernel and what it was told."""

    release: str | None  #: of the running one; null: none is known to run
    foreign: str = ""  #: what answers in Linux's place and is none: gVisor, WSL 1; empty: it is a Linux
    installed: list[str]  #: releases that modules are there for
    parameter: str | None  #: split_lock_detect= of the running kernel's command line
    settings: list[Setting]  #: what is set, for this boot or the next, or in vain
    mode: Mode
    rate: int | None  #: bus locks a second, in mode ratelimit
    why: str  #: how the mode is known
    mitigate: int | None  #: kernel.split_lock_mitigate; null: this kernel has none, or nobody can tell
    silent: bool = False  #: debug.exception-trace is 0: who is killed by #AC in mode fatal has no line


KERNEL: Final = "the kernel"  #: `Logged.comm` of its own split locks


class Logged(msgspec.Struct, kw_only=True):
    """Who took how many, by the kernel's log."""

    comm: str
    exception: str
    lines: int
    guest: bool


class Log(msgspec.Struct, kw_only=True):
    """What the kernel logged. In mode warn it logs #AC once a task."""

    source: str | None  #: null: there was none to read
    why: str  #: why not, or why it is less than all since boot; may be empty
    lines: int
    suppressed: int
    lost: int
    tasks: list[Logged]  #: the most lines first
    whole: bool = False  #: read from the boot's first line on, with nothing lost, held back or not understood
    deaf: str = ""  #: why this kernel would log no split lock that a program takes; empty: it would, or nobody knows
    unknown: int = 0  #: lines with the kernel's words that are not understood
    oopses: list[str] = []  #: functions in which the kernel itself took one; empty where the dump does not tell
    stuck: bool = False  #: a guest's kernel could not turn detection off: a program of its traps for ever
    causes: list[KnownCause] = []  #: known causes that fit a program's name, or an oops


class Module(msgspec.Struct, kw_only=True):
    """A kernel module, or another file of ring-0 code, that is a hypervisor by what is in it."""

    name: str
    path: str | None  #: null: loaded, and its file is not there
    loaded: Known
    builtin: bool = False  #: a part of the kernel itself
    version: str | None = None  #: as it says itself
    aware: bool  #: imports handle_guest_split_lock, as KVM does since 5.7
    marked: bool  #: says sld_safe itself
    intree: bool
    evidence: list[str]  #: VMLAUNCH, VMRUN, FOREIGN-CODE, ...
    verdict: str  #: of the policy refuse


class Vmm(msgspec.Struct, kw_only=True):
    """A program that runs a virtual machine now."""

    pid: int
    name: str
    vm: str | None


class Guard(msgspec.Struct, kw_only=True):
    """The gate of `splitlock guard`."""

    up: Known
    why: str


class Measured(msgspec.Struct, kw_only=True):
    """The cost of split locks here, in nanoseconds: medians. Fences and time stamps, some 20 ns, are in all of them."""

    split_locks: int  #: that were executed
    aligned: float
    split: float
    neighbour_quiet: float  #: a neighbour core's read from memory, past the caches
    neighbour_during: float | None  #: what it came to while a split lock ran; null: it was not running
    neighbour_met: int  #: split locks that met the neighbour at work
    neighbour_core: int | None  #: null: there is one processor only
    samples: list[float]  #: of split locks, each


class Report(Document, kw_only=True):
    """One machine."""

    schema: Literal["splitlock/status/1"] = SCHEMA
    root: str  #: `/`: this machine, live
    machine: str | None  #: its name
    processor: Processor
    kernel: Kernel
    log: Log
    modules: list[Module]
    scanned: int | None  #: module files looked into; null: none were to be
    unscanned: list[str]  #: what could not be looked into, and why
    interrupted: bool  #: the scan was, by Ctrl-C: there may be more modules
    vmms: list[Vmm] | None  #: null: none was seen, and it is not known whether any runs
    vmms_why: str = ""  #: why that is not known, or why there may be more than those seen; may be empty
    guard: Guard
    judgement: Judgement
    checks: list[str]  #: what to look at first
    measured: Measured | None
