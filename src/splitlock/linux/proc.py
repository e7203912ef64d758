"""What does /proc say of a task: its name, its status, its mappings, its memory?

Nothing is imported here but os: this file is on the way of `splitlock run`. Source: proc(5); fs/proc/array.c,
fs/proc/task_mmu.c, fs/proc/base.c.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType


class Mapping:
    """A line of /proc/PID/maps: addresses, permissions (`r-xp`), offset in the file, inode (0: none), path."""

    __slots__ = ("end", "inode", "offset", "path", "permissions", "start")

    def __init__(self, start: int, end: int, permissions: str, offset: int, inode: int, path: str) -> None:
        self.start, self.end, self.permissions, self.offset = start, end, permissions, offset
        self.inode, self.path = inode, path


def mappings(pid: int) -> list[Mapping]:
    """The lines of /proc/PID/maps. Raises OSError when the process is gone."""
    with open(f"/proc/{pid}/maps", "rb", buffering=0) as file:
        raw = file.read()
        while part := file.read():
            raw += part
    return parse_maps(raw)


def parse_maps(raw: bytes) -> list[Mapping]:
    """The lines of a /proc/PID/maps. Raises ValueError or IndexError where it is none."""
    found = []
    for line in raw.split(b"\n")[:-1]:  # not splitlines: file names may hold what else ends a line
        fields = os.fsdecode(line).split(None, 5)
        start, _, end = fields[0].partition("-")
        path = fields[5].replace("\\012", "\n") if len(fields) > 5 else ""
        found.append(Mapping(int(start, 16), int(end, 16), fields[1], int(fields[2], 16), int(fields[4]), path))
    return found


def comm(tid: int) -> str:
    """A task's name, 15 characters at most, as the kernel logs it; `?` when it is gone."""
    try:
        with open(f"/proc/{tid}/comm", "rb", buffering=0) as file:
            return os.fsdecode(file.read().rstrip(b"\n"))
    except OSError:
        return "?"


def program_of(tid: int) -> str:
    """The path of the program that a task executes; its number where that is not known."""
    try:
        return os.readlink(f"/proc/{tid}/exe")
    except OSError:
        return f"process {tid}"


def status(tid: int) -> dict[str, str]:
    """The fields of /proc/TID/status; none when it is gone."""
    try:
        with open(f"/proc/{tid}/status", errors="replace") as file:
            return {name: value.strip() for name, _, value in (line.partition(":") for line in file)}
    except (FileNotFoundError, ProcessLookupError):
        return {}


def origin(tid: int) -> int:
    """The process that a new task comes from: its own if it is a thread, else its parent; 0 when it is gone."""
    fields = status(tid)
    group = int(fields.get("Tgid", "0"))
    return group if group != tid else int(fields["PPid"])


def tracer_of(tid: int) -> int:
    """The process that traces a task; 0 without one."""
    return int(status(tid).get("TracerPid", "0"))


def children(tid: int) -> list[int]:
    """The processes that this task has started and not waited for; none when it is gone."""
    try:
        with open(f"/proc/{tid}/task/{tid}/children") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return []


class Memory:
    """A task's memory, held open while a `with` lasts. Opening it, reading and writing raise OSError."""

    __slots__ = ("_file",)

    def __init__(self, tid: int, *, write: bool = False) -> None:
        self._file = os.open(f"/proc/{tid}/mem", (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC)

    def __enter__(self) -> Memory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def read(self, address: int, size: int) -> bytes:
        """Up to `size` bytes: less where what is mapped ends, none where the task's memory is gone."""
        return os.pread(self._file, size, address)

    def write(self, address: int, data: bytes) -> None:
        """All of `data`, whatever the protection."""
        done = os.pwrite(self._file, data, address)
        if done != len(data):
            raise OSError(14, f"wrote {done} of {len(data)} bytes at {address:#x}")
