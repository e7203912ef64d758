"""The child that reads strangers' ELF files (image/child.py): what may it do, and how does it answer?

It may read what it is given and what everybody may read (image/confined.py). The time for one answer is bounded. What
it could not give up it says with each file that it opens. Where $DEBUGINFOD_URLS lets the library of libdw fetch files,
which needs sockets, threads and files to write, the filter is left out.
"""

from __future__ import annotations

import bisect  # noqa: F401  # imported before root becomes nobody, who may not be let into where our files lie
import json
import mmap  # noqa: F401
import os
import resource
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from splitlock.image import _libdw, demangle
from splitlock.image import elf as _elf  # noqa: F401
from splitlock.image.child import AT_ONCE
from splitlock.image.confined import confine, limit
from splitlock.image.symbols import Names
from splitlock.image.unwind import Session

if TYPE_CHECKING:
    from collections.abc import Callable

_SECONDS = 60  # of processor time for one answer
_UNWINDING = 10  # the same for a stack, which takes some milliseconds


def main() -> None:
    """Answer on the socket that is standard input, until it is closed."""
    for name in ("_Z1fv", "_RNvCs15kBYyAo9fc_7mycrate4name", "?f@@YAXXZ"):  # its libraries, while they can be opened
        with suppress(ImportError):  # a machine without pycxxfilt may never meet such a name
            demangle.demangle(name)
    _libdw.load()
    held = _libdw.Callback(lambda *_: 0)  # libffi's executable page for callbacks, which stays there as long as this
    # Where $DEBUGINFOD_URLS is set, libdw's library writes files and begins threads.
    kept = confine(free=bool(os.environ.get("DEBUGINFOD_URLS")))
    opened: dict[int, Names | Session] = {}
    with socket.socket(fileno=0) as parent:
        while (request := _request(parent)) is not None:
            words, gone, descriptors = request
            most = _UNWINDING if words[0] in ("images", "stack") else _SECONDS
            limit(resource.RLIMIT_CPU, int(sum(os.times()[:2])) + most)
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
