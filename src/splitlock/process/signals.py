"""Signals that reach a task while it runs in a trampoline: its handlers must see the program, not us.

A signal from outside waits until the task has left the trampoline, a few single steps. A fault of a
moved instruction is delivered at once, with rip as the program knows it.
"""

from __future__ import annotations

import os
import signal

from splitlock.linux.proc import Memory, status
from splitlock.process import inject, ptrace
from splitlock.process.space import Module

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ctypes

    from splitlock.process.hits import Hits
    from splitlock.process.task import Task

_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP}
_AT_RIP = {signal.SIGILL, signal.SIGFPE}  # whose si_addr is the instruction's
_SI_KERNEL = 0x80
_BUS_ADRALN = 1
_FAULT_MASK = sum(1 << number - 1 for number in _FAULTS)
_SI_TKILL = -6
_STEPS = {2, 3}  # TRAP_TRACE, TRAP_BRANCH
_AC = 1 << 18
_MOST_STEPS = 400
_LONGEST = 15  # bytes of an instruction


class Signals:
    """Delivers signals to tasks. Raises TaskGone, or OSError, when the task ends meanwhile."""

    def __init__(self, hits: Hits) -> None:
        self._hits = hits
        self._registers = ptrace.Registers()

    def deliver(self, task: Task, number: int) -> tuple[Module, ctypes.Array[ctypes.c_uint64]] | None:
        """Handle a signal-delivery stop and resume the task.

        A breakpoint by which a check routine asks is no signal: then its module and the task's
        registers are returned, and the task stays stopped.
        """
        space, tid = task.space, task.tid
        if task.held:
            _put_back(task, number)
        if not space.modules or space.narrow:
            task.resume(number)
            return None
        registers = self._registers
        ptrace.get_registers(tid, registers)
        rip = registers[ptrace.RIP]
        module = space.arena_at(rip)
        if number == signal.SIGTRAP and ptrace.si_code(ptrace.get_siginfo(tid)) == _SI_KERNEL:
            if module and rip == module.arena + module.plan.trapped:
                return module, registers
            if self._redirect(task, registers, rip - 1):
                return None
        if module is None:
            task.resume(number)
        elif number == signal.SIGTRAP and ptrace.si_code(ptrace.get_siginfo(tid)) > 0:
            self._trap(task, module, registers)
        elif number in _FAULTS and ptrace.si_code(ptrace.get_siginfo(tid)) > 0:
            self._fault(task, module, number, registers)
        else:
            self._step_out(task, number)
        return None

    def returned(self, task: Task) -> None:
        """A system call stop of a task whose handler may return into a run: send it to the trampoline."""
        ptrace.get_registers(task.tid, self._registers)
        rip = self._registers[ptrace.RIP]
        if not self._redirect(task, self._registers, rip, returning=True):
            if rip == task.watch_return:  # where the run begins
                task.watch_return = 0
            task.resume(0)

    def _redirect(
        self, task: Task, registers: ctypes.Array[ctypes.c_uint64], address: int, returning: bool = False
    ) -> bool:
        """Resume at the trampoline for an address that was overwritten there; False when it was not."""
        module = task.space.module_at(address)
        if module is None or not module.arena:
            return False
        at = module.plan.traps.get(address - module.bias) if not returning else None
        if at is None:
            at = self._hits.cache.sites(module.key, module.name).resume.get(address - module.bias)
        if at is None:
            return False
        registers[ptrace.RIP] = module.arena + at
        registers[ptrace.ORIG_RAX] = ptrace.U64
        ptrace.set_registers(task.tid, registers)
        task.watch_return = 0
        task.resume(0)
        return True

    def _fault(self, task: Task, module: Module, number: int, registers: ctypes.Array[ctypes.c_uint64]) -> None:
        cold = self._hits.cache.sites(module.key, module.name)
        at = registers[ptrace.RIP] - module.arena
        address = cold.copies.get(at)
        if address is not None:
            info, fatal = ptrace.get_siginfo(task.tid), self._hits.policy.mode == "fatal"
            if not (fatal and number == signal.SIGBUS and ptrace.si_code(info) == _BUS_ADRALN):  # else it was stopped
                self._uncount(task.tid, module, address, registers)
            if fatal:
                registers[ptrace.EFLAGS] &= ~_AC
            if number in _AT_RIP:
                told = (address + module.bias).to_bytes(8, "little")
                ptrace.set_siginfo(task.tid, ptrace.Siginfo.from_buffer_copy(info.raw[:16] + told + info.raw[24:]))
            registers[ptrace.RIP] = address + module.bias
            ptrace.set_registers(task.tid, registers)
            if any(address + n in cold.resume for n in range(_LONGEST + 1)):  # a handler may step over it
                task.watch_return = registers[ptrace.RIP]
        task.resume(number)

    def _trap(self, task: Task, module: Module, registers: ctypes.Array[ctypes.c_uint64]) -> None:
        """A program that steps itself (EFLAGS.TF): it sees the steps that end where it has an instruction itself."""
        cold = self._hits.cache.sites(module.key, module.name)
        at = registers[ptrace.RIP] - module.arena
        address = next((address for address, offset in cold.resume.items() if offset == at), None)
        if address is not None:
            registers[ptrace.RIP] = address + module.bias
            ptrace.set_registers(task.tid, registers)
            task.watch_return = True
        elif ptrace.si_code(ptrace.get_siginfo(task.tid)) in _STEPS:
            task.resume(0)
            return
        task.resume(signal.SIGTRAP)

    def _uncount(self, tid: int, module: Module, address: int, registers: ctypes.Array[ctypes.c_uint64]) -> None:
        """A site that was counted has not executed: it faulted, and will be counted again if retried."""
        from splitlock.x86.lines import crosses
        from splitlock.x86.locked import operand_address

        cold = self._hits.cache.sites(module.key, module.name)
        number = next((i for i, s in enumerate(cold.sites) if s[0] == address), None)
        if number is None:
            return
        with Memory(tid) as memory:
            code = memory.read(registers[ptrace.RIP], 15)
        operand = operand_address(code, registers[ptrace.RIP], *ptrace.for_operands(registers))
        if operand is not None and crosses(operand, cold.sites[number][2]):
            module.corrections[number] = module.corrections.get(number, 0) - 1

    def _step_out(self, task: Task, number: int) -> None:
        tid, registers, stopped = task.tid, self._registers, task.stopped
        info = ptrace.get_siginfo(tid)
        if ignores(tid, signal.SIGTRAP):  # a step would reset that; show the handler our address instead
            task.resume(number)
            return
        mask = ptrace.get_sigmask(tid)
        # Faults stay open: one that comes while it is blocked costs the program its handler.
        ptrace.set_sigmask(tid, ptrace.U64 & ~_FAULT_MASK)
        for _ in range(_MOST_STEPS):
            ptrace.request(ptrace.SINGLESTEP, tid)
            status = inject.wait(tid, stopped, ptrace.SINGLESTEP)
            ptrace.get_registers(tid, registers)
            module = task.space.arena_at(registers[ptrace.RIP])
            if status >> 8 == signal.SIGTRAP | ptrace.EVENT_SECCOMP << 8 and module:
                self._answer(task, module, registers)
                continue
            if status >> 8 != signal.SIGTRAP:
                # The step itself faulted: that comes first. A stand-in keeps the place of the held signal.
                ptrace.set_sigmask(tid, mask)
                task.held.append((number, info))
                ptrace.tgkill(task.pid, tid, number)
                asks = self.deliver(task, status >> 8 & 0x7F)
                assert asks is None
                return
            if module is None:
                break
            trapped = registers[ptrace.RIP] == module.arena + module.plan.trapped
            if trapped and ptrace.si_code(ptrace.get_siginfo(tid)) == _SI_KERNEL:
                self._answer(task, module, registers)
        ptrace.set_sigmask(tid, mask)
        ptrace.set_siginfo(tid, info)
        task.resume(number)

    def _answer(self, task: Task, module: Module, registers: ctypes.Array[ctypes.c_uint64]) -> None:
        """A task asks while it is stepped out; it cannot wait, so that it may go on at once."""
        self._hits.ask(task, module, registers, hurried=True)


def _put_back(task: Task, number: int) -> None:
    """Give a stand-in that we sent the siginfo of the signal it stands for."""
    now = ptrace.get_siginfo(task.tid)
    ours = ptrace.si_code(now) == _SI_TKILL and int.from_bytes(now.raw[16:20], "little") == os.getpid()
    held = next((h for h in task.held if ours and h[0] == number), None)
    if held:
        task.held.remove(held)
        ptrace.set_siginfo(task.tid, held[1])


def ignores(tid: int, number: int) -> bool:
    """Whether a task's process ignores a signal."""
    return bool(int(status(tid).get("SigIgn", "0"), 16) & 1 << number - 1)
