"""What happens to a task that takes a split lock: the kernel's `split_lock_detect=` modes, applied to our hits.

Its delays and words are the kernel's: linux/delays.py, linux/sentences.py.
"""

from __future__ import annotations

import os
import time

from splitlock._errors import SplitlockError
from splitlock.linux.delays import JIFFIES, RATES, SLEEP_MS, STEP_MS
from splitlock.linux.sentences import KILLED, TOOK_BUS, TOOK_SPLIT

GO_ON, DONE_ASKING, FATAL, WAIT = range(4)

_MISERY, _STEP = SLEEP_MS / 1000, STEP_MS / 1000  # seconds
_WINDOW = JIFFIES / 250  # seconds, with the 250 jiffies a second that most distributions have


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
        if mode == "ratelimit" and number.isascii() and number.isdigit() and len(number) < 10 and int(number) in RATES:
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
        """What the kernel would log. `after`: address of the next instruction, which a bus lock trap names.

        A task's name, and a file's, are what others chose: what a terminal would obey is escaped.
        """
        from splitlock.report.lines import printable

        comm, where = printable(comm), printable(where)
        if self.mode == "ratelimit":
            return TOOK_BUS.format(comm=comm, pid=tid, address=after)
        if self.mode == "fatal":
            return KILLED.format(comm=comm, pid=tid, address=address, sp=stack, error=0, place=where)
        return TOOK_SPLIT.format(comm=comm, pid=tid, address=address)


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
