"""Split locks as they happen: a task asks before its first one at a site; here it is recorded and answered."""

from __future__ import annotations

import os
import time

from splitlock.linux.proc import Mapping, Memory, comm, mappings
from splitlock.process import ptrace
from splitlock.process.abi import SAVED, SAVED_FLAGS, SAVED_SIZE
from splitlock.process.policy import DONE_ASKING, FATAL, GO_ON, WAIT, Policy
from splitlock.process.space import Module, Space

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ctypes
    from collections.abc import Callable

    from splitlock.image.symbols import Unwinder
    from splitlock.process.cache import Cache
    from splitlock.process.space import Key
    from splitlock.process.task import Task

    Registers = ctypes.Array[ctypes.c_uint64]

SAMPLES = 8  # of one site that are kept whole, with their stacks
_STATUS = 0x8D5  # the six status flags in EFLAGS
_AC = 1 << 18
_NAMES = {"r10": ptrace.R10, "r11": ptrace.R11, "rsi": ptrace.RSI, "rdi": ptrace.RDI, "rdx": ptrace.RDX,
          "rcx": ptrace.RCX, "rax": ptrace.RAX}  # fmt: skip


class Sample:
    """One split lock: when, who, which operand, and the stack as (image or None, address) from the inside out.

    `operand` is the image that holds it with the address in its file, or a description and 0.
    """

    __slots__ = ("comm", "operand", "operand_address", "pid", "stack", "tid", "time")

    def __init__(self, time_ns: int, pid: int, tid: int, name: str, address: int) -> None:
        self.time, self.pid, self.tid, self.comm, self.operand_address = time_ns, pid, tid, name, address
        self.operand: tuple[str, int] = ("", 0)
        self.stack: list[tuple[str, int]] = []


class Site:
    """What is known of one site that was hit. `name`: its image's path."""

    __slots__ = ("address", "build_id", "hits", "instruction", "name", "samples", "size", "tasks")

    def __init__(self, name: str, address: int, size: int, instruction: str, build_id: str | None) -> None:
        self.name, self.address, self.size = name, address, size
        self.instruction, self.build_id = instruction, build_id
        self.hits = 0
        self.samples: list[Sample] = []
        self.tasks: set[tuple[int, int]] = set()


