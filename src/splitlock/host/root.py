"""The files of a machine: this one, or another's below a directory: a host mount, an unpacked image, an sosreport."""

from __future__ import annotations

import os

from splitlock._errors import SplitlockError

_LARGEST = 64 << 20  # bytes of a file that are read
_LINKS = 40


class Root:
    """Everything is named as on that machine; links are followed as they would be there. Raises SplitlockError."""

    def __init__(self, directory: str) -> None:
        if not os.path.isdir(directory):
            raise SplitlockError(f"--root {directory}: no such directory; name what is that system's /", 2)
        self.directory = os.path.realpath(directory)

    @property
    def live(self) -> bool:
        """Is it this machine?"""
        return self.directory == "/"

    def path(self, name: str) -> str:
        """Where that machine's `name` is here. A link to /x is a link to x below the root, and none leads out of it."""
        waiting = [part for part in reversed(name.split("/")) if part]
        done: list[str] = []
        links = 0
        while waiting:
            part = waiting.pop()
            if part == ".":
                continue
            if part == "..":
                done = done[:-1]
                continue
            here = os.path.join(self.directory, *done, part)
            if not self.live and os.path.islink(here) and links < _LINKS:
                links += 1
                target = os.readlink(here)
                if target.startswith("/"):
                    done = []
                waiting += [word for word in reversed(target.split("/")) if word]
                continue
            done.append(part)
        return os.path.join(self.directory, *done)

    def text(self, *names: str) -> str | None:
        """The contents of the first of these that is there and not empty."""
        for name in names:
            try:
                with open(self.path(name), "rb") as file:
                    found = file.read(_LARGEST).decode("utf-8", "replace")
            except OSError:
                continue
            if found:
                return found
        return None

    def exists(self, name: str) -> bool:
        """Is it there?"""
        return os.path.exists(self.path(name))

    def names(self, directory: str) -> list[str]:
        """What is in a directory, sorted; empty where it is none."""
        try:
            return sorted(os.listdir(self.path(directory)))
        except OSError:
            return []
