"""The supervisor beside the program, not above it: the program gets our own process, its number, its parent (`run -D`).

As strace's -D does it: a grandchild of ours becomes the supervisor, and we become the program. Whoever started us waits
for the program itself, and systemd's LISTEN_PID and MAINPID name it.
"""

from __future__ import annotations

import os
import select
import signal

from splitlock._errors import SplitlockError, failure
from splitlock.process.launch import WAITED, become, not_started

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from splitlock.process.launch import Environment

_INIT = 1
_FEW = 1024  # descriptors, where /proc does not tell which there are


def is_counted_on() -> str:
    """The variable that shows that somebody counts on our process being the program: sd_listen_fds(3), sd_notify(3)."""
    if os.environ.get("LISTEN_PID") == str(os.getpid()):
        return "LISTEN_PID"
    return "NOTIFY_SOCKET" if os.environ.get("NOTIFY_SOCKET") else ""


def why_not() -> str:
    """What keeps us from it here; "" where nothing does."""
    if os.getpid() == _INIT:
        return "splitlock is process 1 here, with whose end the kernel ends all others, the supervisor too"
    return ""


class Beside:
    """In the supervisor, which goes on where `step_aside` was called: the program's process, not ours any more."""

    def __init__(self, process: int, go: int, failed: int) -> None:
        self._process, self._go, self._failed = process, go, failed

    def go(self) -> None:
        """Let it become the program."""
        os.write(self._go, b"1")
        os.close(self._go)

    def wait(self) -> bool:
        """Until the program has ended; whether it began at all."""
        began = not os.read(self._failed, 1)
        os.close(self._failed)
        ends = select.poll()
        ends.register(self._process, select.POLLIN)
        ends.poll()
        os.close(self._process)
        return began


def step_aside(argv: Sequence[str], env: Environment) -> Beside:
    """Returns in the supervisor, in a session of its own and with no descriptors of the program's but standard error.

    The process that called becomes the program, once `go` says so. Raises SplitlockError there when it cannot.
    """
    went, go = os.pipe2(os.O_CLOEXEC)
    failed, fail = os.pipe2(os.O_CLOEXEC)
    ours = os.getpid()
    of_children = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        child = os.fork()
    except OSError as error:
        raise SplitlockError(f"{argv[0]}: cannot be started: {failure(error)}") from None
    if not child:
        try:
            os.setsid()
            if os.fork():
                os._exit(0)
            signal.pthread_sigmask(signal.SIG_BLOCK, WAITED)  # they are for the program, or for a service as a whole
            process = os.pidfd_open(ours)
            os.close(went)
            os.close(fail)
            _let_go()
        except BaseException:
            os._exit(1)
        return Beside(process, go, failed)
    os.waitpid(child, 0)
    os.close(go)
    os.close(failed)
    if not os.read(went, 1):
        raise SplitlockError(f"{argv[0]}: cannot be started: no supervisor could be, for want of processes or memory")
    signal.signal(signal.SIGCHLD, of_children)
    why = become(argv, env)
    os.write(fail, b"1")
    raise not_started(argv[0], why.errno or 0, why.strerror or str(why))


def _let_go() -> None:
    """Close what is the program's: its peers wait for the last one's end. What is ours is not inherited."""
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    try:
        there = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        there = list(range(_FEW))
    for descriptor in there:
        try:
            if descriptor > 2 and os.get_inheritable(descriptor):
                os.close(descriptor)
        except OSError:  # the one of the list itself
            pass
