"""Waiting for another process's lock only as long as that process gets on with its work."""

from __future__ import annotations

import fcntl
import struct
import time

_FLOCK = struct.Struct("hhqqi4x")  # struct flock of x86-64: type, whence, start, length, pid (fcntl(2))
_STEP = 0.02  # seconds between two tries
_PATIENCE = 5.0  # seconds without any work done: 250 others may have their turns on the processor before


class Holder:
    """Whoever holds one byte of a lock file."""

    def __init__(self, descriptor: int, at: int) -> None:
        self._descriptor, self._at = descriptor, at
        self._pid = self._ticks = -1
        self._until = 0.0

    def wait(self) -> bool:
        """Wait a moment; False when there is no sense in it: the holder is stopped, or has not worked for long.

        A holder that cannot be looked at (in another PID namespace, on another machine) counts as one without work.
        """
        asked = _FLOCK.pack(fcntl.F_WRLCK, 0, self._at, 1, 0)
        try:
            kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(self._descriptor, fcntl.F_GETLK, asked))
        except OSError:  # a file system without locks
            return False
        if kind == fcntl.F_UNLCK:
            return True
        state, ticks = _work_of(pid)
        if state in ("T", "t"):
            return False
        now = time.monotonic()
        if pid != self._pid or ticks != self._ticks:
            self._pid, self._ticks, self._until = pid, ticks, now + _PATIENCE
        if now >= self._until:
            return False
        time.sleep(_STEP)
        return True


def _work_of(pid: int) -> tuple[str, int]:
    """A process's state, as ps(1) has it, and its processor time in clock ticks (proc(5)); ("", -1) of none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return "", -1
    return fields[0].decode(), int(fields[11]) + int(fields[12])
