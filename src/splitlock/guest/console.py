"""A guest's serial port: two pipes.

QEMU's serial port drops what cannot be written at once, and writes each character by itself, of which a socket holds a
few hundred; a pipe holds as many as it has bytes.
"""

from __future__ import annotations

import fcntl
import os
import tempfile

_SIZE = 1 << 20  # bytes that a pipe may hold without a privilege (pipe(7), pipe-max-size)


class Console:
    """Our ends of it. `option`: the arguments that give QEMU the others."""

    def __init__(self, name: str) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="splitlock-")
        path = os.path.join(self._directory.name, "serial")
        for end in (".in", ".out"):
            os.mkfifo(path + end)
        self._from = os.open(f"{path}.out", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._to = os.open(f"{path}.in", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.fcntl(self._from, fcntl.F_SETPIPE_SZ, _SIZE)
        except OSError:  # too many of ours have so much: what there is has to do
            pass
        self.option = ["-chardev", f"pipe,id={name},path={path}", "-serial", f"chardev:{name}"]

    def fileno(self) -> int:
        """What is to be read, for select(2)."""
        return self._from

    def read(self) -> bytes:
        """What the guest has said since; empty: nothing more, or not now."""
        try:
            return os.read(self._from, 1 << 16)
        except BlockingIOError:
            return b""

    def write(self, data: bytes) -> None:
        """Type it. What the guest does not take is lost."""
        try:
            os.write(self._to, data)
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Free it."""
        os.close(self._from)
        os.close(self._to)
        self._directory.cleanup()
