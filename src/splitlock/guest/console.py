"""A guest's serial port: QEMU's standard input and output, which are pipes.

QEMU's serial port drops what cannot be written at once, and writes each character by itself, of which a socket holds a
few hundred; a pipe holds as many as it has bytes.
"""

from __future__ import annotations

import fcntl
import os

_SIZE = 1 << 20  # bytes that a pipe may hold without a privilege (pipe(7), pipe-max-size)


class Console:
    """Our ends of it, and until `given` QEMU's: `input` and `output`, for a process that is started with `option`."""

    option = ("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console")

    def __init__(self) -> None:
        self.input, self._to = os.pipe()
        self._from, self.output = os.pipe()
        for end in (self._to, self._from):
            os.set_blocking(end, False)
        try:
            fcntl.fcntl(self._from, fcntl.F_SETPIPE_SZ, _SIZE)
        except OSError:  # too many of ours have so much: what there is has to do
            pass

    def given(self) -> None:
        """QEMU has its ends, or will not have them."""
        os.close(self.input)
        os.close(self.output)

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
        except (BlockingIOError, BrokenPipeError):
            pass

    def close(self) -> None:
        """Free it."""
        os.close(self._from)
        os.close(self._to)
