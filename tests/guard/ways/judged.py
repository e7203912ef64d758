"""Runs inside a guest: has the kernel judge modules without starting any; the paths come on standard input.

Each goes through finit_module as any module does, with parameters at an address that cannot be read: what the gate
lets in ends with EFAULT once it is linked (or with ENOENT for a symbol that is missing) before its code runs.

    python3 judged.py [--together N]     N threads at once; prints a JSON line a file: path, errno's name, seconds
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

FINIT_MODULE, INIT_MODULE = 313, 175
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.argtypes = [ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]


def judged(path: str) -> dict[str, object]:
    """One file, uncompressed by file, compressed from memory as kmod does."""
    begin = time.monotonic()
    if path.endswith(".xz"):
        import lzma

        with open(path, "rb") as file:
            data = lzma.decompress(file.read())
        begin = time.monotonic()
        result = libc.syscall(INIT_MODULE, ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p), len(data), 1)
        number = ctypes.get_errno()
    else:
        fd = os.open(path, os.O_RDONLY)
        result = libc.syscall(FINIT_MODULE, fd, 1, 0)
        number = ctypes.get_errno()
        os.close(fd)
    said = errno.errorcode.get(number, str(number)) if result else "loaded"
    return {"path": path, "errno": said, "seconds": time.monotonic() - begin}


def main() -> None:
    """All of standard input."""
    paths = sys.stdin.read().split()
    together = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    with ThreadPoolExecutor(together) as pool:
        for line in pool.map(judged, paths):
            print(json.dumps(line))


if __name__ == "__main__":
    main()
