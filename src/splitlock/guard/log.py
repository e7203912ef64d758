"""The gate's log: its ring buffer drained into a file of JSON lines, and handed on.

Who drains holds the gate's lock meanwhile, so that several may. A record leaves the ring buffer when it has been
written; what the file does not take is told, shown all the same, and written with the next. The file is opened by name
for every record: when logrotate has moved it away the next one is new.
"""

from __future__ import annotations

import os
import select
import time

from splitlock._errors import SplitlockError
from splitlock.guard import gate
from splitlock.guard.decisions import decode
from splitlock.guard.libbpf import Map, RingBuffer
from splitlock.guard.mitigate import disable
from splitlock.guard.state import LOG, State, load
from splitlock.report.lines import count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from splitlock.report.guard import Decision

    Take = Callable[[Decision], None]

_PAUSE = 0.5  # seconds between looks at whether the gate has been replaced, or taken down


class LogFile:
    """Where decisions are written, a line each, with one write so that lines stay whole."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.passed = 0  #: lines read that are no decisions

    def append(self, lines: bytes) -> None:
        """Write it. Raises SplitlockError."""
        try:
            os.makedirs(os.path.dirname(self.path) or ".", mode=0o755, exist_ok=True)
            fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
            try:
                size = os.fstat(fd).st_size
                if size and os.pread(fd, 1, size - 1) != b"\n":  # half a line: the disk was full, or power was lost
                    lines = b"\n" + lines
                while lines:
                    lines = lines[os.write(fd, lines) :]
            finally:
                os.close(fd)
        except OSError as error:
            raise SplitlockError(f"--log {self.path}: {error.strerror}; decisions stay in force, unlogged", 2) from None

    def read(self) -> Iterator[Decision]:
        """The decisions that are in it. Raises SplitlockError."""
        try:
            with open(self.path, "rb") as file:
                yield from self.decisions(file)
        except FileNotFoundError:
            return
        except OSError as error:
            raise SplitlockError(f"--log {self.path}: {error.strerror}", 2) from None

    def decisions(self, lines: Iterable[bytes]) -> Iterator[Decision]:
        """Those in lines of it; what is none is counted and passed over (a machine that lost power leaves such)."""
        import msgspec

        from splitlock.report.guard import Decision

        for line in lines:
            try:
                yield Decision.from_json(line)
            except (msgspec.DecodeError, UnicodeDecodeError):
                self.passed += 1

    def told(self) -> str:
        """How many lines were passed over, as a line to tell; empty for none."""
        return f"--log {self.path}: {count(self.passed, 'line')} passed over: no decision" if self.passed else ""


def path(state: State | None = None) -> str:
    """The log file of the running gate."""
    state = state or load()
    return state.log if state else LOG


class Drain:
    """Takes the running gate's decisions out of its ring buffer."""

    def __init__(self, log: LogFile, directory: str = gate.PINS) -> None:
        self.log = log
        self.config = gate.live_config(directory)
        state = load()
        self.words = state.words if state else None
        self.taken: list[Decision] = []  #: by the last call, also when that failed
        self.unwritten: list[Decision] = []  #: of those taken; the file would not have them yet
        self._map = Map.pinned(f"{directory}/decisions")
        self._buffer = RingBuffer(self._map, self._take)

    def _take(self, raw: bytes) -> None:
        decision = decode(raw, self.config, self.words)
        self.taken.append(decision)
        if decision.verdict == "disable" and not self.config.audit and not decision.listed:
            disable(decision)
        self.unwritten.append(decision)
        self._write()

    def _write(self) -> None:
        while self.unwritten:
            self.log.append(self.unwritten[0].to_json())
            del self.unwritten[0]

    def take(self) -> list[Decision]:
        """What is pending, written to the file. Raises SplitlockError when it could not be written."""
        with gate.locked():
            return self.consume()

    def consume(self) -> list[Decision]:
        """The same for one who holds the lock."""
        self.taken = []
        self._buffer.consume()
        self._write()
        return self.taken

    def wait(self, seconds: float) -> bool:
        """Wait until there is something, for at most so long."""
        return bool(select.select([self._buffer.fileno()], [], [], seconds)[0])

    def close(self) -> None:
        """Let go of the ring buffer."""
        self._buffer.close()
        self._map.close()


def drain(log: LogFile) -> tuple[list[Decision], str]:
    """Write what is pending; of what was taken, the decisions that could not be written, and why."""
    if not gate.is_up():
        return [], ""
    draining = Drain(log)
    try:
        draining.take()
    except SplitlockError as error:
        return draining.unwritten, str(error)
    finally:
        draining.close()
    return [], ""


def follow(log: LogFile, take: Take, tell: Callable[[str], None]) -> None:
    """Hand on every decision as it is made, until the gate is taken down; one that replaces it is followed as well.

    `tell` is called with what goes wrong meanwhile: following does not end with a full disk.
    """
    while gate.is_up():
        generation = _generation()
        try:
            draining = Drain(log)
        except (SplitlockError, OSError):
            if gate.is_up() and generation == _generation():
                raise
            continue  # it went meanwhile
        told, lost = "", _lost()
        try:
            while _generation() == generation:
                try:
                    taken = draining.take()
                    told = ""
                except SplitlockError as error:
                    taken = draining.taken
                    if str(error) != told:
                        told = str(error)
                        tell(told)
                for decision in taken:
                    take(decision)
                if taken and (now := _lost()) > lost:
                    tell(f"{now - lost:,} decisions were made and not logged: the ring buffer was full")
                    lost = now
                draining.wait(_PAUSE)
        finally:
            draining.close()
        time.sleep(_PAUSE / 10)  # between the old pins' going and the new ones' coming


def _lost() -> int:
    """How many decisions the running gate could not hand out; 0 when it is gone."""
    try:
        return gate.counters()["lost"]
    except (SplitlockError, OSError):
        return 0


def _generation() -> int:
    """Which gate's pins these are, 0 without any."""
    try:
        return os.stat(f"{gate.PINS}/decisions").st_ino
    except OSError:
        return 0


def tail(log: LogFile, take: Take, going: Callable[[], bool]) -> None:
    """Hand on every decision that another process writes to the file, as long as `going`."""
    at, inode, rest = None, 0, b""
    while True:
        alive = going()
        try:
            with open(log.path, "rb") as file:
                info = os.fstat(file.fileno())
                if at is None or info.st_ino != inode or info.st_size < at:  # the first time: only what is new
                    at, inode, rest = (info.st_size if at is None else 0), info.st_ino, b""
                file.seek(at)
                raw = file.read()
        except FileNotFoundError:
            raw, at = b"", 0
        at += len(raw)
        *lines, rest = (rest + raw).split(b"\n")
        for decision in log.decisions(lines):
            take(decision)
        if not alive:
            return
        time.sleep(_PAUSE / 5)
