"""An address space of the target: which images are mapped, which of them are watched, what was counted."""

from __future__ import annotations

import os

from splitlock.linux.proc import Memory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.process.plan import Plan

    Key = tuple[int, ...]


class Module:
    """One image mapped into one address space.

    `name`: its path as the program sees it. `bias`: what to add to the file's addresses. `arena`: where its
    trampolines are, 0 without any.
    """

    __slots__ = ("arena", "asked", "bias", "corrections", "counts", "key", "name", "plan")

    def __init__(self, key: Key, name: str, plan: Plan, bias: int) -> None:
        self.key, self.name, self.plan, self.bias = key, name, plan, bias
        self.arena = 0
        #: what the counters said when last looked at
        self.counts: memoryview[int] | None = None
        #: executions that were counted and then did not happen (a fault), by site number
        self.corrections: dict[int, int] = {}
        #: questions asked in its check routine, by site number
        self.asked: dict[int, int] = {}

    def copy(self) -> Module:
        """The same module in a child's copy of the address space, where counters start at zero."""
        other = Module(self.key, self.name, self.plan, self.bias)
        other.arena = self.arena
        return other

    @property
    def data(self) -> int:
        """Address of the counters."""
        return self.arena + self.plan.code_size

    def holds(self, address: int) -> bool:
        """Whether the image, code or data, covers an address."""
        low, high = self.plan.span
        return low <= address - self.bias < high

    def snapshot(self, memory: Memory) -> None:
        """Read the counters in the target's memory. Raises OSError when they are gone."""
        raw = memory.read(self.data, 8 * self.plan.sites)
        if len(raw) != 8 * self.plan.sites:  # a process without memory reads as nothing: keep what was known
            raise OSError(14, os.strerror(14))
        self.counts = memoryview(raw).cast("Q")


class Space:
    """One address space, shared by the tasks in `tasks`."""

    def __init__(self) -> None:
        self.modules: list[Module] = []
        #: modules that are mapped no more, for their counts
        self.gone: list[Module] = []
        self.tasks: set[int] = set()
        #: tasks that have not begun to exit
        self.live: set[int] = set()
        #: the program has a seccomp filter of its own: no system calls of ours any more
        self.filtered = False
        #: a task of it is in seccomp's strict mode (strict.py)
        self.strict = False
        #: executable memory that belongs to no file was seen
        self.anonymous = False
        #: some site has been hit, so there are counters to read
        self.hit = False
        #: the last reading of the counters was not whole
        self.unread = False
        #: an execve was seen coming, and the counters were read
        self.exec_seen = False
        #: 32-bit code runs here
        self.narrow = False
        #: where a static program's text is; empty where a dynamic linker is there (interpreters.py)
        self.static_text: list[tuple[int, int]] = []
        #: it has mapped a file of code itself, and such files are not executed, but translated
        self.loads = self.interprets = False

    def fork(self) -> Space:
        """The child's copy."""
        child = Space()
        child.modules = [m.copy() for m in self.modules]
        child.gone = [m.copy() for m in self.gone]
        child.filtered, child.anonymous, child.narrow = self.filtered, self.anonymous, self.narrow
        child.static_text, child.loads, child.interprets = self.static_text, self.loads, self.interprets
        return child

    def module_at(self, address: int) -> Module | None:
        """The image that covers an address."""
        return next((m for m in self.modules if m.holds(address)), None)

    def arena_at(self, address: int) -> Module | None:
        """The module whose trampolines lie at an address."""
        return next(
            (m for m in self.modules + self.gone if m.arena and 0 <= address - m.arena < m.plan.code_size), None
        )

    def snapshot(self, tid: int) -> None:
        """Read every counter of this space; `tid` is a task in it that still has its memory.

        `unread` says whether any could not be read: what was read of it before stands, as a lower bound.
        """
        self.unread = False
        try:
            memory = Memory(tid)
        except OSError:
            self.unread = True
            return
        with memory:
            for module in self.modules + self.gone:
                try:
                    if module.arena:
                        module.snapshot(memory)
                except OSError:  # unmapped by the program, or cut short
                    self.unread = True
