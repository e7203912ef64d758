"""Can the agent be brought into a program? By its file and this machine."""

from __future__ import annotations

import ctypes
import os

from splitlock.process.agent.memory import REASONS

AGENT = os.path.join(os.path.dirname(__file__), "inside", "agent.so")
_GLIBC = (2, 35)  # before, each call of a library function took the slow way with an audit module (its bug 15533)
_AT_HWCAP2, _FSGSBASE = 26, 2  # Documentation/arch/x86/x86_64/fsgs.rst


def why_not(program: str) -> str:
    """Why the agent cannot be brought into a program, by its file and this machine; empty where it can."""
    libc = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
    try:
        if libc[:1] != ["glibc"] or tuple(map(int, libc[1].split(".")[:2])) < _GLIBC:
            return "the C library is not glibc 2.35 or later, which has other ways with audit modules"
        if not ctypes.CDLL(None).getauxval(_AT_HWCAP2) & _FSGSBASE:
            return "no FSGSBASE here; it takes Linux 5.9 and a CPU of 2012 or later"
        judge = ctypes.CDLL(AGENT).splitlock_judge
    except (OSError, ValueError):
        return "this package was built without the agent, for want of a C compiler"
    return REASONS[judge(ctypes.c_char_p(os.fsencode(found(program))))]


def found(program: str) -> str:
    """The path of a program, as execvp(3) finds it."""
    places = [""] if "/" in program else [f"{place or '.'}/" for place in os.get_exec_path()]
    return next((f"{place}{program}" for place in places if os.access(f"{place}{program}", os.X_OK)), program)
