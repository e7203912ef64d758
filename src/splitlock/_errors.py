"""Failures that reach a person: one line that names the file or option and the remedy."""

from __future__ import annotations

import errno


class SplitlockError(Exception):
    """Something we cannot do. `str()` is the one line to print.

    `exit_code` is the exit status of the command that fails with it: 125 for our own failure or
    wrong usage, 126 for a program that cannot be executed, 127 for one that is not there, as
    env(1) and timeout(1) have it.
    """

    def __init__(self, message: str, exit_code: int = 125) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ImageError(ValueError):
    """A file that is not the image it claims to be. `str()` says what is wrong with it."""


_REMEDIES = {
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "the whole system has too many open",
    errno.EAGAIN: "raise the limit on processes (ulimit -u)",
    errno.ENOMEM: "raise the limits on memory (ulimit -v, -d)",
    errno.EFBIG: "raise the limit on files' sizes (ulimit -f)",
}
NO_MEMORY = f"out of memory; {_REMEDIES[errno.ENOMEM]}"


def failure(error: BaseException) -> str:
    """What failed, and what to do, in one line; of what nobody foresaw, where in our code it happened, too.

    It imports nothing: often there is no memory left, or no descriptor.
    """
    if isinstance(error, MemoryError):
        return NO_MEMORY
    if isinstance(error, OSError) and error.errno is not None:
        what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
        remedy = _REMEDIES.get(error.errno)
        return _line(f"{what}; {remedy}" if remedy else what)
    if isinstance(error, (ImportError, SystemError)):  # a library that could not be mapped, or failed without memory
        return _line(f"{error}; see to memory and open files (ulimit -a), or install splitlock again")
    return _line(f"a mistake of ours, please report it: {type(error).__name__}: {error} ({_where(error)})")


def reserves(number: int) -> list[bytearray]:
    """Some memory, and up to so many megabytes, each to be freed by a step down where there is none left.

    Nothing touches them. The first is small, since what is left may be less than a megabyte.
    """
    kept: list[bytearray] = []
    try:
        kept.append(bytearray(1 << 16))
        while len(kept) <= number:
            kept.append(bytearray(1 << 20))
    except MemoryError:
        if len(kept) > 1:  # there is little already
            kept.pop()
    return kept


def _where(error: BaseException) -> str:
    """Where in our code it happened, from the inside out: `tracer.py:120 < run.py:77`."""
    places = []
    step = error.__traceback__
    while step is not None:
        name = step.tb_frame.f_code.co_filename
        if "splitlock" in name:
            places.append(f"{name.rpartition('/')[2]}:{step.tb_lineno}")
        step = step.tb_next
    return " < ".join(reversed(places))


def _line(text: str) -> str:
    return " ".join(text.split())
