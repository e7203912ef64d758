"""Reading what strangers compiled, which may take seconds, in a process of its own.

Whoever waits for it can be called away, cannot die of it, and keeps rights that the reader gives up.
"""

from __future__ import annotations

import os
import signal

from splitlock._errors import failure
from splitlock.process import ptrace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    #: Gives the result in bytes. It calls what it is given once all is loaded, before it looks at what others wrote;
    #: with descriptors that are to stay open.
    Make = Callable[[Callable[..., None]], bytes]
    Take = Callable[[bytes], None]

_LOOK = 50  # milliseconds between two looks at what may call us away
_PIECE = 1 << 20  # bytes read at a time
_SECONDS = 900  # of processor time for one image; the largest browser's takes 20
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4
_MADE, _FAILED, _REFUSED = b"\1", b"\0", b"\2"


class UnanalysedError(Exception):
    """There is no result; the words say why."""


def _ignore(raw: bytes) -> None:
    """For whom what is returned is enough."""


def here(make: Make, take: Take = _ignore) -> bytes:
    """What `make` gives, made in this process, by which nobody is called away, and nothing given up. As `apart`."""
    raw = make(lambda *kept: None)
    take(raw)
    return raw


def apart(make: Make, called: Callable[[], str], take: Take = _ignore) -> bytes:
    """What `make` gives, made in a child process that gives up its rights (splitlock.image.confined).

    `take` is called with it while the child is still there, and what it holds locked. `called` is asked again and again
    meanwhile: words for what calls us away, or "". Raises UnanalysedError then, and where the child fails; OSError as
    `make` does. Without a process or descriptors for it, `make` works here, and `called` is not asked.
    """
    if why := called():
        raise UnanalysedError(why)
    try:
        ours, theirs = os.pipe2(os.O_CLOEXEC)
    except OSError:
        return here(make, take)
    try:
        parent, pid = os.getpid(), os.fork()
    except OSError:
        os.close(ours)
        os.close(theirs)
        return here(make, take)
    if pid == 0:
        _work(make, theirs, parent)
    os.close(theirs)
    try:
        raw = _received(ours, called)
        if raw[:1] == _MADE:
            take(raw[1:])
    finally:
        os.close(ours)
        os.kill(pid, signal.SIGKILL)  # it is done, or not wanted any more
        _, status = os.waitpid(pid, 0)
    if raw[:1] == _MADE:
        return raw[1:]
    if raw[:1] == _REFUSED:
        raise OSError(int(raw[1:]), os.strerror(int(raw[1:])))
    if raw[:1] == _FAILED:
        raise UnanalysedError(raw[1:].decode("utf-8", "replace"))
    raise UnanalysedError(f"killed by signal {os.WTERMSIG(status)}; see to memory (ulimit -v, -d)")


def on_terminal(name: str) -> None:
    """A line on the terminal while an image is analysed, which takes seconds for the largest; none for ""."""
    text = f"splitlock: analysing {os.path.basename(name)}, once ..." if name else ""
    os.write(2, os.fsencode(f"\r\x1b[K{text}"))


def _received(descriptor: int, called: Callable[[], str]) -> bytes:
    """All that the child sends. Raises UnanalysedError when we are called away before."""
    from select import POLLIN, poll

    waiting = poll()
    waiting.register(descriptor, POLLIN)
    parts: list[bytes] = []
    while True:
        if waiting.poll(_LOOK):
            part = os.read(descriptor, _PIECE)
            if not part:
                return b"".join(parts)
            parts.append(part)
        if why := called():
            raise UnanalysedError(why)


def _work(make: Make, descriptor: int, parent: int) -> NoReturn:
    """In the child, which is killed when what it has made is taken."""
    from select import poll

    try:
        ptrace.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        ptrace.prctl(_PR_SET_DUMPABLE, 0)  # should a library abort for want of memory: no core file
        if os.getppid() != parent:
            os._exit(1)
        try:
            raw = _MADE + make(lambda *kept: _give_up(descriptor, *kept))
        except OSError as error:
            raw = _REFUSED + str(error.errno or 0).encode()
        except Exception as error:
            raw = _FAILED + failure(error).encode("utf-8", "replace")
        left = memoryview(raw)
        while left:
            left = left[os.write(descriptor, left) :]
        os.close(descriptor)
        poll().poll()
    finally:
        os._exit(0)


def _give_up(*kept: int) -> None:
    """Rights, descriptors, and standard output: what a library says when it fails comes between nobody's lines."""
    from resource import RLIMIT_CPU

    from splitlock.image.confined import confine, limit

    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    above = 3
    for number in sorted(kept):
        os.closerange(above, number)
        above = max(above, number + 1)
    os.closerange(above, os.sysconf("SC_OPEN_MAX"))
    confine()
    limit(RLIMIT_CPU, _SECONDS, hard=True)
