"""What a process gives up before it reads what strangers wrote.

It may still read what is open and what everybody may read. It cannot write files, start programs, gain privileges, or
reach a network (image/cage.py). As root it becomes nobody. Its memory is bounded.
"""

from __future__ import annotations

import ctypes
import os
import resource
from contextlib import suppress

from splitlock.image import cage

_NOBODY = 65534
_MEMORY = 4 << 30  # bytes that it may allocate; a kernel's debug information takes some 0.1, a browser's code 0.7
_MAPPED = 32 << 30  # bytes of files that it may have mapped: a reader keeps 64 images open
_OPEN = 1 << 16  # files that it may have open: an image of a process takes two
_PR_SET_NO_NEW_PRIVS, _CLONE_NEWNET = 38, 0x40000000
_CAPABILITIES_3 = 0x20080522  # linux/capability.h: _LINUX_CAPABILITY_VERSION_3


def confine(*, free: bool = False) -> list[str]:
    """Give up, for good, all that this process does not need; gives what could not be: names of child.KEPT.

    Python's modules must be loaded before: nobody may not be let into where they lie. `free`: it needs sockets, threads
    and files to write. Raises OSError where it could still gain privileges.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # where memory is short, this one goes first
        file.write("1000")
    rooted = os.geteuid() == 0
    apart = not rooted or libc.unshare(_CLONE_NEWNET) == 0
    if rooted:
        _become_nobody()
    none = libc.capset(  # of root that could not become nobody
        (ctypes.c_uint32 * 2)(_CAPABILITIES_3, 0), (ctypes.c_uint32 * 6)()
    )
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no_new_privs")
    for kind, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_DATA, _MEMORY),
        (resource.RLIMIT_AS, _MAPPED),
        *(() if free else ((resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_NPROC, 0))),
    ):
        limit(kind, most, hard=True)
    limit(resource.RLIMIT_NOFILE, _OPEN)  # often less, for programs with select(2)
    filtered = not free and cage.close(libc)
    kept = {"root": 0 in os.getresuid(), "capabilities": none != 0, "calls": not filtered and not free,
            "network": not apart and not filtered}  # fmt: skip
    return [name for name, has in kept.items() if has]


def _become_nobody() -> None:
    """In a container, root may have no right to, and where it is root of a user namespace there may be no nobody."""
    with suppress(OSError):
        os.setgroups([])
    with suppress(OSError):
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    with suppress(OSError):
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)


def limit(kind: int, most: int, *, hard: bool = False) -> None:
    """Lower a limit of this process, or (not `hard`) set what may be raised again."""
    highest = resource.getrlimit(kind)[1]
    if highest != resource.RLIM_INFINITY:
        most = min(most, highest)
    resource.setrlimit(kind, (most, most if hard else highest))
