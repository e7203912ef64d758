"""What does a Linux kernel of the model do about a split lock? The table of linux/detection.py, with times and names.

Nothing is ruled here: what comes of an exception is the table's; this adds up how long so many locks take.
"""

from __future__ import annotations

from math import ceil
from typing import Literal, NamedTuple

from splitlock.linux import detection, versions
from splitlock.linux.delays import JIFFIES, STEP_MS
from splitlock.linux.often import BURST, Heard, often, printed
from splitlock.linux.parameter import MODES, NAME, Setting, find, setting
from splitlock.linux.versions import Release
from splitlock.model.cpu import SPLIT_NS, Access, Core, Processor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from splitlock.linux.detection import Armed, Effect, Kernel, Place
    from splitlock.linux.parameter import Mode
    from splitlock.linux.versions import Change

Fate = Literal["executed", "slowed", "sigbus", "oops", "panic", "livelock"]

_STACK, _PAGE = 0x7FFC8F3FE2D0, 0x1000  # a stack pointer, made up; bytes of a page

#: What `split_lock_detect=` is given, one for each mode.
VALUES = tuple("ratelimit:10" if mode == "ratelimit" else mode for mode in MODES)


class Linux(NamedTuple):
    """A kernel and its settings."""

    release: Release
    value: str = "warn"  #: of `split_lock_detect=`
    mitigate: bool = True  #: kernel.split_lock_mitigate
    hz: int = 250  #: jiffies a second

    @classmethod
    def of(cls, release: str, value: str = "warn", mitigate: bool = True, hz: int = 250) -> Linux:
        """By its version in words. Raises ValueError where they are none."""
        known = versions.release(release)
        if known is None:
            raise ValueError(f"{release!r} is no version of Linux")
        return cls(known, value, mitigate, hz)

    @property
    def kernel(self) -> Kernel:
        """As the table takes it: what a stable release may have, it has."""
        return detection.Kernel(self.release)

    def knows(self, change: Change) -> bool:
        """Does it have this change?"""
        return self.kernel.knows(change)


class Locks(NamedTuple):
    """How often, and by whom."""

    number: int = 1
    every_ms: float = 0.0  #: between two of them
    comm: str = "program"
    pid: int = 1000
    address: int = 0x401000  #: of the instruction
    heard: Heard | None = None  #: what the kernel that handles them has said before; None: nothing


class Answer(NamedTuple):
    """What came of it."""

    fate: Fate
    what: str
    source: str
    log: str = ""
    lines: int = 0  #: of the log
    held_back: int = 0  #: by the kernel's rate limit, of which nobody else makes use
    milliseconds: float = 0.0  #: that the task was made to wait
    alone_ms: float = 0.0  #: for which no other core may run split locks


def asked(linux: Linux) -> Setting:
    """What the kernel makes of its parameter. A blank ends a value, and the last word of that name counts."""
    return setting(find(f"{NAME}={linux.value}"), ratelimit=linux.knows(versions.RATELIMIT))


def boot(linux: Linux, processor: Processor) -> Armed:
    """What is in effect once it has booted."""
    return detection.boot(linux.kernel, processor, find(f"{NAME}={linux.value}"))


def core(armed: Armed) -> Core:
    """Each core's switches."""
    return Core(armed.trap == "#AC", armed.trap == "#DB")


def alignment_check(linux: Linux, processor: Processor, access: Access, locks: Locks) -> Answer:
    """`#AC`. `processor`: as the kernel is shown it; a guest that is shown no detection cannot turn it off."""
    armed = boot(linux, processor)
    mode = armed.mode
    if armed.trap != "#AC" and mode != "fatal":
        mode = "off"  # handle_user_split_lock() asks for `fatal` alone; for the rest there is no TEST_CTRL to write
    place: Place = access.where if access.where != "user" else "asking" if access.ac else "program"
    if access.where == "user" and not access.user:
        place = "kernel"  # real mode has no rings
    return _answer(linux, detection.effect(linux.kernel, "#AC", mode, place, mitigate=linux.mitigate), locks)


def bus_lock(linux: Linux, processor: Processor, locks: Locks) -> Answer:
    """`#DB`: the lock has executed."""
    armed = boot(linux, processor)
    return _debug(linux, armed.mode, armed.rate, locks)


def other_debug(linux: Linux, processor: Processor, locks: Locks, *, first: bool) -> Answer:
    """A `#DB` that is no bus lock. `first`: in a program, on this CPU, since it came online.

    Armed or not: what counts is that the processor has the feature.
    """
    mode, rate = asked(linux).mode, asked(linux).rate
    mistaken = processor.bus_locks and detection.false_bus_locks(linux.release) == "yes"
    if not first or not mistaken or mode == "off":
        return Answer("executed", "tells the debugger; nothing is said of bus locks", "traps.c: exc_debug_user()")
    found = _debug(linux, mode, rate, locks)
    why = "the first #DB on this CPU: DR6 does not deny a bus lock yet, so it counts as one, falsely"
    return found._replace(what=f"{why}: {found.what}", source="exc_debug_user(), before 5f465c148c61")


