"""ptrace(2), as far as the tracer uses it, through the C library.

Registers are a plain array of 27 unsigned 64-bit words in the order of `struct user_regs_struct`
(arch/x86/include/uapi/asm/ptrace.h); the constants below index it.
"""

from __future__ import annotations

import ctypes
import os

R15, R14, R13, R12, RBP, RBX, R11, R10, R9, R8, RAX, RCX, RDX, RSI, RDI, ORIG_RAX, RIP, CS, EFLAGS, RSP = range(20)
FS_BASE, GS_BASE = 21, 22
_ENCODING_ORDER = (RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15)
Registers = ctypes.c_uint64 * 27
U64 = (1 << 64) - 1

CONT, SINGLESTEP, GETREGS, SETREGS, DETACH, SYSCALL = 7, 9, 12, 13, 17, 24
SETOPTIONS, INTERRUPT = 0x4200, 0x4207
GETEVENTMSG, GETSIGINFO, SETSIGINFO = 0x4201, 0x4202, 0x4203
SEIZE, LISTEN, GETSIGMASK, SETSIGMASK = 0x4206, 0x4208, 0x420A, 0x420B

EVENT_FORK, EVENT_VFORK, EVENT_CLONE, EVENT_EXEC, EVENT_EXIT, EVENT_SECCOMP = 1, 2, 3, 4, 6, 7
EVENT_STOP = 128
# TRACESYSGOOD, FORK, VFORK, CLONE, EXEC, EXIT, SECCOMP; EXITKILL: our death is the target's
UNTIL_EXEC = 1 << 4  # nothing but EXEC
OPTIONS = 1 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 20

WALL = 0x4000_0000

_libc = ctypes.CDLL(None, use_errno=True)
_ptrace = _libc.ptrace
_ptrace.restype = ctypes.c_long
_ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)

_message = ctypes.c_ulong()
_mask = ctypes.c_uint64()
Siginfo = ctypes.c_char * 128


def request(what: int, tid: int, addr: int = 0, data: int = 0) -> None:
    """One ptrace request. Raises ProcessLookupError when the task is gone or not stopped, else OSError."""
    if _ptrace(what, tid, addr, data) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def get_registers(tid: int, registers: ctypes.Array[ctypes.c_uint64]) -> None:
    """Read a stopped task's registers into the array."""
    if _ptrace(GETREGS, tid, 0, ctypes.addressof(registers)) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def set_registers(tid: int, registers: ctypes.Array[ctypes.c_uint64]) -> None:
    """Write a stopped task's registers."""
    request(SETREGS, tid, 0, ctypes.addressof(registers))


def event_message(tid: int) -> int:
    """The event's number: the new task of a fork, the former id at exec, the status at exit."""
    request(GETEVENTMSG, tid, 0, ctypes.addressof(_message))
    return _message.value


def get_siginfo(tid: int) -> ctypes.Array[ctypes.c_char]:
    """The siginfo_t of the signal a task stopped for."""
    info = Siginfo()
    request(GETSIGINFO, tid, 0, ctypes.addressof(info))
    return info


def set_siginfo(tid: int, info: ctypes.Array[ctypes.c_char]) -> None:
    """Replace the siginfo_t of the signal about to be delivered."""
    request(SETSIGINFO, tid, 0, ctypes.addressof(info))


def si_code(info: ctypes.Array[ctypes.c_char]) -> int:
    """`si_code`: above zero when the kernel sent the signal for something the task did."""
    return int.from_bytes(info.raw[8:12], "little", signed=True)


def get_sigmask(tid: int) -> int:
    """The mask of blocked signals, bit 0 for signal 1."""
    request(GETSIGMASK, tid, 8, ctypes.addressof(_mask))
    return _mask.value


def set_sigmask(tid: int, mask: int) -> None:
    """Set the mask of blocked signals."""
    _mask.value = mask
    request(SETSIGMASK, tid, 8, ctypes.addressof(_mask))


def tgkill(pid: int, tid: int, number: int) -> None:
    """Send a signal to one thread. Raises OSError."""
    if _libc.tgkill(pid, tid, number) == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def has_fsgsbase() -> bool:
    """Whether programs may read their segment bases (AT_HWCAP2 bit 1, Documentation/arch/x86/x86_64/fsgs.rst)."""
    return bool(_libc.getauxval(26) & 2)


def prctl(option: int, arg2: int, arg3: int = 0) -> None:
    """prctl(2) for ourselves. Raises OSError."""
    if _libc.prctl(option, ctypes.c_ulong(arg2), ctypes.c_ulong(arg3), ctypes.c_ulong(0), ctypes.c_ulong(0)) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def for_operands(registers: ctypes.Array[ctypes.c_uint64]) -> tuple[list[int], int, int]:
    """The general registers in encoding order, and the bases of fs and gs."""
    return [registers[i] for i in _ENCODING_ORDER], registers[FS_BASE], registers[GS_BASE]
