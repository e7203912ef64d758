"""Which calls led to a split lock of a program that nobody stopped, and that may have ended since?

The agent in the program leaves a `Sample`: registers, memory from rsp upwards, which files were mapped where. libdw
unwinds it afterwards. The files are strangers', so that is done by the child that reads such files (image/child.py),
which gets open descriptors and sends back addresses.
"""

from __future__ import annotations

import os
import time
from itertools import islice
from stat import S_ISREG
from typing import NamedTuple

from splitlock.image import child
from splitlock.image.child import AT_ONCE, FailedError
from splitlock.linux.proc import Memory, mappings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from splitlock.image.child import Reader

RSP, RIP, REGISTERS = 7, 16, 17
"""Places in `Sample.registers`, and their number (System V ABI, AMD64 supplement, figure 3.36)."""
VDSO = "[vdso]"
_SESSIONS = 8  # sets of images that are kept open
_IMAGES = 4096  # of a sample that are looked at
_TRIES = 2  # of a stack: the child may have been dying of something else
_PATIENCE = 60.0  # seconds that children may take who die over stacks, until there are no more stacks
_TROUBLE = "cannot say: the callers of {} samples are not known: "
_HARMED = _TROUBLE + (
    "libdw could not unwind them ({}). An image that was mapped then is damaged, or made to do harm: install it again, "
    "and run once more"
)
_NOT_STARTED = _TROUBLE + (
    "the process that reads ELF files does not start ({}). See to memory and to the number of processes, or install "
    "splitlock again, and run once more"
)


class Identity(NamedTuple):
    """What tells a file from the one that comes to lie under its name, as stat(2) has it; times in nanoseconds."""

    device: int
    inode: int
    size: int
    mtime: int
    ctime: int


class Image(NamedTuple):
    """A file that was mapped.

    `path`: absolute, in our view of the file system, or `VDSO`. `bias`: what was added to the file's own addresses; 0
    for ET_EXEC. `identity` and `build_id` (in hex): of what was mapped, where that is known; a file that differs is not
    used. `descriptor`: the file, opened for reading, where its path says nothing here (an image of a container);
    it stays the caller's, and open as long as samples name it.
    """

    path: str
    bias: int
    identity: Identity | None = None
    build_id: str | None = None
    descriptor: int | None = None


class Sample(NamedTuple):
    """A moment of a thread. `registers`: `REGISTERS` of them by DWARF's numbers for x86-64: rax, rdx, rcx, rbx, rsi,
    rdi, rbp, rsp, r8 to r15, rip. `stack`: memory from rsp upwards, as far as it was copied. `images`: what was mapped.
    """

    registers: tuple[int, ...]
    stack: bytes
    images: tuple[Image, ...]


class Stacks:
    """The call stacks of samples.

    What is found of a process's images is kept for its next sample, of the last 8 processes (or lists of images).
    Nothing here raises because of what a sample or a file holds. One that cannot be opened, is no image or another one
    than was mapped, is not used: a stack ends there.
    """

    def __init__(self) -> None:
        self.failed = 0  #: samples whose callers are not known because the child died over them
        self._failure, self._sentence = "", ""
        self._lost = 0.0  # seconds
        self._sessions: dict[frozenset[Image], tuple[Reader, int]] = {}
        self._given_up: set[frozenset[Image]] = set()

    def __enter__(self) -> Stacks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the images. They are opened again for a further stack."""
        while self._sessions:
            self._forget_oldest()

    def stack(self, sample: Sample, limit: int = 32) -> list[int]:
        """At most `limit` program counters, innermost first.

        The first is the sample's rip. One that is a return address is lowered by one, so that it lies in the call it
        returns from. Ends early where unwinding fails, and where it needs memory that was not copied; without libdw it
        is rip alone.
        """
        if limit < 1:
            return []
        images = frozenset(sample.images[:_IMAGES])
        for _ in range(_TRIES):
            if images in self._given_up or self._lost > _PATIENCE:
                break
            begun = time.monotonic()
            try:
                return self._unwound(images, sample, limit) or [sample.registers[RIP]]
            except FailedError as failed:
                self._lost += time.monotonic() - begun
                self._failure, self._sentence = str(failed), _HARMED if failed.begun else _NOT_STARTED
        self._given_up.add(images)
        self.failed += 1
        return [sample.registers[RIP]]

    @property
    def trouble(self) -> str:
        """What to say where the child died over samples, and what to do; empty: it did not."""
        return self._sentence.format(self.failed, self._failure) if self.failed else ""

    def _unwound(self, images: frozenset[Image], sample: Sample, limit: int) -> list[int]:
        """What the child says; empty where it can say nothing. Raises FailedError."""
        reader = child.reader()
        session = self._sessions.pop(images, None)
        if session is None or session[0] is not reader:
            while len(self._sessions) >= _SESSIONS:
                self._forget_oldest()
            session = reader, _handed(reader, images)
        self._sessions[images] = session  # behind all others
        answer = reader.ask("stack", session[1], [sample.registers, sample.stack.hex(), limit])
        return reader.checked(lambda answer: _addresses(answer, sample.registers[RIP], limit), answer)

    def _forget_oldest(self) -> None:
        reader, number = self._sessions.pop(next(iter(self._sessions)))
        reader.forget(number)


def _handed(reader: Reader, images: Iterable[Image]) -> int:
    """The number of a set of images that the child has opened. Raises FailedError."""
    number, left = reader.begin(), iter(images)
    while part := list(islice(left, AT_ONCE)):
        opened = [_opened(image) for image in part]
        try:
            reader.add(number, [(d, image.bias, image.build_id or "") for d, image in zip(opened, part, strict=True)])
        finally:
            for descriptor in opened:
                if descriptor is not None:
                    os.close(descriptor)
    return number


def _opened(image: Image) -> int | None:
    """The file, where it is the one that was mapped. To open a device or a pipe may do or wait for something."""
    try:
        if image.path == VDSO:
            return _vdso()
        if image.descriptor is not None:
            return _checked(image, os.dup(image.descriptor))
        if not os.path.isabs(image.path):
            return None
        place = os.open(image.path, os.O_PATH | os.O_CLOEXEC)
        if _checked(image, place) is None:
            return None
        try:
            return os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(place)
    except (OSError, ValueError):
        return None


def _checked(image: Image, descriptor: int) -> int | None:
    """The descriptor, where it is that of a file, and of the one that was mapped; else it is closed."""
    file = os.fstat(descriptor)
    found = Identity(file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns, file.st_ctime_ns)
    if S_ISREG(file.st_mode) and image.identity in (None, found):
        return descriptor
    os.close(descriptor)
    return None


def _vdso() -> int:
    """What the kernel maps into every process: our own is as another's. Raises OSError."""
    pid = os.getpid()
    place = next((m for m in mappings(pid) if m.path == VDSO), None)
    descriptor = os.memfd_create("vdso", os.MFD_CLOEXEC)
    if place is not None:
        with Memory(pid) as memory:
            os.write(descriptor, memory.read(place.start, place.end - place.start))
    return descriptor


def _addresses(answer: object, first: int, limit: int) -> list[int]:
    if not isinstance(answer, list) or len(answer) > limit or (answer and answer[0] != first):
        raise ValueError
    if not all(type(each) is int and 0 <= each < 1 << 64 for each in answer):
        raise ValueError
    return answer
