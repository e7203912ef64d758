"""Writing a plan into a process: the arena is mapped by code that the task itself runs, the rest is written.

That code, the stub, lies for a moment over the beginning of text that has just been mapped, which
no task can be executing yet, and ends with our own system call.
"""

from __future__ import annotations

import os
import signal

from splitlock.linux.proc import Memory, mappings
from splitlock.process import ptrace
from splitlock.process.abi import MAGIC, MAGIC_FD
from splitlock.process.space import Module

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ctypes

    Registers = ctypes.Array[ctypes.c_uint64]

_PROT_READ_EXEC, _PRIVATE_ANONYMOUS = 5, 0x22
_REACH = (1 << 31) - (1 << 26)  # farthest an arena may lie from its image, less the image's size
_STUB = (
    b"\xb8\x09\x00\x00\x00"  # mov eax, 9 (mmap): at exec the kernel overwrites rax once more
    b"\x0f\x05"  # syscall; its arguments are set by us
    b"\x48\x3d\x01\xf0\xff\xff"  # cmp rax, -4095
    b"\x48\x89\xc3"  # mov rbx, rax
    b"\x73\x26"  # jae end
    b"\x4a\x8d\x3c\x20\x4c\x89\xee"  # lea rdi, [rax+r12]; mov rsi, r13: the data area
    b"\xba\x03\x00\x00\x00\xb8\x0a\x00\x00\x00\x0f\x05"  # mprotect(.., PROT_READ|PROT_WRITE)
    b"\x4a\x8d\x3c\x23\x4c\x89\xee"  # lea rdi, [rbx+r12]; mov rsi, r13
    b"\xba\x12\x00\x00\x00\xb8\x1c\x00\x00\x00\x0f\x05"  # madvise(.., MADV_WIPEONFORK)
    b"\xb8" + MAGIC.to_bytes(4, "little") + b"\x0f\x05"  # end: done
)
_EVERYTHING = (1 << 64) - 1
_FILTER_STUB = (
    b"\xb8\x3d\x01\x00\x00\x0f\x05"  # mov eax, 317 (seccomp); syscall: its arguments are set by us, rdx from rbp
    b"\x48\x83\xf8\xf3\x75\x24"  # cmp rax, -EACCES; jne end: without CAP_SYS_ADMIN it takes NO_NEW_PRIVS first
    b"\xb8\x9d\x00\x00\x00\xbf\x26\x00\x00\x00"  # mov eax, 157 (prctl); mov edi, PR_SET_NO_NEW_PRIVS
    b"\xbe\x01\x00\x00\x00\x31\xd2\x0f\x05"  # mov esi, 1; xor edx, edx; syscall
    b"\xb8\x3d\x01\x00\x00\xbf\x01\x00\x00\x00"  # mov eax, 317; mov edi, SECCOMP_SET_MODE_FILTER
    b"\x31\xf6\x48\x89\xea\x0f\x05"  # xor esi, esi; mov rdx, rbp; syscall
    b"\x48\x89\xc3\xb8" + MAGIC.to_bytes(4, "little") + b"\x0f\x05"  # end: mov rbx, rax; done
    b"\xcc"  # where no filter stops us
)


