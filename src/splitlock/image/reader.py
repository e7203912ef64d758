"""The child that reads strangers' ELF files (image/child.py): what may it do, and how does it answer?

It may read what it is given and what everybody may read. It cannot write files, start programs, gain privileges, or
reach a network (image/cage.py). As root it becomes nobody. Its memory and the time for one answer are bounded. What it
could not give up it says with each file that it opens. Where $DEBUGINFOD_URLS lets libdw's library fetch files, which
needs sockets, threads and files to write, the filter is left out.
"""

from __future__ import annotations

import bisect  # noqa: F401  # imported before root becomes nobody, who may not be let into where our files lie
import ctypes
import json
import mmap  # noqa: F401
import os
import resource
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from splitlock.image import _libdw, cage, demangle
from splitlock.image import elf as _elf  # noqa: F401
from splitlock.image.child import AT_ONCE
from splitlock.image.symbols import Names
from splitlock.image.unwind import Session

if TYPE_CHECKING:
    from collections.abc import Callable

_NOBODY = 65534
_MEMORY = 4 << 30  # bytes that it may allocate; a kernel's debug information takes some 0.1
_MAPPED = 32 << 30  # bytes of files that it may have mapped: 64 images are kept open
_OPEN = 1 << 16  # files that it may have open: an image of a process takes two
_SECONDS = 60  # of processor time for one answer
_UNWINDING = 10  # the same for a stack, which takes some milliseconds
_PR_SET_NO_NEW_PRIVS, _CLONE_NEWNET = 38, 0x40000000
_CAPABILITIES_3 = 0x20080522  # linux/capability.h: _LINUX_CAPABILITY_VERSION_3


def main() -> None:
    """Answer on the socket that is standard input, until it is closed."""
    for name in ("_Z1fv", "_RNvCs15kBYyAo9fc_7mycrate4name", "?f@@YAXXZ"):  # its libraries, while they can be opened
        with suppress(ImportError):  # a machine without pycxxfilt may never meet such a name
            demangle.demangle(name)
    _libdw.load()
    held = _libdw.Callback(lambda *_: 0)  # libffi's executable page for callbacks, which stays there as long as this
    kept = _confine()
    opened: dict[int, Names | Session] = {}
    with socket.socket(fileno=0) as parent:
        while (request := _request(parent)) is not None:
            words, gone, descriptors = request
            most = _UNWINDING if words[0] in ("images", "stack") else _SECONDS
            _limit(resource.RLIMIT_CPU, int(sum(os.times()[:2])) + most)
            for number in gone:
                opened.pop(number).close()
            answer = json.dumps(_answer(opened, words, descriptors, kept)).encode()
            parent.sendall(len(answer).to_bytes(4, "little") + answer)
    del held


def _answer(opened: dict[int, Names | Session], words: list[Any], descriptors: list[int], kept: list[str]) -> object:
    """`words`: what image/child.py asks for, a number that it gave, and what the question is about."""
    what, number, about, *rest = words
    if what == "open":
        (descriptor,), (beside, plain) = descriptors, rest
        opened[number] = _Owner(about, descriptor, beside=beside, libdw=not plain)
        return kept
    if what == "images":
        session = opened.get(number) or opened.setdefault(number, Session())
        assert isinstance(session, Session)
        left = iter(descriptors)  # fewer than announced where this process has no room for more
        for is_open, bias, build_id in about:
            session.add(next(left, None) if is_open else None, bias, build_id)
        return kept
    image = opened[number]
    if isinstance(image, Session):
        registers, stack, limit = about
        return image.stack(registers, bytes.fromhex(stack), limit)
    asked: dict[str, Callable[[Any], object]]
    asked = {"frames": image.frames, "named": image.named, "data": image.data, "section": image.section}
    return asked[what](about)


class _Owner(Names):
    """With the descriptor, which is this process's own."""

    def close(self) -> None:
        super().close()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _request(parent: socket.socket) -> tuple[list[object], list[int], list[int]] | None:
    """The next one, the numbers to forget, and descriptors that came with it; None: there will be no more."""
    head, descriptors, _, _ = socket.recv_fds(parent, 4, AT_ONCE)
    if not head:
        return None
    size, packed = int.from_bytes(head, "little"), b""
    while len(packed) < size:
        part = parent.recv(size - len(packed))
        if not part:
            return None
        packed += part
    *words, gone = json.loads(packed)
    return words, gone, descriptors


def _confine() -> list[str]:
    """Give up all that is not needed; gives what could not be: names of apart.KEPT."""
    libc = ctypes.CDLL(None, use_errno=True)
    downloads = bool(os.environ.get("DEBUGINFOD_URLS"))  # then libdw's library writes files and begins threads
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # where memory is short, this one goes first
        file.write("1000")
    apart = os.geteuid() != 0 or libc.unshare(_CLONE_NEWNET) == 0
    if os.geteuid() == 0:
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
        *(() if downloads else ((resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_NPROC, 0))),
    ):
        _limit(kind, most, hard=True)
    _limit(resource.RLIMIT_NOFILE, _OPEN)  # often less, for programs with select(2)
    filtered = not downloads and cage.close(libc)
    kept = {"root": 0 in os.getresuid(), "capabilities": none != 0, "calls": not filtered and not downloads,
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


def _limit(kind: int, most: int, *, hard: bool = False) -> None:
    """Lower a limit, or (not `hard`) set what may be raised again."""
    highest = resource.getrlimit(kind)[1]
    if highest != resource.RLIM_INFINITY:
        most = min(most, highest)
    resource.setrlimit(kind, (most, most if hard else highest))
