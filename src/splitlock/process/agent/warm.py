"""Image files made ahead, so that the first run of a program waits for nothing: `splitlock cache warm`."""

from __future__ import annotations

import os
import signal
import stat
from typing import NamedTuple

from splitlock._errors import failure
from splitlock.process.agent.images import is_kept, keep, made
from splitlock.process.analysis import UnanalysedError
from splitlock.process.cache import key_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from splitlock.process.cache import Cache

    Key = tuple[int, ...]

#: where programs and libraries are installed (hier(7))
INSTALLED = ("/bin", "/sbin", "/lib", "/lib64", "/usr", "/opt")
_NO_PROGRAMS = frozenset(("/usr/lib/debug", "/usr/lib/modules", "/usr/lib/firmware", "/usr/share", "/usr/src"))
_X86_64, _EXEC, _DYN = 62, 2, 3  # elf(5): e_machine, e_type
_TO_LOOK = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_LONGEST = 4096  # bytes of a reason: what a pipe takes at once


class Outcome(NamedTuple):
    """What became of an image: `reason` says why it cannot be watched without delay, "" where it can."""

    path: str
    is_new: bool
    reason: str


def images(paths: Sequence[str], failed: Callable[[Outcome], None]) -> Iterator[tuple[str, Key]]:
    """x86-64 programs and libraries among files and below directories, each file once.

    `failed` is told of what was named and cannot be read. Links are followed where they are named themselves.
    """
    seen: set[Key] = set()
    for path in paths:
        try:
            whole = os.stat(path)
            found = _below(os.path.realpath(path)) if stat.S_ISDIR(whole.st_mode) else iter((path,))
            for file in found:
                key = _image_key(file, 0 if file == path else os.O_NOFOLLOW)
                if key is None and file == path:
                    failed(Outcome(path, False, "no x86-64 program or library"))
                if key is not None and key not in seen:
                    seen.add(key)
                    yield file, key
        except OSError as error:
            failed(Outcome(path, False, error.strerror or str(error)))


def _below(directory: str) -> Iterator[str]:
    for place, directories, names in os.walk(directory):
        directories[:] = sorted(name for name in directories if os.path.join(place, name) not in _NO_PROGRAMS)
        yield from filter(_is_file, (os.path.join(place, name) for name in sorted(names)))


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:  # gone, or in a directory that may not be searched
        return False


def _image_key(path: str, follow: int) -> Key | None:
    """A file's key, where it is an image that a program can map. `follow`: O_NOFOLLOW where it may be no link."""
    try:
        descriptor = os.open(path, _TO_LOOK | follow)
    except OSError:
        return None
    try:
        status = os.fstat(descriptor)
        head = os.read(descriptor, 64) if stat.S_ISREG(status.st_mode) else b""
    except OSError:
        return None
    finally:
        os.close(descriptor)
    kind, machine = (int.from_bytes(head[at : at + 2], "little") for at in (16, 18))
    is_image = head[:6] == b"\x7fELF\x02\x01" and machine == _X86_64 and kind in (_EXEC, _DYN)
    return key_of(status) if is_image else None


def warm(files: Iterable[tuple[str, Key]], cache: Cache, jobs: int) -> Iterator[Outcome]:
    """Make what is missing, so many at a time, each in a process of its own: it may need much memory, or fail."""
    working: dict[int, tuple[str, int]] = {}
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # they are waited for
    try:
        for path, key in files:
            if is_kept(key, cache):
                yield Outcome(path, False, "")
                continue
            if len(working) >= jobs:
                yield _one(working)
            pid, pipe = _start(path, key, cache)
            working[pid] = path, pipe
        while working:
            yield _one(working)
    finally:
        for pid, (_, pipe) in working.items():
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            os.close(pipe)
        cache.prune()


def _start(path: str, key: Key, cache: Cache) -> tuple[int, int]:
    from splitlock.process.agent import image  # noqa: F401  # once, for all that are forked

    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    try:
        reason = _make(path, key, cache)
    except BaseException as error:
        reason = failure(error) if isinstance(error, Exception) else "interrupted"
    os.write(writing, os.fsencode(reason)[:_LONGEST])
    os._exit(0)


def _make(path: str, key: Key, cache: Cache) -> str:
    cache.prunes = False  # once, in the end
    descriptor = os.open(path, _TO_LOOK)
    if key_of(os.fstat(descriptor)) != key:
        return "it has become another file meanwhile"
    mode = 0o644 if cache.is_shared and _is_public(descriptor) else 0o600
    try:
        raw, named = made(descriptor, key)
    except UnanalysedError as error:
        return str(error)
    return "" if keep(key, raw, named, cache, mode) else "the cache does not take it"


def _is_public(descriptor: int) -> bool:
    """Whether every user may read an opened file, where it is now: an image holds its code."""
    path = os.readlink(f"/proc/self/fd/{descriptor}")
    above = [path[:at] or "/" for at, letter in enumerate(path) if letter == "/"]
    readable = os.fstat(descriptor).st_mode & stat.S_IROTH
    return bool(readable) and all(os.lstat(d).st_mode & stat.S_IXOTH for d in above)


def _one(working: dict[int, tuple[str, int]]) -> Outcome:
    """Wait for one of them."""
    pid, status = os.wait()
    while pid not in working:  # whoever executed us had children
        pid, status = os.wait()
    path, pipe = working.pop(pid)
    with os.fdopen(pipe, "rb") as file:
        reason = os.fsdecode(file.read())
    if os.WIFSIGNALED(status):
        reason = f"its analysis was killed by signal {os.WTERMSIG(status)}, as when memory runs out"
    return Outcome(path, not reason, reason)
