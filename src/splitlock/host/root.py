"""The files of a machine: this one, or another's below a directory: a host mount, an unpacked image, an sosreport.

Everything is named as on that machine. This is the one door: whoever wrote what is below the directory decides about
its links, and may have put a FIFO or a device where a file is looked for.
"""

from __future__ import annotations

import errno
import os
import stat

from splitlock._errors import SplitlockError
from splitlock.linux import below

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

_LARGEST = 64 << 20  # bytes of a file that is read as a whole
_AT_ONCE = 1 << 20  # bytes: /proc/sys gives nothing at all to a read of 4 MiB or more (ENOMEM, proc_sysctl.c)


class Root:
    """A machine's files. Links are followed as they would be there, and never lead out. Raises SplitlockError.

    `directory`: where its / is here. `below`: what `linux.below` is to be told: empty for this machine.
    """

    def __init__(self, directory: str) -> None:
        if not os.path.isdir(directory):
            raise SplitlockError(f"--root {directory}: no such directory; name what is that system's /", 2)
        self.directory = os.path.realpath(directory)
        self.below = "" if self.live else self.directory
        if not self.live:
            below.check(self.directory)

    @property
    def live(self) -> bool:
        """Is it this machine?"""
        return self.directory == "/"

    def handle(self, name: str) -> int:
        """A descriptor to read a regular file by; whoever asks closes it. Raises OSError, for whatever is none."""
        return below.opened(self.below, f"/{name}")

    def open(self, name: str) -> BinaryIO:
        """The same as a file."""
        return open(self.handle(name), "rb")

    def text(self, *names: str) -> str | None:
        """The contents of the first of these that is there and not empty. Raises SplitlockError for what is huge."""
        for name in names:
            try:
                with self.open(name) as file:
                    found = _whole(file)
            except OSError:
                continue
            if len(found) > _LARGEST:
                large = f"{name}: larger than {_LARGEST >> 20} MiB: not what this file should be"
                raise SplitlockError(f"{large}; move it out of {self.directory}, and look at what wrote it", 2)
            if found:
                return found.decode("utf-8", "replace")
        return None

    def exists(self, name: str) -> bool:
        """Is it there?"""
        return self._status(name) is not None

    def unreadable(self, name: str) -> str | None:
        """Why what is there, a regular file or a directory, cannot be read; None: it can, or nothing is there."""
        try:
            os.close(below.opened(self.below, f"/{name}", folder=self.is_directory(name)))
        except OSError as error:
            return None if error.errno in (errno.ENOENT, errno.ENOTDIR) else error.strerror
        return None

    def is_directory(self, name: str) -> bool:
        """Is it a directory?"""
        status = self._status(name)
        return status is not None and stat.S_ISDIR(status.st_mode)

    def identity(self, name: str) -> tuple[int, int] | None:
        """What two names of one file or directory have in common: device and inode; None: it is not there."""
        status = self._status(name)
        return None if status is None else (status.st_dev, status.st_ino)

    def names(self, directory: str) -> list[str]:
        """What is in a directory, sorted; empty where it is none."""
        try:
            held = below.opened(self.below, f"/{directory}", folder=True)
        except OSError:
            return []
        try:
            return sorted(os.listdir(held))
        finally:
            os.close(held)

    def files(self, directory: str) -> list[str]:
        """The names of the regular files below a directory, at any depth; links to directories are not gone into."""
        found, waiting = [], [directory]
        while waiting:
            inside = waiting.pop()
            for name in self.names(inside):
                try:
                    held = below.handle(self.below, f"/{inside}/{name}", follow=False)
                except OSError:
                    continue
                mode = os.fstat(held).st_mode
                os.close(held)
                if stat.S_ISDIR(mode):
                    waiting.append(f"{inside}/{name}")
                elif stat.S_ISREG(mode):
                    found.append(f"{inside}/{name}")
        return sorted(found)

    def links(self, directory: str) -> Iterator[str]:
        """What the links in a directory say, as /proc/PID/fd has them. Raises OSError."""
        held = below.opened(self.below, f"/{directory}", folder=True)
        try:
            for name in os.listdir(held):
                try:
                    yield os.readlink(name, dir_fd=held)
                except OSError:
                    continue
        finally:
            os.close(held)

    def _status(self, name: str) -> os.stat_result | None:
        try:
            held = below.handle(self.below, f"/{name}")
        except OSError:
            return None
        try:
            return os.fstat(held)
        finally:
            os.close(held)


def _whole(file: BinaryIO) -> bytearray:
    """All of a file, or more than is read of any."""
    found = bytearray()
    while len(found) <= _LARGEST and (more := file.read(_AT_ONCE)):
        found += more
    return found
