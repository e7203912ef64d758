"""The gate's own code, built for user space: libgate.so judges a file's contents as the kernel would."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_char_p, c_uint32, c_uint64
from functools import cache
from pathlib import Path

from splitlock._errors import SplitlockError
from splitlock.guard import layout

BUILT = Path(__file__).parent / "bpf"
LIBRARY = BUILT / "libgate.so"
OBJECT = BUILT / "gate.bpf.o"


def built(path: Path) -> str:
    """The path of a part that is compiled when the package is built. Raises SplitlockError where it was not."""
    if not path.exists():
        raise SplitlockError(
            f"{path}: not built; install splitlock from a wheel, or clang and libbpf-dev to build it", 2
        )
    return str(path)


@cache
def library() -> ctypes.CDLL:
    """libgate.so. Raises SplitlockError where it was not built, or is another version's."""
    found = ctypes.CDLL(built(LIBRARY))
    found.gate_judge.argtypes = [c_char_p, c_uint64, POINTER(layout.Config), POINTER(layout.Decision)]
    found.gate_sizes.argtypes = [POINTER(c_uint32)]
    if sizes(found) != [ctypes.sizeof(structure) for structure in layout.STRUCTURES]:
        raise SplitlockError(f"{LIBRARY}: built from another version of gate.h; build the package anew", 2)
    return found


def sizes(found: ctypes.CDLL) -> list[int]:
    """The sizes of gate.h's structures as the compiler has them, bytes, in the order of layout.STRUCTURES."""
    out = (c_uint32 * 16)()
    found.gate_sizes(out)
    return list(out[: len(layout.STRUCTURES)])


def judge(data: bytes, config: layout.Config) -> layout.Decision:
    """What the gate says of a file's contents."""
    decision = layout.Decision()
    library().gate_judge(data, len(data), byref(config), byref(decision))
    decision.size = decision.size or len(data)
    return decision
