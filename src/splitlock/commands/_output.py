"""Where a report goes: to a file that was named, or to standard output, where a progress bar steps aside."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager, nullcontext

from splitlock._errors import SplitlockError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from splitlock.commands._progress import Bar


class Output:
    """The file at `path`, or standard output for None. Raises SplitlockError where it cannot be written.

    `bar`: on the same terminal; what is written then are whole lines.
    """

    def __init__(self, path: str | None, bar: Bar | None = None) -> None:
        self.path = path
        self._bar = bar
        try:
            self._file: BinaryIO = sys.stdout.buffer if path is None else open(path, "wb")  # noqa: SIM115
        except OSError as error:
            raise SplitlockError(f"-o {path}: {error.strerror}; name a file that can be written", 2) from None

    def __enter__(self) -> Output:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self.path is not None:
            try:
                self._file.close()
            except OSError as error:  # what was written and could not be is tried once more
                if kind is None:
                    raise self._failed(error) from None

    def write(self, raw: bytes) -> None:
        """Write it now. Ends the program where it goes to one that has seen enough, such as head(1)."""
        if not raw:
            return
        try:
            with self._bar.hidden() if self._bar is not None else nullcontext(), _uninterrupted():
                self._file.write(raw)
                self._file.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._file.fileno())  # or flushing it would fail again
            sys.exit(2)
        except OSError as error:
            raise self._failed(error) from None

    def _failed(self, error: OSError) -> SplitlockError:
        return SplitlockError(f"{self.path or 'standard output'}: {error.strerror}: no report", 2)


def end_politely() -> None:
    """From now on SIGTERM and SIGHUP do as Ctrl-C: what is known is told, nothing is left. nohup(1) is obeyed."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """What would raise KeyboardInterrupt comes after: else a slow reader gets a part of what is written."""
    held = {
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is signal.default_int_handler
    }
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
