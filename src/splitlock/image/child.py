"""The process that reads strangers' ELF files, as ours sees it: how is it started, asked, and ended?

It runs image/reader.py: it has rlimits, no way to new privileges, and a seccomp filter by which it starts no program,
opens no socket and writes no file; as root it is nobody. What it could not give up, `kept` says. It gets open
descriptors and sends back plain data, which may be anything where somebody's file has taken it over. It is started at
the first question, and serves until we end.
"""

from __future__ import annotations

import os
from _thread import allocate_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence
    from typing import TypeVar

    T = TypeVar("T")

_WAIT = 90.0  # seconds for an answer; a kernel with all its debug information takes some 2
_DOWNLOAD = 900.0  # the same where debug information may come from a server
_LARGEST = 1 << 24  # bytes of an answer
AT_ONCE = 128  # descriptors in a message; the kernel takes 253 (include/net/scm.h: SCM_MAX_FD)
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "XDG_CACHE_HOME", "TMPDIR", "HTTPS_PROXY",
                "https_proxy")  # fmt: skip
_COULD = "The process that reads ELF files {}. A file that was made to do harm could do more of it: {}"
#: What the child could not give up -> what that means, and the way on.
KEPT = {
    "root": _COULD.format("is still root's, and could read root's files", "run splitlock as a user who is not root"),
    "capabilities": _COULD.format("still has capabilities", "run splitlock as a user who is not root"),
    "calls": _COULD.format(
        "has no seccomp filter, which this kernel or machine does not give it",
        "a kernel with CONFIG_SECCOMP_FILTER on x86-64 has it",
    ),
    "network": _COULD.format("could reach the network", "a kernel with CONFIG_SECCOMP_FILTER on x86-64 stops it"),
}
_kept: dict[str, None] = {}


def kept() -> list[str]:
    """What the children that ran could not give up, a sentence each."""
    return [KEPT[name] for name in _kept]


class FailedError(Exception):
    """The child died or gave no answer; the words say how. `begun`: it had given one before."""

    def __init__(self, words: str, *, begun: bool) -> None:
        super().__init__(words)
        self.begun = begun


class Reader:
    """One child, and the way to it. Raises `FailedError`, and is of no use from then on."""

    def __init__(self) -> None:
        import socket

        self.owner, self._number, self._lock = os.getpid(), 0, allocate_lock()
        self._begun = False
        self._gone: list[int] = []  # files to forget, with the next question: `forget` may come from anywhere
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(_DOWNLOAD if _downloads() else _WAIT)
        self.pid = _spawn(theirs)

    def open(self, descriptor: int, name: str, *, beside: bool, plain: bool) -> int:
        """Hand over a file, by its descriptor; gives its number."""
        self._number += 1
        self._hand(["open", self._number, name, beside, plain], [descriptor])
        return self._number

    def begin(self) -> int:
        """A new set of images, to unwind stacks by; gives its number."""
        self._number += 1
        self._hand(["images", self._number, []], [])
        return self._number

    def add(self, number: int, images: Sequence[tuple[int | None, int, str]]) -> None:
        """Hand over images of a set, `AT_ONCE` at most: descriptor or None, load bias, build-id in hex or ""."""
        words = [(descriptor is not None, bias, build_id) for descriptor, bias, build_id in images]
        self._hand(["images", number, words], [image[0] for image in images if image[0] is not None])

    def ask(self, what: str, number: int, about: int | str | Sequence[object]) -> object:
        """An answer about one file or set, as JSON has it; not checked."""
        return self._exchange([what, number, about])

    def checked(self, check: Callable[[object], T], answer: object) -> T:
        """An answer of the right shape. A child that somebody's file has taken over may say anything."""
        try:
            return check(answer)
        except ValueError:
            raise self.end("its answer makes no sense") from None

    def forget(self, number: int) -> None:
        """The file, or the set of images, is of no use any more."""
        self._gone.append(number)

    def end(self, why: str) -> FailedError:
        """It is not to be trusted any more. What became of it, in words."""
        readers[:] = [each for each in readers if each is not self]
        self._socket.close()
        try:
            if why:
                os.kill(self.pid, 9)
            status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        except (ChildProcessError, ProcessLookupError):
            return FailedError(why or "ended", begun=self._begun)
        how = f"killed by signal {-status}" if status < 0 else f"ended with status {status}"
        return FailedError(why or how, begun=self._begun)

    def _hand(self, request: list[object], descriptors: list[int]) -> None:
        for word in self.checked(_words, self._exchange(request, descriptors)):
            _kept[word] = None

    def _exchange(self, request: list[object], descriptors: Sequence[int] = ()) -> object:
        import json
        import socket

        with self._lock:
            gone, self._gone = self._gone, []
            packed = json.dumps([*request, gone]).encode()
            packed = len(packed).to_bytes(4, "little") + packed
            wait = int(self._socket.gettimeout() or 0)
            try:
                sent = socket.send_fds(self._socket, [packed], descriptors)
                self._socket.sendall(packed[sent:])
                size = int.from_bytes(self._received(4), "little")
                if size > _LARGEST:
                    raise self.end("its answer is too long")
                answer = json.loads(self._received(size))
                self._begun = True
                return answer
            except FailedError:
                raise
            except TimeoutError:
                raise self.end(f"no answer within {wait} s") from None
            except OSError:  # the child has ended
                raise self.end("") from None
            except (ValueError, RecursionError):
                raise self.end("its answer makes no sense") from None
            except BaseException:  # Ctrl-C: the next answer would be this question's
                self.end("interrupted")
                raise

    def _received(self, size: int) -> bytes:
        parts, left = [], size
        while left:
            part = self._socket.recv(min(left, 1 << 16))
            if not part:
                raise ConnectionResetError
            parts.append(part)
            left -= len(part)
        return b"".join(parts)


readers: list[Reader] = []


def reader() -> Reader:
    """The child, which is started now where none is there. One of a process that forked is not shared."""
    if readers and readers[0].owner != os.getpid():
        readers.clear()
    if not readers:
        try:
            readers.append(Reader())
        except OSError as error:
            raise FailedError(f"no process for it: {error.strerror}", begun=False) from None
    return readers[0]


def _downloads() -> bool:
    return bool(os.environ.get("DEBUGINFOD_URLS")) and os.geteuid() != 0


def _spawn(theirs: socket.socket) -> int:
    """Start the child with a socket as its standard input. Raises OSError."""
    import sys

    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    kept = (*_ENVIRONMENT, "DEBUGINFOD_URLS", "DEBUGINFOD_CACHE_PATH") if _downloads() else _ENVIRONMENT
    path = [root, *(each for each in sys.path if os.path.isabs(each))]
    code = f"import sys; sys.path[:] = {path!r}; from splitlock.image.reader import main; main()"
    with theirs:
        return os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", "-c", code],
            {name: os.environ[name] for name in kept if name in os.environ},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, theirs.fileno(), 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
            ],
            setsid=True,  # Ctrl-C is for us, who ask for the names of what was found until then
            setsigmask=[],
        )


def _words(answer: object) -> list[str]:
    if not isinstance(answer, list) or not all(isinstance(each, str) and each in KEPT for each in answer):
        raise ValueError
    return answer
