"""The seccomp filter that makes the target stop when executable memory appears, and little else.

It only ever traces or allows. Everything it does not name passes at the kernel's cached fast path.
"""

from __future__ import annotations

import ctypes
import struct

from splitlock.process.abi import MAGIC, MAGIC_FD
from splitlock.process.ptrace import prctl

# System call numbers of arch/x86/entry/syscalls/syscall_64.tbl.
MMAP, MPROTECT, MREMAP, SHMAT = 9, 10, 25, 30
CLONE, VFORK, EXECVE, PRCTL, SECCOMP, EXECVEAT = 56, 58, 59, 157, 317, 322
PKEY_MPROTECT, CLONE3 = 329, 435

PROT_EXEC, SHM_EXEC, CLONE_UNTRACED = 4, 0o100000, 0x0080_0000
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 22, 38
_AUDIT_ARCH_X86_64 = 0xC000_003E
_TRACE, _ALLOW = 0x7FF0_0000, 0x7FFF_0000
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_NR, _ARCH, _ARGS = 0, 4, 16  # offsets in struct seccomp_data


def install() -> None:
    """Put the filter on this process, for good. Raises OSError.

    Without CAP_SYS_ADMIN the kernel wants NO_NEW_PRIVS first; a traced program gains nothing from
    set-user-ID bits anyway unless its tracer is privileged (ptrace(2)).
    """
    program = build()
    holder = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(program) // 8, ctypes.addressof(holder)))
    try:
        prctl(PR_SET_SECCOMP, 2, ctypes.addressof(header))
    except PermissionError:
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        prctl(PR_SET_SECCOMP, 2, ctypes.addressof(header))


def build() -> bytes:
    """The filter as classic BPF: 8 bytes an instruction."""
    # A test of one argument: (call, argument, half, mask that must share a bit)
    tested = [
        (MPROTECT, 2, PROT_EXEC),
        (PKEY_MPROTECT, 2, PROT_EXEC),
        (SHMAT, 2, SHM_EXEC),
        (CLONE, 0, CLONE_UNTRACED),
    ]
    always = [MREMAP, EXECVE, EXECVEAT, SECCOMP, MAGIC]
    code: list[tuple[int, int, int, int]] = []

    def ret(value: int) -> None:
        code.append((_RETURN, 0, 0, value))

    code.append((_LOAD, 0, 0, _ARCH))
    code.append((_EQUAL, 1, 0, _AUDIT_ARCH_X86_64))
    ret(_ALLOW)
    code.append((_LOAD, 0, 0, _NR))
    for number in always:
        code.append((_EQUAL, 0, 1, number))
        ret(_TRACE)
    code.append((_EQUAL, 0, 6, MMAP))
    code.append((_LOAD, 0, 0, _ARGS + 4 * 8 + 4))
    code.append((_EQUAL, 3, 0, MAGIC_FD))
    code.append((_LOAD, 0, 0, _ARGS + 2 * 8))
    code.append((_ANY_BIT, 0, 1, PROT_EXEC))
    ret(_TRACE)
    ret(_ALLOW)
    code.append((_EQUAL, 0, 4, PRCTL))
    code.append((_LOAD, 0, 0, _ARGS))
    code.append((_EQUAL, 0, 1, PR_SET_SECCOMP))
    ret(_TRACE)
    ret(_ALLOW)
    for number, argument, mask in tested:
        code.append((_EQUAL, 0, 4, number))
        code.append((_LOAD, 0, 0, _ARGS + argument * 8))
        code.append((_ANY_BIT, 0, 1, mask))
        ret(_TRACE)
        ret(_ALLOW)
    ret(_ALLOW)
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)
