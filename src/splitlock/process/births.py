"""New tasks of the target: what they share with whoever made them, and whose memory they have a copy of."""

from __future__ import annotations

from splitlock.linux.proc import Memory, mappings, origin, status
from splitlock.process import filter as calls
from splitlock.process import ptrace
from splitlock.process.space import Space

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ctypes
    from collections.abc import Iterable

    from splitlock.process.task import Task

CLONE_VM, CLONE_THREAD = 0x100, 0x10000


def clone_flags(task: Task, child: int, event: int, registers: ctypes.Array[ctypes.c_uint64]) -> int:
    """The flags of the call by which a task has made a child; `registers` are those at the event."""
    narrow = task.space.narrow
    number = registers[ptrace.ORIG_RAX]
    if narrow:
        number = {120: calls.CLONE, 190: calls.VFORK, 435: calls.CLONE3}.get(number, number)
    if number == calls.VFORK:
        return CLONE_VM
    if number == calls.CLONE:
        return registers[ptrace.RBX if narrow else ptrace.RDI]
    if number == calls.CLONE3:
        try:
            memory = Memory(task.tid)
        except PermissionError:  # a process that may not be dumped; its kinds of children can still be told
            if origin(child) == task.pid and status(child)["Tgid"] == str(task.pid):
                return CLONE_VM | CLONE_THREAD
            return CLONE_VM if event == ptrace.EVENT_VFORK else 0
        with memory:
            return int.from_bytes(memory.read(registers[ptrace.RBX if narrow else ptrace.RDI], 8), "little")
    return 0


def space_of(tid: int, spaces: Iterable[Space]) -> Space:
    """The address space that a new process is a copy of, when its parent is gone: the one with the same arenas."""
    starts = {m.start for m in mappings(tid)}
    for space in spaces:
        arenas = {m.arena for m in space.modules if m.arena}
        if arenas and arenas <= starts:
            return space
    return Space()