def _debug(linux: Linux, mode: Mode, rate: int, locks: Locks) -> Answer:
    made = detection.effect(linux.kernel, "#DB", mode, "program")
    if made.fate != "limited":
        return _answer(linux, made, locks)
    times = list(limited(locks.number, rate, locks.every_ms))
    waited = sum(wait for _, wait in times)
    what = (
        f"at most {rate:,} a second for all tasks: {made.what}"
        if rate
        else "ratelimit: without a number limits nothing"
    )
    log, lines, held = _said(linux, made, locks, [now for now, _ in times])
    return Answer("slowed" if waited else "executed", what, made.source, log, lines, held, waited)


def guest_split_lock(linux: Linux, processor: Processor, locks: Locks) -> Answer:
    """A split lock in a guest that did not ask for `#AC`, as KVM reports it."""
    mode = boot(linux, processor).mode
    return _answer(linux, detection.effect(linux.kernel, "#AC", mode, "guest", mitigate=linux.mitigate), locks)


def _answer(linux: Linux, made: Effect, locks: Locks) -> Answer:
    """So many locks, one after the other."""
    what = made.what
    window = 1000 * JIFFIES / linux.hz
    rounds = windows(locks.number, window, locks.every_ms) if made.traps == "each window" else 1
    traps = {"once": 1, "each window": rounds, "each lock": locks.number, "for ever": BURST + 1}[made.traps]
    between = {"each window": max(window, locks.every_ms), "for ever": 0.0}.get(made.traps, locks.every_ms)
    log, lines, held = _said(linux, made, locks, [number * between for number in range(traps)])
    if made.traps == "for ever" and lines > 1:
        what, held = f"{what}; {BURST} lines in five seconds, again and again", 0
    if made.sleep_ms:
        what += f" ({window:g} ms)"
        if rounds > 1:
            what += f"; {rounds:,} times for {locks.number:,} split locks"
    fate: Fate = "slowed" if made.fate == "limited" else made.fate
    return Answer(
        fate, what, made.source, log, lines, held, rounds * made.sleep_ms, rounds * window if made.sleep_ms else 0.0
    )


def _said(linux: Linux, made: Effect, locks: Locks, times: list[float]) -> tuple[str, int, int]:
    """The line, how often it is logged, and how often held back, of traps at these times (ms)."""
    if made.sentence is None:
        return "", 0, 0
    entry = often(linux.kernel, made.sentence)
    log = made.sentence.format(
        comm=locks.comm, pid=locks.pid, address=locks.address, sp=_STACK, error=0, number=1, place=_place(linux, locks)
    )
    if locks.heard is not None and locks.heard.again(entry, locks.pid):
        return log, 0, 0
    wanted = times if entry.every == "each time" else times[:1]
    lines = printed(wanted) if entry.limit else len(wanted)
    return log, lines, len(wanted) - lines


def _place(linux: Linux, locks: Locks) -> str:
    """Behind a `traps:` line: the mapping that the address is in, a page of a file (mm/memory.c, print_vma_addr())."""
    start = locks.address & -_PAGE
    offset = f"{_PAGE + locks.address - start:x}," if linux.knows(versions.TRAPS_OFFSET) else ""
    return f" in {locks.comm}[{offset}{start:x}+{_PAGE:x}]"


def windows(count: int, window_ms: float, every_ms: float) -> int:
    """How often detection is turned off for so many split locks: what follows within the window is free."""
    in_one = 1 + int(window_ms / max(every_ms, SPLIT_NS / 1e6))
    return ceil(count / in_one)


def limited(count: int, rate: int, every_ms: float) -> Iterator[tuple[float, float]]:
    """What `ratelimit:N` does to each lock: when it goes on, and how long it waited before that, ms.

    N locks in a second, opened by the first; later ones wait, 20 ms a step. A rate of 0 is none: `ratelimit:` alone
    leaves the kernel's limit at nothing to keep to.
    """
    now = opened = 0.0
    left = rate
    for number in range(count):
        now += every_ms if number else 0.0
        waited = 0.0
        if rate and now - opened >= 1000:
            opened, left = now, rate
        if rate and not left:
            waited = STEP_MS * ceil((opened + 1000 - now) / STEP_MS)
            now += waited
            opened, left = now, rate
        left -= 1
        yield now, waited


def limited_ms(count: int, rate: int, every_ms: float) -> float:
    """What `ratelimit:N` adds to so many locks, ms."""
    return sum(waited for _, waited in limited(count, rate, every_ms))


def throttled_ms(count: int, rate: int, every_ms: float) -> float:
    """What QEMU's bus-lock-ratelimit adds, ms: the Nth lock in a second waits until that second is over.

    target/i386/kvm/kvm.c, kvm_rate_limit_on_bus_lock(); include/qemu/ratelimit.h, ratelimit_calculate_delay().
    """
    now = waited = 0.0
    ends = start = -1.0  # no second has begun
    done = 0
    for number in range(count):
        now += every_ms if number else 0.0
        if ends <= now:
            start, ends, done = now, now + 1000, 0
        done += 1
        if done >= rate:
            ends = start + 1000 * done / rate
            waited, now = waited + ends - now, ends
    return waited
