"""The CPUID instruction and model-specific registers of this machine."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from functools import cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# rbx is the caller's: push it; rdx holds the result's address: into r8; cpuid; four stores; pop; ret (System V ABI)
_CODE = bytes.fromhex("53 4989d0 89f8 89f1 0fa2 418900 41895804 41894808 4189500c 5b c3")


@cache
def _function() -> tuple[Callable[..., None], mmap.mmap] | None:
    """CPUID as a function, and the memory it lies in; None where none may be made executable (SELinux's execmem)."""
    try:
        memory = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return None
    memory.write(_CODE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    return ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)(address), memory


def cpuid(leaf: int, subleaf: int = 0) -> tuple[int, int, int, int] | None:
    """EAX, EBX, ECX, EDX of a leaf (SDM vol. 2A, CPUID); None where the instruction cannot be had."""
    made = _function()
    if made is not None:
        out = (ctypes.c_uint32 * 4)()
        made[0](leaf, subleaf, out)
        return out[0], out[1], out[2], out[3]
    try:  # Linux's driver `cpuid`: the offset is the leaf, the subleaf its upper half
        with open("/dev/cpu/0/cpuid", "rb", buffering=0) as file:
            eax, ebx, ecx, edx = struct.unpack("<4I", os.pread(file.fileno(), 16, subleaf << 32 | leaf))
            return eax, ebx, ecx, edx
    except (OSError, struct.error):
        return None


def leaf7() -> tuple[int, int, int, int] | None:
    """Leaf 7 (structured extended features); zeros on a processor that has none; None where nobody can tell."""
    highest = cpuid(0)
    if highest is None:
        return None
    return cpuid(7) if highest[0] >= 7 else (0, 0, 0, 0)


def hypervisor() -> str | None:
    """What announces itself as the hypervisor under us: leaf 40000000h, twelve letters."""
    first = cpuid(1)
    if first is None or not first[2] >> 31:
        return None
    leaf = cpuid(0x40000000)
    return struct.pack("<3I", *leaf[1:]).rstrip(b"\0").decode("ascii", "replace") if leaf else ""


def msr(number: int, processors: list[int]) -> dict[int, int]:
    """A register of each of these processors, by /dev/cpu/N/msr; those that cannot be read are not in it."""
    found = {}
    for processor in processors:
        try:
            with open(f"/dev/cpu/{processor}/msr", "rb", buffering=0) as file:
                (found[processor],) = struct.unpack("<Q", os.pread(file.fileno(), 8, number))
        except (OSError, struct.error):
            continue
    return found
