"""The machine's serial port: a terminal of which Bochs has one end and we the other."""

from __future__ import annotations

import os
import tty


class Terminal:
    """Our end; `path` is the other one, which Bochs opens. It stays open here: what Bochs wrote last can be read."""

    def __init__(self) -> None:
        self._ours, self._theirs = os.openpty()
        tty.setraw(self._theirs)
        os.set_blocking(self._ours, False)
        self.path = os.ttyname(self._theirs)

    def fileno(self) -> int:
        """What is to be read, for select(2)."""
        return self._ours

    def read(self) -> bytes:
        """What the machine has said since; empty: nothing more, or not now."""
        try:
            return os.read(self._ours, 1 << 16)
        except OSError:  # not now, or Bochs has hung up
            return b""

    def write(self, data: bytes) -> None:
        """Type it. What the machine does not take is lost."""
        try:
            os.write(self._ours, data)
        except OSError:
            pass

    def close(self) -> None:
        """Free it."""
        os.close(self._ours)
        os.close(self._theirs)
