"""The run's memory, as inside/run.h lays it out: what agents write down, read and answered by their supervisor.

A System V segment: shmget(2), shmat(2). It is removed at once, so that it goes with the last process that has it; until
then further ones may attach it by its number (Linux, ipc/shm.c: do_shmat() refuses none that is marked for removal).
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import NamedTuple

from splitlock.linux.proc import Mapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    Key = tuple[int, ...]

MAGIC, VERSION = 0x31524E554B4C5053, 18
FREE, CLAIMED, ASKED, READY, NOTHING, REFUSED = range(6)
#: enum mode, by the names of `Policy`
MODES = {"warn": 1, "fatal": 2, "ratelimit": 3, "mitigate": 4}
IMAGES, SAMPLES, TASKS, ESCAPES, MODULES, COUNTERS, FINDS = 2048, 256, 4096, 128, 128, 1 << 18, 4096
PROGRAMS, DOORS = 256, 16
OF_SITE = 8  # samples of one site
#: enum door_state
SHUT, TAKEN, KNOCKED, THERE, ALLOWED, TRACED, UNABLE, FAILED_CALL = range(8)
_NAME, _CACHE, _STACK = 168, 200, 12288
_HEAD = struct.Struct("<QIIiI11I5I2I2QQ")
_IMAGE = struct.Struct(f"<II5QQIIIIiiIIIIQQ{_NAME}s")
_ESCAPE = struct.Struct(f"<IIII{_NAME}s")
_TASK = struct.Struct("<4Iii16s")
_MODULE = struct.Struct("<QII")
_SAMPLE = struct.Struct(f"<2Q17Q2Q{_NAME}sII")
_FIND = struct.Struct("<BB62s")
ASKED_AT = 24
_SUPERVISOR_AT, _BEATS_AT, _REPORTED_AT = 16, 20, 88
_CACHE_AT = _HEAD.size
_IMAGES_AT = _CACHE_AT + 3 * _CACHE
_ESCAPES_AT = _IMAGES_AT + IMAGES * _IMAGE.size
_COUNTERS_AT = _ESCAPES_AT + ESCAPES * _ESCAPE.size
_TASKS_AT = _COUNTERS_AT + 9 * COUNTERS  # behind a byte for each
_SAMPLES_AT = _TASKS_AT + TASKS * _TASK.size
_SAMPLE_SIZE = _SAMPLE.size + MODULES * _MODULE.size + _STACK
_FINDS_AT = _SAMPLES_AT + SAMPLES * _SAMPLE_SIZE
_PROGRAM = struct.Struct(f"<II16s{_NAME}s")
_PROGRAMS_AT = _FINDS_AT + FINDS * _FIND.size
_DOOR = struct.Struct(f"<IiiI{_NAME}s")
_DOORS_AT = _PROGRAMS_AT + PROGRAMS * _PROGRAM.size
SIZE = _DOORS_AT + DOORS * _DOOR.size
TRACER_AT = 8  # in a door: its tracer's process

_IPC_PRIVATE, _IPC_CREAT, _IPC_RMID, _IPC_STAT = 0, 0o1000, 0, 2
_DONTFORK = 10
_FUTEX, _FUTEX_WAIT, _FUTEX_WAKE = 202, 0, 1
_NATTCH_AT = 88  # in struct shmid_ds, bytes: arch/x86/include/uapi/asm/shmbuf.h, shm_nattch

#: enum reason: why code is not watched
REASONS = (
    "", "nobody answered for it in time", "its patched text cannot be opened",
    "no room for trampolines within 2 GB of the image",
    "the file is another than what is mapped", "its patched text cannot be mapped", "too many sites in this run",
    "a static program", "32-bit code", "runs with other rights (set-user-ID, set-group-ID or capabilities)",
    "its dynamic linker is not glibc's", "may not be read", "text moved by the program (mremap)", "",
    "the program's own seccomp filter forbids what patching needs", "a shared executable mapping",
    "mapped by the program itself, past the dynamic linker", "text that the program makes writable",
    "the agent's file cannot be read there (another root directory, another user)",
    "uses no library: its dynamic linker then fails with an agent",
    "handles its own system calls (prctl 59): programs that it starts and code that it makes are not seen",
    "where its headers lie is not known",
    "no program of this machine's: another runs it (binfmt_misc), which is not watched",
    "executed, though there was nothing to execute a moment before",
    "watched by another splitlock: what it takes is in that report",
    "an audit module of the program's own: it and its C library are not watched",
    "its arguments and environment leave no room for the agent's two lines",
)  # fmt: skip


class Seen(NamedTuple):
    """A file that processes have mapped. `counters`: the number of its first one; `size`: from `low`, its lowest
    address, to its highest, bytes; `lost`: how often patched text became the program's own again; `watched`,
    `unwatched`, `watched_bytes`: its image file's (inside/image.h).
    """

    number: int
    state: int
    reason: int
    key: Key
    low: int
    mapped: int
    patched: int
    lost: int
    counters: int
    pid: int
    fd: int
    size: int
    watched: int
    unwatched: int
    watched_bytes: int
    name: str


class Escape(NamedTuple):
    """A program that was started without the agent."""

    reason: int
    times: int
    name: str


class Program(NamedTuple):
    """One that was executed, with an agent: its file, its task's name, and whether an argument was --scope."""

    name: str
    comm: str
    has_scope: bool


