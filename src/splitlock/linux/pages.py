"""What kind of memory lies in a range of a process's addresses? Asked of the range alone, however much else is mapped.

Nothing is imported but os where the first answer does: this file is on the way of `splitlock run`. Sources:
Documentation/admin-guide/mm/pagemap.rst; include/uapi/linux/fs.h, PROCMAP_QUERY.
"""

from __future__ import annotations

import errno
import os

from splitlock.linux.proc import Mapping, mappings

_PAGE = 4096
_MOST_PAGES = 4096  # looked at one by one: 16 MB
_KIND = 61  # bits from here up: file or shared anonymous, swapped, present
_OWN = {0b010, 0b100}  # swapped or present, and neither a file's nor shared
_QUERY = 0xC0686611  # _IOWR('f', 17, struct procmap_query), of 104 bytes
_NEXT = 0x10  # PROCMAP_QUERY_COVERING_OR_NEXT_VMA
_PATH = 4096


def all_written(pid: int, start: int, size: int) -> bool:
    """Whether each page of a range is private memory that the process has touched itself.

    That is no file's content any more, even where a file is mapped there. False where it cannot be told, and for more
    than 16 MB. Raises OSError when the process is gone.
    """
    pages = (size + _PAGE - 1) // _PAGE
    if not 0 < pages <= _MOST_PAGES or start >= 1 << 47:
        return False
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as file:
        raw = os.pread(file.fileno(), 8 * pages, start // _PAGE * 8)
    return len(raw) == 8 * pages and all(entry >> _KIND in _OWN for entry in memoryview(raw).cast("Q"))


def mappings_within(pid: int, start: int, end: int) -> list[Mapping]:
    """The mappings that overlap a range, as `mappings` has them. Raises OSError when the process is gone.

    Before Linux 6.11, which can be asked for one, from all of /proc/PID/maps.
    """
    with open(f"/proc/{pid}/maps", "rb", buffering=0) as file:
        try:
            return _queried(file.fileno(), start, end)
        except OSError as error:
            if error.errno != errno.ENOTTY:
                raise
    return [m for m in mappings(pid) if m.start < end and start < m.end]


def _queried(descriptor: int, start: int, end: int) -> list[Mapping]:
    import ctypes
    import fcntl
    import struct

    layout = struct.Struct("=9Q4I2Q")
    name = ctypes.create_string_buffer(_PATH)
    found = []
    while start < end:
        asked = bytearray(
            layout.pack(layout.size, _NEXT, start, 0, 0, 0, 0, 0, 0, 0, 0, _PATH, 0, ctypes.addressof(name), 0)
        )
        try:
            fcntl.ioctl(descriptor, _QUERY, asked)
        except FileNotFoundError:  # nothing is mapped from here on
            break
        _, _, _, low, high, flags, _, offset, inode, _, _, named, _, _, _ = layout.unpack(asked)
        if low >= end:
            break
        letters = "".join(letter if flags & 1 << bit else "-" for bit, letter in enumerate("rwx"))
        path = os.fsdecode(name.value) if named else ""
        found.append(Mapping(low, high, letters + ("s" if flags & 8 else "p"), offset, inode, path))
        start = high
    return found
