"""Which system calls may the reader of strangers' ELF files still make? A seccomp filter, put on when all is loaded.

It reads: files that it opens to read, and what is sent to it. Whatever is not named here fails with EPERM: programs,
sockets, processes and threads, tracing, files to write, memory that is executable. A 32-bit call ends the process.
Numbers and layouts: arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/linux/seccomp.h, linux/bpf_common.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

_PR_SET_SECCOMP, _FILTER = 22, 2
_AUDIT_ARCH_X86_64 = 0xC000_003E
_X32 = 0x4000_0000
_KILL, _REFUSE, _ALLOW = 0x8000_0000, 0x0005_0000 | errno.EPERM, 0x7FFF_0000
_LOAD, _EQUAL, _FROM, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NR, _ARCH, _ARGS = 0, 4, 16  # offsets in struct seccomp_data
_PROT_EXEC = 4
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | (os.O_TMPFILE & ~os.O_DIRECTORY)

_FREE = {
    "read": 0, "write": 1, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7, "lseek": 8, "munmap": 11,
    "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "pread64": 17, "readv": 19,
    "access": 21, "sched_yield": 24, "mremap": 25, "madvise": 28, "dup": 32, "getpid": 39, "sendto": 44,
    "recvfrom": 45, "recvmsg": 47, "getsockname": 51, "getsockopt": 55, "exit": 60, "uname": 63, "getcwd": 79,
    "readlink": 89, "getrlimit": 97, "sysinfo": 99, "times": 100, "getuid": 102, "getgid": 104, "geteuid": 107,
    "getegid": 108, "getresuid": 118, "sigaltstack": 131, "gettid": 186, "futex": 202, "getdents64": 217,
    "clock_gettime": 228, "exit_group": 231, "newfstatat": 262, "readlinkat": 267, "faccessat": 269,
    "getrandom": 318, "statx": 332, "faccessat2": 439,
}  # fmt: skip
#: Call, argument, and what is asked of its lower half: that it has none of these bits, or that it is one of these.
_ASKED: tuple[tuple[int, int, Literal["none", "one"], tuple[int, ...]], ...] = (
    (2, 1, "none", (_WRITES,)),  # open
    (257, 2, "none", (_WRITES,)),  # openat
    (9, 2, "none", (_PROT_EXEC,)),  # mmap
    (10, 2, "none", (_PROT_EXEC,)),  # mprotect
    (72, 1, "one", (0, 1, 2, 3, 1030)),  # fcntl: F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC
    (302, 0, "one", (0,)),  # prlimit64: its own
)
_TGKILL = 234


def build(pid: int) -> bytes:
    """The filter as classic BPF, 8 bytes an instruction. `pid`: the process's own, which abort() sends a signal to."""
    code: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, _AUDIT_ARCH_X86_64),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NR),
        (_FROM, 0, 1, _X32),
        (_RETURN, 0, 0, _KILL),
    ]
    for number in _FREE.values():
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    for number, argument, how, values in (*_ASKED, (_TGKILL, 0, "one", (pid,))):
        test = _ANY_BIT if how == "none" else _EQUAL
        met, unmet = (_REFUSE, _ALLOW) if how == "none" else (_ALLOW, _REFUSE)
        code += [(_EQUAL, 0, 2 + 2 * len(values), number), (_LOAD, 0, 0, _ARGS + 8 * argument)]
        for value in values:
            code += [(test, 0, 1, value), (_RETURN, 0, 0, met)]
        code.append((_RETURN, 0, 0, unmet))
    code.append((_RETURN, 0, 0, _REFUSE))
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)


def close(libc: ctypes.CDLL) -> bool:
    """Put it on this process, for good, which needs no_new_privs. False: this kernel, or machine, has none of it."""
    if os.uname().machine != "x86_64":
        return False
    program = build(os.getpid())
    holder = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(program) // 8, ctypes.addressof(holder)))
    return bool(libc.prctl(_PR_SET_SECCOMP, _FILTER, ctypes.c_void_p(ctypes.addressof(header)), 0, 0) == 0)
