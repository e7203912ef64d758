"""A tracer for a program that the agent cannot be brought into (static, of another C library), and for all it starts.

The agent that is about to execute it asks for one, and waits; the supervisor starts it as a process of its own. It
seizes the thread, follows it from the execution on, and in the end leaves what it has found in a file.
"""

from __future__ import annotations

import marshal
import os
import signal
from typing import NamedTuple

from splitlock.linux import proc
from splitlock.process.agent import memory as shared
from splitlock.process.hits import Sample, Site
from splitlock.process.launch import WAITED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.process.agent.memory import Memory
    from splitlock.process.policy import Policy
    from splitlock.process.tracer import Tracer

    Key = tuple[int, ...]

_POLL = 0.005  # seconds between looks at whether the thread has executed the program
_PATIENCE = 10.0  # seconds that an agent may take to let us
_FUTEX = "202"  # the system call, as /proc/TID/syscall has it


class Found(NamedTuple):
    """What a tracer has found: as `Tracer` and its `watch` have it."""

    sites: list[Site]
    unmonitored: list[tuple[str, bool, str, int | None, int | None]]
    images: dict[Key, int]
    sizes: dict[Key, int]
    names: dict[str, int]
    files: dict[str, Key]
    processes: int


def trace(memory: Memory, number: int, policy: Policy, quiet: bool, output: int) -> None:
    """Be the tracer that is asked for at a door, until all that it follows have ended. Writes to a file `output`."""
    from splitlock.process import ptrace
    from splitlock.process.tracer import Tracer

    signal.pthread_sigmask(signal.SIG_BLOCK, WAITED)
    os.setsid()  # what a terminal sends is for the program
    memory.keep_from_children()
    door = memory.door(number)
    memory.set_door(number, shared.THERE)
    if not _wait_until_allowed(memory, number, door.tid):
        memory.set_door(number, shared.SHUT)
        return
    try:
        may = _wait_until_at_door(memory, number, door.tid)
        if may:
            ptrace.request(ptrace.SEIZE, door.tid, 0, ptrace.UNTIL_EXEC)
            # Its number is nobody else's from now on. With our end we let go of it, should it be another's by now.
            may = _wait_until_at_door(memory, number, door.tid)
    except ProcessLookupError:  # killed meanwhile
        memory.set_door(number, shared.SHUT)
        return
    except OSError:
        may = False
    if not may:
        memory.set_door(number, shared.UNABLE)
        return
    memory.set_door(number, shared.TRACED)
    pid = _wait_for_execution(memory, number, door.tid)
    memory.set_door(number, shared.SHUT)
    if not pid:
        return
    tracer = Tracer(policy, quiet=quiet)
    try:
        ptrace.request(ptrace.SETOPTIONS, pid, 0, ptrace.OPTIONS)
        tracer.follow(pid)
    finally:
        with os.fdopen(output, "wb") as file:
            file.write(_packed(tracer))


def _wait_until_allowed(memory: Memory, number: int, tid: int) -> bool:
    waited = 0.0
    while memory.door(number).state == shared.THERE and waited < _PATIENCE and os.path.exists(f"/proc/{tid}"):
        signal.sigtimedwait(WAITED, _POLL)
        waited += _POLL
    return memory.door(number).state == shared.ALLOWED


def _wait_until_at_door(memory: Memory, number: int, tid: int) -> bool:
    """Whether it is this thread that asks: all processes of the run may write to its memory, also those that have given
    up our rights, and put another's number there. So the kernel is asked whether it waits at the door. An agent that
    does looks up now and then.
    """
    waited = 0.0
    while not (waits := _waits_at_door(memory, number, tid)):
        if waited >= _PATIENCE or memory.door(number).state != shared.ALLOWED:
            break
        signal.sigtimedwait(WAITED, _POLL)
        waited += _POLL
    return waits


def _waits_at_door(memory: Memory, number: int, tid: int) -> bool:
    try:
        with open(f"/proc/{tid}/syscall") as file:
            words = file.read().split()
        if words[0] != _FUTEX:
            return False
        address = int(words[1], 16)
        mapping = next(mapping for mapping in proc.mappings(tid) if mapping.start <= address < mapping.end)
        is_ours = mapping.path.startswith("/SYSV") and mapping.inode == memory.number
        if not is_ours or mapping.offset + address - mapping.start != shared.door_at(number):
            return False
        with proc.Memory(tid) as its:  # another IPC namespace may have a segment of the same number
            return its.read(address + shared.TRACER_AT, 4) == os.getpid().to_bytes(4, "little")
    except (OSError, StopIteration):
        return False


def _wait_for_execution(memory: Memory, number: int, tid: int) -> int:
    """The process that has executed the program; 0 where it has not, and is ours no more."""
    from splitlock.process import ptrace

    asked = False
    while True:
        try:
            got, status = os.waitpid(-1, ptrace.WALL | os.WNOHANG)
        except ChildProcessError:
            return 0
        if not got:
            if memory.door(number).state == shared.FAILED_CALL and not asked:
                ptrace.request(ptrace.INTERRUPT, tid)
                asked = True
            signal.sigtimedwait(WAITED, _POLL)
        elif not os.WIFSTOPPED(status):
            return 0
        elif status >> 16 == ptrace.EVENT_EXEC:
            return got
        else:
            sent = os.WSTOPSIG(status) if status >> 16 == 0 else 0
            ptrace.request(ptrace.DETACH if asked else ptrace.CONT, got, 0, sent)
            if asked:
                return 0


def _packed(tracer: Tracer) -> bytes:
    sites = [
        (
            s.name, s.address, s.size, s.instruction, s.build_id, s.hits, list(s.tasks),
            [(x.time, x.pid, x.tid, x.comm, x.operand_address, x.operand, x.stack) for x in s.samples],
        )
        for s in tracer.sites
    ]  # fmt: skip
    watch = tracer.watch
    maps = watch.images, watch.sizes, watch.names, watch.files
    return marshal.dumps((sites, tracer.unmonitored(), *maps, tracer.processes))


def read(descriptor: int) -> Found | None:
    """What a tracer has left; None where it has left nothing whole."""
    with os.fdopen(descriptor, "rb") as file:
        file.seek(0)
        raw = file.read()
    if not raw:
        return None
    sites, *rest = marshal.loads(raw)
    return Found([_site(*values) for values in sites], *rest)


def _site(  # type: ignore[no-untyped-def]  # what `_packed` wrote
    name, address, size, instruction, build_id, hits, tasks, samples
) -> Site:
    site = Site(name, address, size, instruction, build_id)
    site.hits = hits
    site.tasks = set(tasks)
    for time, pid, tid, comm, operand_address, operand, stack in samples:
        sample = Sample(time, pid, tid, comm, operand_address)
        sample.operand, sample.stack = operand, stack
        site.samples.append(sample)
    return site
