"""An oops explained: plain data, a part of the events of `watch` and `explain`."""

from __future__ import annotations

from typing import Literal

import msgspec

Fits = Literal["yes", "no", "unknown"]


class KnownCause(msgspec.Struct, kw_only=True):
    """A known cause that fits, of host/causes.toml or of a file that was given."""

    name: str
    by: Literal[
        "task", "oops"
    ]  #: what it fits by: a task's name, which is anybody's choice; an oops's function or module
    what: str
    versions: str
    fix: str
    links: list[str]


class Inlined(msgspec.Struct, kw_only=True):
    """A function that the compiler put into another one."""

    function: str
    source: str | None  #: `file:line`


class Frame(msgspec.Struct, kw_only=True):
    """A place in the kernel's code."""

    function: str  #: as the kernel names it; an address where it has no name for it
    offset: str | None  #: hex, bytes from the function's start
    module: str | None  #: null: the kernel itself
    reliable: bool  #: false: found on the stack, perhaps left over from an earlier call
    context: str  #: which stack: TASK, IRQ, NMI, ...
    source: str | None  #: `file:line`, of the innermost inlined function
    inlined: list[Inlined]  #: innermost first; the last is called by `function`


class Instruction(msgspec.Struct, kw_only=True):
    """The locked instruction at which the kernel stopped."""

    text: str
    code: str  #: hex
    found_in: str  #: `the log`, or the file that has the code


class Operand(msgspec.Struct, kw_only=True):
    """What it wanted to change at one go."""

    size: int  #: bytes
    address: str | None  #: hex; null: the log does not tell
    past: int | None  #: bytes on the second cache line
    what: str  #: in words of the source: `splitoops_ring.users`; may be empty
    why: str  #: why the address is not known; empty where it is


class Oops(msgspec.Struct, kw_only=True):
    """What the dump after an oops says, and what it means.

    `fits`: whether the registers and the instruction make a split lock; no: a line of the dump is damaged, or is
    another's.
    """

    detected: bool  #: false: `alignment check`, of a kernel without split-lock detection
    inferred: bool = False  #: the dump's first line is missing: that it was a split lock is a guess by the rest
    number: int | None  #: the number of this oops since boot
    bits: int
    place: Frame | None  #: null: the line with RIP is missing
    instruction: Instruction | None
    operand: Operand | None
    fits: Fits
    frames: list[Frame]  #: who called it, the last caller first
    cpu: int | None
    pid: int | None  #: of the task that was running; it need not have to do with it
    comm: str
    work: str  #: the work queue's function, where one was running
    interrupt: bool  #: it happened in an interrupt
    release: str  #: of the kernel
    version: str
    hardware: str
    taint: str | None  #: the kernel's letters; null: not known
    blamed: Frame | None  #: whose code is to blame: `place`, or who called a tool like mutex_lock()
    module_taint: str  #: the letters of the module to blame
    foreign: list[str]  #: modules that are not of Linux's own source, of those in `place` and `frames`
    outside: list[str]  #: all loaded modules that are not of Linux's own source
    whose: Literal["kernel", "module", "foreign module", "unknown"]  #: to blame; foreign: not of Linux's own source
    ended: bool  #: false: the log breaks off in its midst
    panic: str | None  #: why the whole machine stopped
    says: str  #: in one sentence, for everybody
    means: list[str]  #: what it is, and what to do, a sentence each
    report: str  #: whom to tell
    missing: list[str]  #: what is not known, and the way to know it