class Hits:
    """All split locks of a run. `say` prints a line at the moment."""

    def __init__(self, cache: Cache, policy: Policy, say: Callable[[str], None]) -> None:
        self.cache, self.policy, self._say = cache, policy, say
        self.sites: dict[tuple[Key, int], Site] = {}
        self._unwinders: dict[int, tuple[int, Unwinder]] = {}

    def site(self, module: Module, number: int) -> Site:
        """The record of one site."""
        site = self.sites.get((module.key, number))
        if site is None:
            cold = self.cache.sites(module.key, module.name)
            address, _, size, text = cold.sites[number]
            site = self.sites[module.key, number] = Site(module.name, address, size, text, cold.build_id)
        return site

    def ask(
        self, task: Task, module: Module, registers: Registers, again: bool = False, hurried: bool = False
    ) -> tuple[int, float]:
        """A task asks whether it may. Answers it through its registers, or gives (WAIT, when to call again).

        `registers` are those in the check routine. A task in a hurry never waits. Raises OSError when the
        task is gone.
        """
        number, operand = registers[ptrace.RSI], registers[ptrace.RDI]
        if not again:
            task.space.hit = True
            module.asked[number] = module.asked.get(number, 0) + 1
            self._record(task, module, number, operand, registers)
        if hurried and self.policy.makes_wait:
            verdict, when = GO_ON, 0.0
        else:
            verdict, when = self.policy.decide(task.tid, time.monotonic())
        if verdict == WAIT:
            return verdict, when
        if verdict == FATAL:
            self._fault(task, module, number, registers)
            return verdict, when
        registers[ptrace.RAX] = 0
        if verdict == DONE_ASKING:
            registers[ptrace.RAX] = 1
            task.slots.append(registers[ptrace.R10])
        registers[ptrace.ORIG_RAX] = ptrace.U64
        ptrace.set_registers(task.tid, registers)
        return verdict, when

    def _record(self, task: Task, module: Module, number: int, operand: int, registers: Registers) -> None:
        site = self.site(module, number)
        site.tasks.add((task.pid, task.tid))
        if task.warned and len(site.samples) >= SAMPLES:
            return
        before = program_registers(task.tid, registers)
        before[ptrace.RIP] = site.address + module.bias
        name = comm(task.tid)
        if not task.warned:
            task.warned = True
            after = self.cache.sites(module.key, module.name).sites[number][1] + module.bias
            low = module.plan.span[0] + module.bias
            where = f" in {os.path.basename(module.name)}[{low:x}+{module.plan.span[1] - module.plan.span[0]:x}]"
            self._say(self.policy.line(name, task.tid, before[ptrace.RIP], after, before[ptrace.RSP], where))
        if len(site.samples) < SAMPLES:
            sample = Sample(time.time_ns(), task.pid, task.tid, name, operand)
            sample.operand = _describe(task, operand, before[ptrace.RSP])
            sample.stack = self._stack(task, before, registers)
            site.samples.append(sample)

    def _stack(self, task: Task, before: Registers, now: Registers) -> list[tuple[str, int]]:
        from splitlock.image.symbols import Unwinder

        space = task.space
        version, unwinder = self._unwinders.get(id(space), (0, None))
        if unwinder is None or version != len(space.modules):
            if unwinder is None:
                unwinder = Unwinder(task.pid)
            else:
                unwinder.refresh()
            self._unwinders[id(space)] = len(space.modules), unwinder
        before[ptrace.ORIG_RAX] = now[ptrace.ORIG_RAX]
        ptrace.set_registers(task.tid, before)
        try:
            frames = unwinder.stack(task.tid)
            if not frames and task.tid != task.pid:  # the main thread has ended, and its view of memory with it
                with Unwinder(task.tid) as another:
                    frames = another.stack(task.tid)
        finally:
            ptrace.set_registers(task.tid, now)
        if not _descriptors_left():  # it keeps every file open that it has read
            self.forget(space)
        found = []
        for address in frames or [before[ptrace.RIP]]:
            module = space.module_at(address)
            found.append((module.name, address - module.bias) if module else ("", address))
        return found

    def _fault(self, task: Task, module: Module, number: int, registers: Registers) -> None:
        """Have the processor itself refuse the lock: alignment checking on, back to the instruction.

        So the kernel delivers its own SIGBUS, BUS_ADRALN, with its own rules for blocked and ignored ones.
        """
        site = self.site(module, number)
        cold = self.cache.sites(module.key, module.name)
        before = program_registers(task.tid, registers)
        before[ptrace.RIP] = module.arena + next(at for at, a in cold.copies.items() if a == site.address)
        before[ptrace.EFLAGS] |= _AC
        before[ptrace.ORIG_RAX] = ptrace.U64
        ptrace.set_registers(task.tid, before)

    def collect(self, space: Space, whole: bool) -> None:
        """Add up what a space's counters said when it ended.

        Where they could not all be read (not `whole`), each question that a site asked was one hit at least.
        """
        for module in space.modules + space.gone:
            counts = dict(enumerate(module.counts or ()))
            for number in counts | module.asked:
                count = counts.get(number, 0) + module.corrections.get(number, 0)
                if not whole:
                    count = max(count, module.asked.get(number, 0))
                if count > 0:
                    self.site(module, number).hits += count

    def forget(self, space: Space) -> None:
        """A space has ended."""
        _, unwinder = self._unwinders.pop(id(space), (0, None))
        if unwinder is not None:
            unwinder.close()


def program_registers(tid: int, registers: Registers) -> Registers:
    """What the registers of a task in the check routine were before the trampoline touched them; rip is not set.

    Raises OSError when the task is gone.
    """
    with Memory(tid) as memory:
        stack = memory.read(registers[ptrace.RSP], SAVED_SIZE - 128)
    before = ptrace.Registers.from_buffer_copy(registers)
    for name, at in SAVED.items():
        before[_NAMES[name]] = int.from_bytes(stack[at : at + 8], "little")
    flags = stack[SAVED_FLAGS + 1] & 0xD5 | stack[SAVED_FLAGS] << 11
    before[ptrace.EFLAGS] = registers[ptrace.EFLAGS] & ~_STATUS | flags
    before[ptrace.RSP] = registers[ptrace.RSP] + SAVED_SIZE
    return before


def _descriptors_left() -> bool:
    """Whether a file can be opened."""
    try:
        os.close(os.dup(2))
    except OSError:
        return False
    return True


def _describe(task: Task, address: int, stack: int) -> tuple[str, int]:
    """Which image and address in its file, or which other memory, an operand is."""
    module = task.space.module_at(address)
    if module is not None:
        return module.name, address - module.bias
    for m in mappings(task.tid):
        if m.start <= address < m.end:
            return memory_name(m, address, stack), 0
    return "unmapped", 0


def memory_name(m: Mapping, address: int, stack: int) -> str:
    """What a person calls the place of an address in a mapping that is no image's; `stack`: the thread's rsp."""
    if m.path in ("[stack]", "[heap]"):
        return m.path[1:-1]
    if m.path == "/dev/zero (deleted)":  # what the kernel calls MAP_SHARED|MAP_ANONYMOUS
        return f"shared anonymous memory + {address - m.start:#x}"
    if m.start <= stack < m.end:
        return "stack of the thread"
    return f"{m.path or 'anonymous memory'} + {address - m.start:#x}"