class TaskGone(Exception):
    """A task ended, or was killed, while we worked on it. `status` is what waitpid said of it."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Refused(Exception):
    """The plan could not be put in place; `str()` is the reason for the report."""


def wait(tid: int, stopped: list[int], request: int = ptrace.CONT) -> int:
    """Wait for one task's next stop and give its status.

    Group stops on the way are put off: they go to `stopped`, SIGCONT takes them away again, and the task
    goes on by `request`.
    """
    while True:
        status = os.waitpid(tid, ptrace.WALL)[1]
        if not os.WIFSTOPPED(status):
            raise TaskGone(status)
        if status >> 16 == ptrace.EVENT_EXIT:
            raise TaskGone(status)
        if status >> 16 != ptrace.EVENT_STOP:
            return status
        if status >> 8 & 0xFF == signal.SIGTRAP:
            stopped.clear()
        else:
            stopped.append(status >> 8 & 0xFF)
        ptrace.request(request, tid)


def _execute(
    tid: int, at: int, code: bytes, values: dict[int, int], registers: Registers, stopped: list[int]
) -> tuple[int, Registers]:
    """Have a stopped task execute code of ours at an address, with some registers of ours, up to its next stop.

    Gives that stop's status, and the registers then. The task has its bytes, mask and `registers` again.

    Raises TaskGone, or OSError.
    """
    with Memory(tid, write=True) as memory:
        original = memory.read(at, len(code))
        memory.write(at, code)
        mask = ptrace.get_sigmask(tid)
        ptrace.set_sigmask(tid, _EVERYTHING)
        scratch = ptrace.Registers.from_buffer_copy(registers)
        scratch[ptrace.RIP], scratch[ptrace.ORIG_RAX] = at, ptrace.U64
        for index, value in values.items():
            scratch[index] = value & ptrace.U64
        ptrace.set_registers(tid, scratch)
        ptrace.request(ptrace.CONT, tid)
        status = wait(tid, stopped)
        ptrace.get_registers(tid, scratch)
        memory.write(at, original)
        restored = ptrace.Registers.from_buffer_copy(registers)
        restored[ptrace.ORIG_RAX] = ptrace.U64
        ptrace.set_registers(tid, restored)
        ptrace.set_sigmask(tid, mask)
    return status, scratch


def place_arena(tid: int, module: Module, text: int, registers: Registers, stopped: list[int]) -> None:
    """Have a stopped task map the module's arena; `text` is the start of its newly mapped text.

    `registers` are the task's, and stay so. Raises Refused, TaskGone, or OSError.
    """
    plan = module.plan
    values = {
        ptrace.RDI: module.bias + plan.arena, ptrace.RSI: plan.code_size + plan.data_size,
        ptrace.RDX: _PROT_READ_EXEC, ptrace.R10: _PRIVATE_ANONYMOUS,
        ptrace.R8: MAGIC_FD << 32 | 0xFFFF_FFFF, ptrace.R9: 0, ptrace.R12: plan.code_size, ptrace.R13: plan.data_size,
    }  # fmt: skip
    status, then = _execute(tid, text, _STUB, values, registers, stopped)
    if status >> 16 != ptrace.EVENT_SECCOMP:
        raise Refused(f"unexpected stop {status:#x} while preparing the image")
    got = then[ptrace.RBX]
    if got > ptrace.U64 - 4096:
        raise Refused(f"no memory for trampolines: {os.strerror(ptrace.U64 + 1 - got)}")
    low, high = plan.span
    if not -_REACH < got - (module.bias + low) < _REACH - (high - low):
        raise Refused("no room for trampolines within 2 GB of the image")
    module.arena = got
    code, _ = plan.moved(got - module.bias - plan.arena)
    with Memory(tid, write=True) as memory:
        memory.write(got, code)


def put_filter(tid: int, registers: Registers, stopped: list[int]) -> None:
    """Have a task that has just executed a program put our filter on itself; `registers` are its own, and stay so.

    Raises Refused, TaskGone, or OSError.
    """
    from splitlock.process.filter import build

    program = build()
    at = registers[ptrace.RIP]
    code = _FILTER_STUB + bytes(-len(_FILTER_STUB) % 8)
    fprog = at + len(code)  # struct sock_fprog: the number of instructions, and where they are
    code += (len(program) // 8).to_bytes(8, "little") + (fprog + 16).to_bytes(8, "little") + program
    holder = next((m for m in mappings(tid) if m.start <= at < m.end), None)
    if holder is None or "x" not in holder.permissions:  # a library's, executed as a program: it faults at once
        raise Refused("where it begins there is no code")
    if at + len(code) > holder.end:
        raise Refused("no room for a filter at the program's entry")
    values = {
        ptrace.RDI: 1, ptrace.RSI: 0, ptrace.RDX: fprog, ptrace.RBP: fprog, ptrace.R10: 0, ptrace.R8: 0,
    }  # fmt: skip
    status, then = _execute(tid, at, code, values, registers, stopped)
    if status >> 16 != ptrace.EVENT_SECCOMP:
        error = ptrace.U64 + 1 - then[ptrace.RBX]
        if error < 4096:
            raise Refused(f"a filter is refused: {os.strerror(error)}")
        number = status >> 8 & 0x7F
        if number == signal.SIGTRAP:
            raise Refused("another seccomp filter answers in our filter's place")
        raise Refused(f"its first instructions are not executed: {signal.strsignal(number)}")


def write_text(tid: int, module: Module, start: int, end: int) -> None:
    """Patch the part of a module's text that is mapped at `start`..`end`. Raises OSError."""
    _, chunks = module.plan.moved(module.arena - module.bias - module.plan.arena)
    with Memory(tid, write=True) as memory:
        for address, text, _ in chunks:
            if start <= address + module.bias < end:
                memory.write(address + module.bias, text)


def restore_text(tid: int, module: Module, original: list[bytes]) -> None:
    """Put the image's own bytes back over every patch. Raises OSError."""
    with Memory(tid, write=True) as memory:
        for (address, _, _), text in zip(module.plan.chunks, original, strict=True):
            memory.write(address + module.bias, text)


def set_flag(tid: int, module: Module) -> None:
    """Make a module's slow paths ask by breakpoint instead of by system call. Raises OSError."""
    with Memory(tid, write=True) as memory:
        memory.write(module.arena + module.plan.flag, b"\1")
