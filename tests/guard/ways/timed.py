"""Runs inside a guest: loads modules and takes them out again, and times the system calls.

    python3 timed.py ROUNDS       the paths come on standard input, in an order in which they can be loaded

Prints a JSON line a module: path, bytes, seconds of finit_module in each round, and errno's name where it failed.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import sys
import time

FINIT_MODULE, DELETE_MODULE, NONBLOCK = 313, 176, 0o4000
libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """All of standard input, ROUNDS times."""
    paths = sys.stdin.read().split()
    with open("/proc/modules") as file:
        there = {line.split()[0] for line in file}
    names = {path: path.rsplit("/", 1)[1].split(".")[0].replace("-", "_") for path in paths}
    paths = [path for path in paths if names[path] not in there]
    seconds: dict[str, list[float]] = {path: [] for path in paths}
    said: dict[str, str] = {}
    for path in paths:  # into memory, so that no round reads the disk
        with open(path, "rb") as contents:
            while contents.read(1 << 20):
                pass
    for _ in range(int(sys.argv[1])):
        for path in paths:
            fd = os.open(path, os.O_RDONLY)
            begin = time.perf_counter()
            result = libc.syscall(FINIT_MODULE, fd, b"", 0)
            seconds[path].append(time.perf_counter() - begin)
            if result:
                said[path] = errno.errorcode.get(ctypes.get_errno(), "?")
            os.close(fd)
        for path in reversed(paths):
            for _ in range(20):
                if (
                    not libc.syscall(DELETE_MODULE, names[path].encode(), NONBLOCK)
                    or ctypes.get_errno() != errno.EAGAIN
                ):
                    break
                time.sleep(0.05)
    for path in paths:
        line = {"path": path, "bytes": os.path.getsize(path), "seconds": seconds[path], "said": said.get(path, "")}
        print(json.dumps(line))


if __name__ == "__main__":
    main()
