"""What does Linux do about a split lock, by version and mode?

Sources: arch/x86/kernel/cpu/intel.c (bus_lock.c from 6.13), arch/x86/kernel/traps.c, and
Documentation/arch/x86/buslock.rst; what changed between versions is marked where it is used.
"""

from __future__ import annotations

from math import ceil
from typing import Literal, NamedTuple

from splitlock.kernel_log import PREFIX
from splitlock.model.cpu import SPLIT_NS, Access, Core, Processor
from splitlock.versions import AMD, BUS_LOCKS, MISERY, MITIGATE, RATELIMIT, SPLIT_LOCKS, Version

Mode = Literal["off", "warn", "fatal", "ratelimit"]
Fate = Literal["executed", "slowed", "sigbus", "oops", "panic", "livelock"]

MODES: tuple[Mode, ...] = ("off", "warn", "fatal", "ratelimit")
SLEEP_MS, STEP_MS, JIFFIES = 10, 20, 2  # split_lock_warn(), handle_bus_lock(), schedule_delayed_work_on()
COMM = 15  # characters of a task's name


class Linux(NamedTuple):
    """A kernel and its settings."""

    version: Version = (6, 1)
    mode: Mode = "warn"  #: of `split_lock_detect=`
    rate: int = 10  #: of `ratelimit:N`: bus locks a second, 1 to 1,000
    mitigate: bool = True  #: kernel.split_lock_mitigate
    hz: int = 250  #: jiffies a second


class Set(NamedTuple):
    """What a kernel made of its processor."""

    mode: Mode  #: in effect
    core: Core
    log: str  #: its line at boot, empty for none


class Locks(NamedTuple):
    """How often, and by whom."""

    number: int = 1
    every_ms: float = 0.0  #: between two of them
    comm: str = "program"
    pid: int = 1000
    address: int = 0x401000  #: of the instruction
    reported: bool = False  #: this task was warned about before


class Answer(NamedTuple):
    """What came of it."""

    fate: Fate
    what: str
    source: str
    log: str = ""
    lines: int = 0  #: of the log; where it is rate limited, at most
    milliseconds: float = 0.0  #: that the task was made to wait
    alone_ms: float = 0.0  #: for which no other core may run split locks


def known(linux: Linux, processor: Processor) -> Processor:
    """Of a processor's detection, what this version uses. Intel's init_intel(); AMD's bus locks from 6.13."""
    return processor._replace(
        split_locks=processor.split_locks and linux.version >= SPLIT_LOCKS,
        bus_locks=processor.bus_locks and linux.version >= (AMD if processor.amd else BUS_LOCKS),
    )


def boot(linux: Linux, processor: Processor) -> Set:
    """sld_state_setup(), split_lock_init(), bus_lock_init(), sld_state_show()."""
    has = known(linux, processor)
    if not has.split_locks and not has.bus_locks:
        return Set("off", Core(), "")  # the parameter is not even looked at
    mode = linux.mode
    if mode == "ratelimit" and linux.version < RATELIMIT:
        mode = "warn"  # an unknown value leaves the default
    by_fault = has.split_locks and mode in ("warn", "fatal")
    core = Core(by_fault, has.bus_locks and mode != "off" and not by_fault)
    user = {"warn": "warning on user-space ", "fatal": "sending SIGBUS on user-space "}.get(mode, "")
    if mode == "off":
        line = "disabled"
    elif mode == "ratelimit":
        line = f"#DB: setting system wide bus lock rate limit to {linux.rate}/sec" if core.debugctl else ""
    elif linux.version < BUS_LOCKS:
        line = f"{'sending SIGBUS on' if mode == 'fatal' else 'warning about'} user-space split_locks"
    elif by_fault:
        line = f"#AC: crashing the kernel on kernel split_locks and {user}split_locks"
    else:
        line = f"#DB: {user}bus_locks"
    return Set(mode, core, line and PREFIX + line)


def alignment_check(linux: Linux, processor: Processor, access: Access, locks: Locks) -> Answer:
    """`#AC`. `processor`: as the kernel is shown it; a guest that is shown no detection cannot turn it off."""
    if linux.version < SPLIT_LOCKS:  # any #AC is an alignment check
        at = "traps.c: do_alignment_check()"
        if access.user:
            return _sigbus("takes it for a failed alignment check", at, locks)
        return _oops(access, "alignment check: 0000 [#1]", at)
    at = "traps.c: exc_alignment_check()"
    if not access.user:
        return _oops(access, "Split lock detected: 0000 [#1]", at)
    if access.ac:
        return _sigbus("the task set EFLAGS.AC", "handle_user_split_lock()", locks)
    if boot(linux, processor).mode == "fatal":
        return _sigbus("not handled", "handle_user_split_lock()", locks)
    if not known(linux, processor).split_locks:
        return Answer(
            "livelock",
            "warns, writes a TEST_CTRL that it does not have, and runs the instruction again: it traps for ever",
            "split_lock_warn()", _took("#AC", "split", locks), 1,
        )  # fmt: skip
    return split_lock_warn(linux, locks)


