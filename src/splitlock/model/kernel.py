"""What does a Linux kernel of the model do about a split lock? The table of linux/detection.py, with times and names.

Nothing is ruled here: what comes of an exception is the table's; this adds up how long so many locks take.
"""

from __future__ import annotations

from math import ceil
from typing import Literal, NamedTuple

from splitlock.linux import detection, versions
from splitlock.linux.delays import STEP_MS
from splitlock.linux.parameter import MODES
from splitlock.linux.versions import Release
from splitlock.model.cpu import SPLIT_NS, Access, Core, Processor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.linux.detection import Armed, Effect, Kernel, Place
    from splitlock.linux.versions import Change

Fate = Literal["executed", "slowed", "sigbus", "oops", "panic", "livelock"]

#: What `split_lock_detect=` is given, one for each mode.
VALUES = tuple("ratelimit:10" if mode == "ratelimit" else mode for mode in MODES)


class Linux(NamedTuple):
    """A kernel and its settings."""

    release: Release
    value: str = "warn"  #: of `split_lock_detect=`
    mitigate: bool = True  #: kernel.split_lock_mitigate
    hz: int = 250  #: jiffies a second
    assume: bool = True  #: has it the changes that it may have?
    shown: frozenset[str] = frozenset()  #: names of changes that it is seen to have

    @classmethod
    def of(cls, release: str, value: str = "warn", mitigate: bool = True, hz: int = 250) -> Linux:
        """By its version in words. Raises ValueError where they are none."""
        known = versions.release(release)
        if known is None:
            raise ValueError(f"{release!r} is no version of Linux")
        return cls(known, value, mitigate, hz)

    @property
    def kernel(self) -> Kernel:
        """As the table takes it."""
        return detection.Kernel(self.release, self.assume, self.shown)

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


def boot(linux: Linux, processor: Processor) -> Armed:
    """What is in effect once it has booted."""
    return detection.boot(linux.kernel, processor, linux.value)


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
    made = detection.effect(linux.kernel, "#DB", armed.mode, "program")
    if made.fate != "limited":
        return _answer(linux, made, locks)
    waited = limited_ms(locks.number, armed.rate, locks.every_ms)
    what = f"at most {armed.rate:,} a second for all tasks: {made.what}"
    log = made.sentence.format(comm=locks.comm, pid=locks.pid, address=locks.address) if made.sentence else ""
    return Answer("slowed" if waited else "executed", what, made.source, log, locks.number, waited)


def guest_split_lock(linux: Linux, processor: Processor, locks: Locks) -> Answer:
    """A split lock in a guest that did not ask for `#AC`, as KVM reports it."""
    mode = boot(linux, processor).mode
    return _answer(linux, detection.effect(linux.kernel, "#AC", mode, "guest", mitigate=linux.mitigate), locks)


def _answer(linux: Linux, made: Effect, locks: Locks) -> Answer:
    """So many locks, one after the other."""
    log, what, rounds = "", made.what, 1
    lines = {"never": 0, "once a boot": 1, "once a task": 0 if locks.reported else 1, "each time": locks.number}
    if made.sentence:
        log = made.sentence.format(
            comm=locks.comm, pid=locks.pid, address=locks.address, sp=0, error=0, number=1, place=""
        )
    window = 1000 * made.alone_jiffies / linux.hz
    if made.sleep_ms:
        rounds = windows(locks.number, window, locks.every_ms)
        what += f" ({window:g} ms)"
        if rounds > 1:
            what += f"; {rounds:,} times for {locks.number:,} split locks"
    fate: Fate = "slowed" if made.fate == "limited" else made.fate
    many = locks.number if fate in ("executed", "slowed") else 1
    return Answer(
        fate, what, made.source, log, min(lines[made.logged], many), rounds * made.sleep_ms,
        rounds * window if made.sleep_ms else 0.0,
    )  # fmt: skip


def windows(count: int, window_ms: float, every_ms: float) -> int:
    """How often detection is turned off for so many split locks: what follows within the window is free."""
    in_one = 1 + int(window_ms / max(every_ms, SPLIT_NS / 1e6))
    return ceil(count / in_one)


def limited_ms(count: int, rate: int, every_ms: float) -> float:
    """What `ratelimit:N` adds, ms: N locks in a second, opened by the first; later ones wait, 20 ms a step.

    A rate of 0 is none: `ratelimit:` alone leaves the kernel's limit at nothing to keep to.
    """
    if not rate:
        return 0.0
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
