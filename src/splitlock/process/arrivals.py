"""Signals that come to us and are meant for the program: waited for, and passed on."""

from __future__ import annotations

import os
import signal

from splitlock.process.analysis import apart
from splitlock.process.launch import WAITED
from splitlock.process.signals import ignores

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.process.analysis import Make, Take
    from splitlock.process.task import Task

_URGENT = {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM}  # what ends a program that does not see to it


class Arrivals:
    """Signals to us during one run. `tasks` are the program's, by thread id, as they come and go; `main` its first."""

    def __init__(self, tasks: dict[int, Task]) -> None:
        self._tasks = tasks
        self.main = 0
        self._why = ""

    def wait(self, timeout: float | None) -> None:
        """Until a signal comes, a task's stop among them, or `timeout` seconds are over."""
        got = signal.sigwaitinfo(WAITED) if timeout is None else signal.sigtimedwait(WAITED, timeout)
        self._why = ""  # whoever stood still has run on meanwhile
        if got is not None:
            self._pass_on(got)

    def apart(self, make: Make, take: Take) -> bytes:
        """What `make` gives, made in a process of its own (splitlock.process.analysis), while signals are passed on."""
        return apart(make, self.called, take)

    def called(self) -> str:
        """While an image is analysed, for which a task waits: pass on what has come. Says what cannot wait, or "".

        That task is stopped and takes no signal before it runs on, with the image unwatched, and the next one, too.
        """
        while (got := signal.sigtimedwait(WAITED - {signal.SIGCHLD}, 0)) is not None:
            self._pass_on(got)
            number = got.si_signo
            if number in _URGENT and not all(ignores(task.tid, number) for task in self._tasks.values()):
                self._why = f"cut short by {signal.Signals(number).name}"
            if number == signal.SIGTSTP and got.si_code > 0 and os.getpgid(self.main) == os.getpgrp():
                os.kill(os.getpid(), signal.SIGSTOP)  # the program stands still anyway; its shell waits for us to stop
        return self._why

    def _pass_on(self, got: signal.struct_siginfo) -> None:
        """To the program's first process, or to all that are left. From the terminal it has reached them already."""
        if got.si_signo == signal.SIGCHLD or got.si_code > 0:
            return
        for pid in {self.main} if self.main in self._tasks else {t.pid for t in self._tasks.values()}:
            try:
                os.kill(pid, got.si_signo)
            except ProcessLookupError:
                pass