def _sigbus(why: str, source: str, locks: Locks) -> Answer:
    log = f"traps: {locks.comm[:COMM]}[{locks.pid}] trap alignment check ip:{locks.address:x}"
    return Answer("sigbus", f"{why}: SIGBUS, BUS_ADRALN, si_addr 0", source, log, 1)


def _oops(access: Access, line: str, source: str) -> Answer:
    if access.where == "interrupt":
        return Answer("panic", "an oops in an interrupt: panic", source, line, 1)
    return Answer("oops", "the kernel oopses", source, line, 1)


def split_lock_warn(linux: Linux, locks: Locks) -> Answer:
    """`warn`: one line a task, then misery (from 5.19, unless kernel.split_lock_mitigate is 0)."""
    log, lines = _took("#AC", "split", locks), 0 if locks.reported else 1
    source = "split_lock_warn()"
    if linux.version < MISERY:  # TIF_SLD: off whenever this task runs
        return Answer("executed", "detection is off while this task runs, for good", source, log, lines)
    window = 1000 * JIFFIES / linux.hz
    rounds = windows(locks.number, window, locks.every_ms)
    if not linux.mitigate and linux.version >= MITIGATE:
        what = f"detection is off on this core for {JIFFIES} jiffies ({window:g} ms)"
        return Answer("executed", what, source, log, lines)
    what = (
        f"sleeps {SLEEP_MS} ms, waits until no other core runs split locks, turns detection off on this core for "
        f"{JIFFIES} jiffies ({window:g} ms)"
    )
    if rounds > 1:
        what += f"; {rounds:,} times for {locks.number:,} split locks"
    return Answer("slowed", what, source, log, lines, rounds * SLEEP_MS, rounds * window)


def windows(count: int, window_ms: float, every_ms: float) -> int:
    """How often detection is turned off for so many split locks: what follows within the window is free."""
    in_one = 1 + int(window_ms / max(every_ms, SPLIT_NS / 1e6))
    return ceil(count / in_one)


def bus_lock(linux: Linux, processor: Processor, locks: Locks) -> Answer:
    """`#DB`: the lock has executed. handle_bus_lock()."""
    mode, source = boot(linux, processor).mode, "handle_bus_lock()"
    log = _took("#DB", "bus", locks)
    if mode == "fatal":
        return Answer("sigbus", "SIGBUS, BUS_ADRALN; the lock has executed", source)
    if mode == "warn":
        return Answer("executed", "a line each time, rate limited; goes on", source, log, locks.number)
    if mode == "ratelimit":
        waited = limited_ms(locks.number, linux.rate, locks.every_ms)
        what = f"at most {linux.rate:,} a second for all tasks: waits in steps of {STEP_MS} ms"
        return Answer("slowed" if waited else "executed", what, source, log, locks.number, waited)
    return Answer("executed", "nothing", source)


def limited_ms(count: int, rate: int, every_ms: float) -> float:
    """What `ratelimit:N` adds, ms: N locks in a second, opened by the first; later ones wait, 20 ms a step."""
    now = opened = waited = 0.0
    left = rate
    for number in range(count):
        now += every_ms if number else 0.0
        if now - opened >= 1000:
            opened, left = now, rate
        if not left:
            wait = STEP_MS * ceil((opened + 1000 - now) / STEP_MS)
            now, waited = now + wait, waited + wait
            opened, left = now, rate
        left -= 1
    return waited


def guest_split_lock(linux: Linux, processor: Processor, locks: Locks) -> Answer:
    """A split lock in a guest that did not ask for `#AC`, as KVM reports it. handle_guest_split_lock()."""
    mode, source = boot(linux, processor).mode, "handle_guest_split_lock()"
    if mode == "warn":
        return split_lock_warn(linux, locks)
    word = "fatal" if mode == "fatal" else "bogus"
    log = f"{PREFIX}#AC: {locks.comm[:COMM]}/{locks.pid} {word} split_lock trap at address: {locks.address:#x}"
    return Answer("sigbus", "SIGBUS to the program that runs the virtual machine", source, log, 1)


def _took(vector: str, kind: str, locks: Locks) -> str:
    return f"{PREFIX}{vector}: {locks.comm[:COMM]}/{locks.pid} took a {kind}_lock trap at address: {locks.address:#x}"