class Door(NamedTuple):
    """A program that is about to be executed, for which an agent asks for a tracer: by which thread, and why."""

    number: int
    state: int
    tid: int
    reason: int
    name: str


class Task(NamedTuple):
    """A thread's first split lock at a site. `sample`: where more is known of it, else None."""

    image: int
    site: int
    sample: int | None
    pid: int
    tid: int
    comm: str


class Sample(NamedTuple):
    """More of one: nanoseconds since 1970, the operand's address, registers in DWARF's order (rip is 0), the mapping
    that the operand is in, where known, the images mapped then as (bias, number), and memory from rsp upwards.
    """

    time: int
    operand: int
    registers: tuple[int, ...]
    mapping: Mapping | None
    modules: list[tuple[int, int]]
    stack: bytes


class Totals(NamedTuple):
    """What agents count. `processes`: forks; `programs`: executed with an agent that began, `announced`: those, but for
    the first, in which one should have; `made_bytes`: of executable memory without a file, the most of one process.
    """

    processes: int
    programs: int
    announced: int
    counters: int
    tasks: int
    samples: int
    finds: int
    tasks_lost: int
    images_lost: int
    escapes_lost: int
    made_bytes: int

    @property
    def lost(self) -> int:
        """In how many executed programs no agent has begun."""
        return self.announced + 1 - self.programs


class Limits(NamedTuple):
    """A mode's numbers: split locks a second, then the kernel's delays (linux/delays.py)."""

    a_second: int
    sleep_ms: int
    window_us: int
    step_ms: int


