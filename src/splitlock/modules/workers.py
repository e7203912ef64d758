"""Processes to scan in. One that dies, as when the kernel is out of memory, takes only its own work along."""

from __future__ import annotations

import ctypes
import os
import signal
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor
from multiprocessing import get_context

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from typing import Any


_PR_SET_PDEATHSIG = 1  # prctl(2)


class Workers(Executor):
    """A number of processes. When one dies all the work that was handed in fails, but new processes do what comes next.

    Left by an exception, as by Ctrl-C, it ends the processes rather than wait for them.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._pool = self._new()

    def _new(self) -> ProcessPoolExecutor:
        # fork: the decoder, once imported, is there in all of them
        return ProcessPoolExecutor(
            self._number, mp_context=get_context("fork"), initializer=_begin, initargs=(os.getpid(),)
        )

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """As concurrent.futures has it."""
        # This may start processes. Ctrl-C in the middle of that is lost in a callback of fork's, or leaves a pool that
        # waits for ever; so it comes after.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            try:
                return self._pool.submit(function, *arguments, **named)
            except BrokenExecutor:
                self._pool.shutdown()
                self._pool = self._new()
                return self._pool.submit(function, *arguments, **named)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As concurrent.futures has it."""
        self._pool.shutdown(wait, cancel_futures=cancel_futures)

    def __exit__(self, kind: object, *_: object) -> None:
        busy = list((self._pool._processes or {}).values()) if kind is not None else []
        self.shutdown(wait=kind is None, cancel_futures=True)
        for process in busy:  # a package may keep one so for long; a handler of SIGTERM that we had, so has it
            process.kill()
            process.join()


def _begin(parent: int) -> None:
    """Ctrl-C is the parent's to handle, and a worker does not outlive it: killed, it leaves a pipe that never ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was killed before that
        os._exit(1)
