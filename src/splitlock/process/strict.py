"""Seccomp's strict mode, which the kernel refuses to a program that has a filter, as all have that we trace (prctl(2)).

A filter of the same meaning takes its place: whoever makes another call than these four stops, and is killed by us.
"""

from __future__ import annotations

import signal
import struct

from splitlock.linux.proc import Memory, status
from splitlock.process import inject, ptrace
from splitlock.process.filter import PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, PRCTL, SECCOMP

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ctypes

    from splitlock.process.task import Task

    Registers = ctypes.Array[ctypes.c_uint64]

MARK = 0x5EC7  # what the filter has a stop say
_ALLOWED = (0, 1, 15, 60)  # read, write, rt_sigreturn, exit: kernel/seccomp.c, mode1_syscalls
_STRICT, _SET_FILTER = 1, 1  # of prctl(2), of seccomp(2)
_CODE = (
    (0x20, 0, 0, 4), (0x15, 0, 5, 0xC000_003E), (0x20, 0, 0, 0),  # x86-64? the call's number
    *((0x15, 4 - i, 0, number) for i, number in enumerate(_ALLOWED)),
    (0x06, 0, 0, 0x7FF0_0000 | MARK), (0x06, 0, 0, 0x7FFF_0000),  # SECCOMP_RET_TRACE, or SECCOMP_RET_ALLOW
)  # fmt: skip
_BELOW = 256  # bytes below the stack pointer: past the red zone, and the filter
_EVERYTHING = ptrace.U64
_SYSCALL = 2  # bytes of that instruction


def is_asked(tid: int, registers: Registers) -> bool:
    """Whether a call is for strict mode, and nothing but our own filter would have the kernel refuse it."""
    number, first, second, third = (registers[i] for i in (ptrace.ORIG_RAX, ptrace.RDI, ptrace.RSI, ptrace.RDX))
    by_prctl = number == PRCTL and (first, second) == (PR_SET_SECCOMP, _STRICT)
    if not by_prctl and (number, first, second, third) != (SECCOMP, 0, 0, 0):
        return False
    return status(tid).get("Seccomp_filters") == "1"


def put(task: Task, asked: Registers) -> bool:
    """Have a task that stands before its call for strict mode put up the filter; whether it is there.

    Then it stands behind its call, which has succeeded; else where it was, with `asked`. Raises TaskGone, or OSError.
    """
    tid, mask = task.tid, ptrace.get_sigmask(task.tid)
    at = asked[ptrace.RSP] - _BELOW & ~15
    code = b"".join(struct.pack("<HBBI", *instruction) for instruction in _CODE)
    program = struct.pack("<HxxxxxxQ", len(_CODE), at + 16) + code
    with Memory(tid, write=True) as memory:
        before = memory.read(at, len(program))
        if len(before) != len(program):
            return False
        memory.write(at, program)
        ptrace.set_sigmask(tid, _EVERYTHING)
        registers = ptrace.Registers.from_buffer_copy(asked)
        _set(
            registers, PR_SET_NO_NEW_PRIVS, 1, 0
        )  # a filter takes it, without CAP_SYS_ADMIN; strict mode executes nothing
        registers[ptrace.ORIG_RAX] = PRCTL
        _to_end(task, registers)
        registers[ptrace.RIP] -= _SYSCALL
        _set(registers, _SET_FILTER, 0, at)
        registers[ptrace.RAX], registers[ptrace.ORIG_RAX] = SECCOMP, ptrace.U64
        ptrace.set_registers(tid, registers)
        ptrace.request(ptrace.CONT, tid)
        inject.wait(tid, task.stopped)  # our own filter stops at it
        ptrace.get_registers(tid, registers)
        _to_end(task, registers)
        memory.write(at, before)
        done = registers[ptrace.RAX] == 0
        after = ptrace.Registers.from_buffer_copy(asked)
        after[ptrace.RAX], after[ptrace.ORIG_RAX] = 0 if done else ptrace.U64 - 21, ptrace.U64  # -EINVAL
        ptrace.set_registers(tid, after)
        ptrace.set_sigmask(tid, mask)
    return done


def punish(task: Task, is_last: bool, registers: Registers) -> None:
    """A task has made another call: it ends, and nothing else of its process does. `is_last`: it is the only one."""
    if is_last:
        ptrace.tgkill(task.pid, task.tid, signal.SIGKILL)
        return
    registers[ptrace.ORIG_RAX], registers[ptrace.RDI] = _ALLOWED[-1], signal.SIGKILL
    ptrace.set_registers(task.tid, registers)


def _set(registers: Registers, first: int, second: int, third: int) -> None:
    registers[ptrace.RDI], registers[ptrace.RSI], registers[ptrace.RDX] = first, second, third
    registers[ptrace.R10] = registers[ptrace.R8] = 0


def _to_end(task: Task, registers: Registers) -> None:
    """From a call's entry, which `registers` are for, to its end, for which they are then."""
    ptrace.set_registers(task.tid, registers)
    ptrace.request(ptrace.SYSCALL, task.tid)
    inject.wait(task.tid, task.stopped, ptrace.SYSCALL)
    ptrace.get_registers(task.tid, registers)