class Memory:
    """The segment, attached. `number`: what processes attach it by. Raises OSError."""

    def __init__(self, number: int) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.shmat.restype = ctypes.c_void_p
        self.number = number
        address = self._libc.shmat(number, None, 0)
        if address in (None, ctypes.c_void_p(-1).value):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        self._address = int(address)
        self._raw = (ctypes.c_char * SIZE).from_address(self._address)
        self._view = memoryview(self._raw).cast("B")

    @classmethod
    def new(cls, cache: str, shared: str, mode: int, limits: Limits) -> Memory:
        """Made now. `cache`, `shared`: directories of image files, this user's and root's for all; "" for none."""
        if len(os.fsencode(cache)) >= _CACHE:
            raise OSError(36, os.strerror(36), cache)
        libc = ctypes.CDLL(None, use_errno=True)
        number = libc.shmget(_IPC_PRIVATE, SIZE, _IPC_CREAT | 0o600)
        if number < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        try:
            made = cls(number)
        finally:
            libc.shmctl(number, _IPC_RMID, None)
        _HEAD.pack_into(made._view, 0, MAGIC, VERSION, mode, os.getpid(), 0, *bytes(11), *limits, 0, *bytes(5))
        made._name(0, cache)
        made._name(2, shared)
        return made

    def _name(self, place: int, directory: str) -> None:
        name = os.fsencode(directory)[: _CACHE - 1]
        at = _CACHE_AT + place * _CACHE
        self._view[at : at + len(name)] = name

    def spare(self, directory: str) -> None:
        """Where agents look for an image file that is not in the cache."""
        self._name(1, directory)

    def keep_from_children(self) -> None:
        """Processes forked from now on do not have it: what reads strangers' files cannot write there, nor counts."""
        self._checked(self._libc.madvise(ctypes.c_void_p(self._address), ctypes.c_size_t(SIZE), _DONTFORK))

    def take_over(self) -> None:
        """This process answers from now on."""
        struct.pack_into("<i", self._view, _SUPERVISOR_AT, os.getpid())

    @property
    def traced(self) -> int:
        """How many programs tracers have followed."""
        return self._word(_REPORTED_AT + 4)

    def reported(self) -> None:
        """Tell the front that all is said, and that our exit status is the run's."""
        self._put(_REPORTED_AT, 1)

    def beat(self) -> None:
        """Say that we are at work. Whoever waits for us gives up when we have not for ten seconds."""
        self._put(_BEATS_AT, self._word(_BEATS_AT) + 1 & 0xFFFF_FFFF)

    def resign(self) -> None:
        """Answer nobody any more: agents take us for dead."""
        struct.pack_into("<i", self._view, _SUPERVISOR_AT, 0)

    def _checked(self, result: int) -> int:
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return result

    def attached(self) -> int:
        """How many address spaces have the segment, ours among them."""
        status = ctypes.create_string_buffer(256)
        self._checked(self._libc.shmctl(self.number, _IPC_STAT, status))
        return int.from_bytes(status.raw[_NATTCH_AT : _NATTCH_AT + 8], "little")

    def wait(self, known: int, milliseconds: int) -> int:
        """Wait until agents want or bring something more than `known` times, or so long; gives how often by now."""
        now = self._word(ASKED_AT)
        if now == known:
            patience = struct.pack("<qq", milliseconds // 1000, milliseconds % 1000 * 1000000)
            self._libc.syscall(_FUTEX, ctypes.c_void_p(self._address + ASKED_AT), _FUTEX_WAIT, known, patience, None, 0)
            now = self._word(ASKED_AT)
        return now

    def wake(self) -> None:
        """End a `wait` of ours."""
        self._put(ASKED_AT, self._word(ASKED_AT) + 1 & 0xFFFF_FFFF)
        self._libc.syscall(_FUTEX, ctypes.c_void_p(self._address + ASKED_AT), _FUTEX_WAKE, 1 << 30, None, None, 0)

    def answer(self, image: Seen, state: int, reason: int = 0) -> None:
        """Settle what an agent asked for an image, and wake all who wait for it."""
        at = _IMAGES_AT + image.number * _IMAGE.size
        if self._word(at) != ASKED:  # somebody has found it meanwhile
            return
        self._put(at + 4, reason)
        self._put(at, state)
        self._libc.syscall(_FUTEX, ctypes.c_void_p(self._address + at), _FUTEX_WAKE, 1 << 30, None, None, 0)

    @property
    def totals(self) -> Totals:
        """As they are now."""
        fields = _HEAD.unpack_from(self._view)
        return Totals._make((*fields[6:16], fields[-1]))

    def finds(self) -> list[tuple[bytes, int]]:
        """Made code that may hold a locked instruction, and where in it."""
        made = []
        for number in range(min(self.totals.finds, FINDS)):
            at, size, code = _FIND.unpack_from(self._view, _FINDS_AT + number * _FIND.size)
            made.append((code[:size], at))
        return made

    def images(self) -> Iterator[Seen]:
        """All that agents have entered."""
        for number in range(IMAGES):
            at = _IMAGES_AT + number * _IMAGE.size
            if self._word(at):
                yield self.image(number)

    def image(self, number: int) -> Seen:
        """One of them, by its place."""
        fields = _IMAGE.unpack_from(self._view, _IMAGES_AT + number * _IMAGE.size)
        state, reason, *rest = fields
        key, about, name = tuple(rest[:5]), rest[5:15], rest[-1]
        return Seen._make((number, state, reason, key, *about, rest[16], _text(name)))

    def counts(self, first: int, number: int) -> list[int]:
        """So many counters from one on."""
        at = _COUNTERS_AT + 8 * first
        return list(self._view[at : at + 8 * number].cast("Q")) if first + number <= COUNTERS else []

    def escapes(self) -> Iterator[Escape]:
        """Programs that nobody watched."""
        for number in range(ESCAPES):
            state, reason, times, _, name = _ESCAPE.unpack_from(self._view, _ESCAPES_AT + number * _ESCAPE.size)
            if state == READY and times:
                yield Escape(reason, times, _text(name))

    def programs(self) -> Iterator[Program]:
        """Each once."""
        for number in range(PROGRAMS):
            state, scope, comm, name = _PROGRAM.unpack_from(self._view, _PROGRAMS_AT + number * _PROGRAM.size)
            if state == READY:
                yield Program(_text(name), _text(comm), bool(scope))

    def door(self, number: int) -> Door:
        """One of them."""
        state, tid, _, reason, name = _DOOR.unpack_from(self._view, door_at(number))
        return Door(number, state, tid, reason, _text(name))

    def set_door(self, number: int, state: int) -> None:
        """Tell who waits at a door; a tracer that is there says who it is."""
        at = door_at(number)
        if state == THERE:
            self._put(at + TRACER_AT, os.getpid())
        self._put(at, state)
        self._libc.syscall(_FUTEX, ctypes.c_void_p(self._address + at), _FUTEX_WAKE, 1 << 30, None, None, 0)

    def task(self, number: int) -> Task | None:
        """One thread's first split lock at a site, in the order in which they came; None while it is being written."""
        state, image, site, sample, pid, tid, comm = _TASK.unpack_from(self._view, _TASKS_AT + number * _TASK.size)
        return Task(image, site, sample - 1 if sample else None, pid, tid, _text(comm)) if state == READY else None

    def sample(self, number: int) -> Sample:
        """One sample."""
        at = _SAMPLES_AT + number * _SAMPLE_SIZE
        time, operand, *registers, mapped, end, name, size, modules = _SAMPLE.unpack_from(self._view, at)
        at += _SAMPLE.size
        pairs = [_MODULE.unpack_from(self._view, at + i * _MODULE.size)[:2] for i in range(min(modules, MODULES))]
        at += MODULES * _MODULE.size
        stack = bytes(self._view[at : at + min(size, _STACK)])
        mapping = Mapping(mapped, end, "", 0, 0, _text(name)) if mapped else None
        return Sample(time, operand, tuple(registers), mapping, pairs, stack)

    def _word(self, at: int) -> int:
        return int.from_bytes(self._view[at : at + 4], "little")

    def _put(self, at: int, value: int) -> None:
        self._view[at : at + 4] = value.to_bytes(4, "little")


def door_at(number: int) -> int:
    """Where in the memory it is: its state, which an agent waits at."""
    return _DOORS_AT + number * _DOOR.size


def _text(raw: bytes) -> str:
    return os.fsdecode(raw.split(b"\0", 1)[0])
