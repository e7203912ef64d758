"""A task of the target: one thread, as the kernel counts them."""

from __future__ import annotations

from splitlock.process import ptrace
from splitlock.process.space import Space

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ctypes


class Task:
    """One thread of the target."""

    __slots__ = ("held", "pid", "slots", "space", "stopped", "tid", "waiting", "warned", "watch_return")

    def __init__(self, tid: int, pid: int, space: Space) -> None:
        self.tid, self.pid, self.space = tid, pid, space
        #: addresses of its entries in seen tables
        self.slots: list[int] = []
        self.warned = False
        #: where it has faulted, if a handler may return from there into the middle of a run, else 0: it stops at system
        #: calls until it has
        self.watch_return = 0
        #: asked, and waits for its turn
        self.waiting = False
        #: (signal, its siginfo) that had to wait for a fault; stand-ins for them are on their way
        self.held: list[tuple[int, ctypes.Array[ctypes.c_char]]] = []
        #: group stops that came while we were at work on it
        self.stopped: list[int] = []
        space.tasks.add(tid)
        space.live.add(tid)

    def resume(self, number: int) -> None:
        """Let it run, with a signal or 0."""
        ptrace.request(ptrace.SYSCALL if self.watch_return else ptrace.CONT, self.tid, 0, number)
