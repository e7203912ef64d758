"""fanotify's permission events through ctypes. Sources: fanotify(7), linux/fanotify.h."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

OPEN_PERM, ACCESS_PERM = 0x10000, 0x20000
_OVERFLOW = 0x4000
_CLOEXEC, _CLASS_CONTENT, _REPORT_TID = 0x1, 0x4, 0x100
_UNLIMITED_QUEUE, _UNLIMITED_MARKS = 0x10, 0x20
_ADD, _IGNORED, _FILESYSTEM, _EVICTABLE = 0x1, 0x20, 0x100, 0x200
_ALLOW, _DENY = 1, 2
_AT_FDCWD = -100
_EVENT = struct.Struct("<IBBHQii")  # length, version, reserved, length of this, mask, fd, pid
_RESPONSE = struct.Struct("<iI")
_BATCH = 200 * _EVENT.size  # bytes of events taken at once: each has a file descriptor open


class Event(NamedTuple):
    """A thread waits for an answer."""

    mask: int  #: what it does
    fd: int  #: the file: ours to close
    tid: int


class Fanotify:
    """A group of marks whose events must be answered. Raises OSError."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.fanotify_mark.argtypes = [
            ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p
        ]  # fmt: skip
        flags = _CLOEXEC | _CLASS_CONTENT | _REPORT_TID | _UNLIMITED_QUEUE | _UNLIMITED_MARKS
        self.fd: int = self._libc.fanotify_init(flags, os.O_RDONLY | os.O_CLOEXEC | os.O_LARGEFILE | os.O_NONBLOCK)
        if self.fd < 0:
            self._fail("fanotify_init")
        self._evictable = _EVICTABLE

    def watch(self, path: str) -> None:
        """All files of the file system that `path` is on, opened or read."""
        if self._mark(_ADD | _FILESYSTEM, _AT_FDCWD, os.fsencode(path)):
            self._fail(path)

    def ignore(self, fd: int) -> None:
        """Ask no more about the file of an event, until it is written to. Best effort."""
        if self._mark(_ADD | _IGNORED | self._evictable, fd, None) and self._evictable:
            self._evictable = 0  # before Linux 5.19 such a mark keeps the inode in memory
            self._mark(_ADD | _IGNORED, fd, None)

    def _mark(self, flags: int, fd: int, path: bytes | None) -> int:
        result: int = self._libc.fanotify_mark(self.fd, flags, OPEN_PERM | ACCESS_PERM, fd, path)
        return result

    def _fail(self, what: str) -> None:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)

    def events(self) -> Iterator[Event]:
        """Those that wait; blocks until there is one."""
        raw = os.read(self.fd, _BATCH)
        at = 0
        while at + _EVENT.size <= len(raw):
            length, _, _, _, mask, fd, tid = _EVENT.unpack_from(raw, at)
            at += max(length, _EVENT.size)
            if fd >= 0 and not mask & _OVERFLOW:
                yield Event(mask, fd, tid)

    def answer(self, event: Event, allow: bool) -> None:
        """Let it go on, or fail with EPERM; closes the event's file."""
        try:
            os.write(self.fd, _RESPONSE.pack(event.fd, _ALLOW if allow else _DENY))
        except FileNotFoundError:  # whoever waited was killed
            pass
        finally:
            os.close(event.fd)

    def close(self) -> None:
        """All that wait go on."""
        os.close(self.fd)
