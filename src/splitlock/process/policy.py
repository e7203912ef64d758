"""What happens to a task that takes a split lock: the kernel's `split_lock_detect=` modes, applied to our hits.

Constants and words are the kernel's: arch/x86/kernel/cpu/bus_lock.c (split_lock_warn, handle_bus_lock)
and Documentation/arch/x86/buslock.rst.
"""

from __future__ import annotations

import os
import time

from splitlock._errors import SplitlockError

PREFIX = "x86/split lock detection: "
GO_ON, DONE_ASKING, FATAL, WAIT = range(4)

_MISERY = 0.010  # seconds a task sleeps before its split lock (warn with mitigation)
_WINDOW = 2 / 250  # seconds, 2 jiffies: for so long it may then run split locks, alone
_STEP = 0.020  # seconds between attempts (ratelimit)


class Policy:
    """One run's mode. `parse` makes it from the option."""

    def __init__(self, mode: str, limit: int = 0, mitigate: bool = False) -> None:
        self.mode, self.limit, self.mitigate = mode, limit, mitigate
        self._begin = 0.0
        self._taken = 0
        self._slept: set[int] = set()
        #: the task that may run split locks now, and until when (mitigate)
        self.holder: int | None = None
        self.until = 0.0

    @classmethod
    def parse(cls, text: str, mitigate: bool = False) -> Policy:
        """From `off`, `warn`, `fatal` or `ratelimit:N`. Raises SplitlockError for anything else."""
        mode, _, number = text.partition(":")
        if mode == "ratelimit" and number.isascii() and number.isdigit() and 1 <= int(number) <= 1000:
            policy = cls(mode, int(number))
        elif mode in ("off", "warn", "fatal") and text == mode:
            policy = cls(mode, mitigate=mitigate)
        else:
            raise SplitlockError(
                f"--split-lock-detect={text}: not a mode; use off, warn, fatal or ratelimit:N with N from 1 to 1000"
            )
        if mitigate and mode != "warn":
            raise SplitlockError(f"--mitigate: only with --split-lock-detect=warn, not {text}")
        return policy

    @property
    def makes_wait(self) -> bool:
        """Whether a task may have to wait for its turn."""
        return self.mitigate or self.mode == "ratelimit"

    def __str__(self) -> str:
        return f"{self.mode}:{self.limit}" if self.mode == "ratelimit" else self.mode

    def decide(self, tid: int, now: float) -> tuple[int, float]:
        """What a task that is about to take a split lock shall do, and when to ask again if WAIT.

        `now` in seconds of a monotonic clock.
        """
        if self.mode == "fatal":
            return FATAL, 0.0
        if self.mode == "ratelimit":
            if now - self._begin >= 1.0:
                self._begin, self._taken = now, 0
            if self._taken < self.limit:
                self._taken += 1
                return GO_ON, 0.0
            return WAIT, now + _STEP
        if not self.mitigate:
            return DONE_ASKING, 0.0
        if self.holder == tid:
            return DONE_ASKING, 0.0
        if tid not in self._slept:
            self._slept.add(tid)
            return WAIT, now + _MISERY
        if self.holder is not None:
            return WAIT, max(self.until, now + 0.001)
        self._slept.discard(tid)
        self.holder, self.until = tid, now + _WINDOW
        return DONE_ASKING, 0.0

    def forget(self, tid: int) -> None:
        """A task has ended."""
        self._slept.discard(tid)
        if self.holder == tid:
            self.holder = None

    def line(self, comm: str, tid: int, address: int, after: int, stack: int, where: str) -> str:
        """What the kernel would log. `after`: address of the next instruction, which a bus lock trap names."""
        if self.mode == "ratelimit":
            return f"{PREFIX}#DB: {comm}/{tid} took a bus_lock trap at address: {after:#x}"
        if self.mode == "fatal":
            return f"traps: {comm}[{tid}] trap alignment check ip:{address:x} sp:{stack:x} error:0{where}"
        return f"{PREFIX}#AC: {comm}/{tid} took a split_lock trap at address: {address:#x}"


def comm(tid: int) -> str:
    """A task's name, 15 characters at most, as the kernel logs it."""
    try:
        with open(f"/proc/{tid}/comm", "rb", buffering=0) as file:
            return os.fsdecode(file.read().rstrip(b"\n"))
    except OSError:
        return "?"


def say(line: str) -> None:
    """One line on standard error, whole, even while others write there."""
    text = os.fsencode(line + "\n")
    for _ in range(100):
        try:
            os.write(2, text)
            return
        except BlockingIOError:  # a program has made our common terminal or pipe non-blocking, and it is full
            time.sleep(0.01)
        except OSError:  # nobody listens: no reason to stop the program
            return
