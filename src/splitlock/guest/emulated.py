"""One emulator that runs a machine: what it shares with us, its start, so that it never outlives us, and its end."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from splitlock._errors import SplitlockError
from splitlock.guest.memory import Memory
from splitlock.guest.shared import Shared

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.guest.bochs.console import Terminal
    from splitlock.guest.console import Console
    from splitlock.guest.machine import Options

_END = 5  # seconds that an emulator has for ending by itself


class Emulated(ABC):
    """A machine that runs, from its `start` until `end`; `guest.watch` looks after it.

    Raises SplitlockError where there is no memory for it.
    """

    emulator: str  #: for people

    def __init__(self, options: Options, console: Console | Terminal) -> None:
        self.options = options
        self.memory = Memory(options.memory)
        self.shared = Shared()
        self.console = console
        self.asked, self._ask = socket.socketpair()
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  # as long as the machine
        self.process: subprocess.Popen[bytes]

    def plugin_words(self, detect: str, *, traps: bool = True) -> str:
        """What the plugin, or the library, is told: plugin/plugin.c. `traps`: also where to write exceptions."""
        words = f"shared={self.shared.fd},ram={self.memory.fd},low={self.memory.low},ask={self._ask.fileno()}"
        words += f",detect={detect}" if detect else ""
        return words + (f",traps={self.options.traps}" if traps and self.options.traps is not None else "")

    def start(
        self, command: Sequence[str | Path], *, stdin: int, stdout: int | None = None,
        environment: Mapping[str, str] = os.environ, directory: Path | None = None, inherited: Sequence[int] = (),
    ) -> None:  # fmt: skip
        """Start the emulator; what it says goes to `errors`, and so does its standard output without `stdout`.

        Raises SplitlockError where that fails; all but this object is freed then.
        """
        shared = [self.memory.fd, self.shared.fd, self._ask.fileno(), *inherited]
        shared += [self.options.traps] if self.options.traps is not None else []
        try:
            self.process = subprocess.Popen(
                # it ends with us, however we end; and Ctrl-C at the terminal is for us alone
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=stdin, stdout=self.errors if stdout is None else stdout, stderr=self.errors, pass_fds=shared,
                cwd=directory, start_new_session=True, env=environment,
            )  # fmt: skip
        except OSError as error:
            self.abandon()
            raise SplitlockError(f"setpriv: {error.strerror}; install util-linux", 2) from None
        finally:
            self._ask.close()

    def abandon(self) -> None:
        """Free everything: it has not been started."""
        self._ask.close()
        self.hang_up()
        self.console.close()
        self.close()

    @abstractmethod
    def load(self) -> None:
        """The machine's boot sector asks for what it is to boot."""

    @abstractmethod
    def clock(self) -> float:
        """Seconds, for deadlines."""

    @abstractmethod
    def powered_off(self, status: int) -> bool:
        """Whether the emulator ended, with this exit status, as its machine was powered off."""

    @abstractmethod
    def words(self) -> str:
        """What it said last of why it ended, one line; or nothing."""

    @abstractmethod
    def stop(self) -> None:
        """Ask it to end."""

    def hang_up(self) -> None:
        """Answer no more questions."""
        self.asked.close()

    def end(self) -> None:
        """End it, by force if it must be, and free everything but memory and counts."""
        self.hang_up()
        self.stop()
        try:
            self.process.wait(_END)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.console.close()

    def close(self) -> None:
        """Free memory and counts, too."""
        self.errors.close()
        self.memory.close()
        self.shared.close()

    def said(self) -> str:
        """All that it has said so far."""
        self.errors.seek(0)
        return self.errors.read().decode("utf-8", "replace")
