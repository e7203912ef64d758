"""Where the kernel's lines come from: /dev/kmsg, systemd's journal, stored logs of any kind, rotated ones in order."""

from __future__ import annotations

import errno
import os
import select
import shutil
import subprocess
import time

import msgspec

from splitlock._errors import SplitlockError
from splitlock.host.log import entries, jsons, rotated, seams, stored, structured
from splitlock.host.log.passing import Passing
from splitlock.host.log.wrappings import Lines, Record
from splitlock.linux import below

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KMSG = "/dev/kmsg"
_RECORD = 8192  # bytes; the kernel's PRINTKRB_RECORD_MAX is 1,024 of text, up to four times as many escaped
_HEAD = 4096  # bytes by which the shape of a text is told
_CHUNK = 1 << 18
_PAUSE = 0.5  # seconds between looks at a file


class Source:
    """Records, and what became known while they were read.

    `name`: for a person; `at`: of the file that is being read.
    `first`, `last`: the first and the last line of all, as they are. `unread`: what could not be
    read, and why. `begins`: whether the first record is the boot's first; None: only the records could tell.
    """

    def __init__(self, name: str) -> None:
        self.name = self.at = name
        self.first = self.last = b""
        self.unread: list[str] = []
        self.begins: bool | None = None
        self.passing = Passing()

    def __iter__(self) -> Iterator[Record]:
        raise NotImplementedError

    def _ended(self, reader: Lines | entries.Reader) -> None:
        self.first = self.first or reader.first
        self.last = reader.last or self.last


class Kmsg(Source):
    """The kernel's ring buffer, from its oldest record on. Every record has a number: gaps are what was overwritten.

    Source: Documentation/ABI/testing/dev-kmsg. Raises SplitlockError when it is read.
    """

    def __init__(self, path: str = KMSG, *, follow: bool) -> None:
        super().__init__(path)
        self._follow = follow

    def __iter__(self) -> Iterator[Record]:
        try:
            file = os.open(self.name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            denied = error.errno in (errno.EPERM, errno.EACCES)
            what = "run it with sudo, or name a log file" if denied else "name a log file"
            raise SplitlockError(f"{self.name}: {error.strerror}; {what}", 2) from None
        booted = time.time() - time.clock_gettime(time.CLOCK_MONOTONIC)
        expected = None
        try:
            for raw in self._raw(file):
                found = structured.kmsg_record(raw)
                if found is None:
                    yield Record(None, live=True)
                    continue
                priority, number, seconds, text = found
                if self.begins is None:
                    self.begins = number == 0
                self.last = b"[%12.6f]" % seconds
                lost = number - expected if expected is not None and number > expected else 0
                expected = number + 1
                who = "" if priority < structured.KERN else "user space"
                yield from entries.whole(text, Record(text, booted + seconds, lost, True, who, since_boot=seconds))
        finally:
            os.close(file)

    def _raw(self, file: int) -> Iterator[bytes]:
        poll = select.poll()
        poll.register(file, select.POLLIN)
        while True:
            try:
                raw = os.read(file, _RECORD)
            except BlockingIOError:
                if not self._follow:
                    return
                poll.poll()
                continue
            except OSError as error:
                # overwritten before it was read: the next number says how many; or longer than any record should be
                if error.errno in (errno.EPIPE, errno.EINVAL):
                    continue
                raise SplitlockError(f"{self.name}: {error.strerror}; name a log file", 2) from None
            if not raw:
                return
            yield raw


class Journal(Source):
    """The kernel's messages in systemd's journal, or in some of its files. Raises SplitlockError when it is read.

    `where`: options of journalctl's that say which: --directory, --file, --boot. `live`: of this machine's boot.
    """

    def __init__(self, name: str = "the journal", *where: str, follow: bool = False, live: bool = False) -> None:
        super().__init__(name)
        self._where, self._follow, self._live = where, follow, live

    def __iter__(self) -> Iterator[Record]:
        if shutil.which("journalctl") is None:
            raise SplitlockError(f"{self.name}: journalctl is not installed; name a log file that is text", 2)
        words = ["journalctl", "--output=json", "--no-pager", "--quiet", *self._where]
        words += ["--output-fields=MESSAGE,_TRANSPORT,SYSLOG_IDENTIFIER,SYSLOG_FACILITY,_COMM,_HOSTNAME,_MACHINE_ID"]
        words += ["--follow", "--lines=all"] if self._follow else []
        words += ["_TRANSPORT=kernel", "+", "_TRANSPORT=driver"]  # the latter: its own notes of what it missed
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
        assert process.stdout
        assert process.stderr
        ended = False
        reader = jsons.Json(self.passing)
        try:
            for line in process.stdout:
                try:
                    entry = msgspec.json.decode(line)
                except msgspec.DecodeError:
                    yield Record(None, live=self._live)
                    continue
                for record in reader.value(entry):
                    yield record._replace(live=True) if self._live else record
            ended = True
        finally:
            if not ended:
                process.terminate()
            failed = process.wait()
            said = process.stderr.read().decode("utf-8", "replace").strip().replace("\n", "; ")
            process.stderr.close()
            process.stdout.close()
            self._ended(reader)
        if failed:
            raise SplitlockError(f"{self.name}: journalctl: {said or f'exit status {failed}'}; or name a log file", 2)
        if said:  # it goes on where a file is damaged
            self.unread.append(f"{self.name}: journalctl: {said}")


class Stored(Source):
    """Stored logs, the oldest first: text in any wrapping, compressed, or the journal's own files.

    `paths`: files (`-`: standard input), and directories, of which the kernel's log is taken with what was rotated.
    `opened`: opens one, of a machine's own files, in the order in which they are given. Raises OSError.
    Raises SplitlockError where nothing can be read; what is damaged is in `unread`.
    """

    def __init__(self, *paths: str, name: str = "", opened: Callable[[str], int] | None = None) -> None:
        super().__init__(name or ", ".join(paths))
        self.beside: tuple[str, ...] = ()  #: what was rotated from the files that were named, and is not named itself
        self._paths, self._opened = paths, opened
        self._all: list[str] = []  # in the order in which they are read
        self._older = ""

    def __iter__(self) -> Iterator[Record]:
        paths = list(self._paths)
        if not self._opened:
            paths, self.beside = rotated.ordered(self._paths), rotated.beside(self._paths)
        holes = seams.numbered(paths)
        if len(paths) > 1 and all(".journal" in os.path.basename(path) for path in paths):
            headers = {path: self._header(path) for path in paths}
            paths.sort(key=lambda path: headers[path].since)  # their names tell no order: the newest is system.journal
            holes = seams.journals(headers.items())
        older, self._all = "", paths
        for path in paths:
            self.at, self._older = path, older
            try:
                if path in holes:
                    yield Record(None, read=0, hole=holes[path])
                yield from self._file(path)
                older = path
            except SplitlockError as error:
                if len(paths) == 1:
                    raise
                self.unread.append(str(error))
        if behind := seams.end(paths):
            yield Record(None, read=0, hole=behind)

    def _header(self, path: str) -> seams.Header:
        """Of a journal file, where it can be read; else an empty one: that is said when it is read."""
        try:
            descriptor = (self._opened or _opened)(path)
        except OSError:
            return seams.header(bytes(seams.HEADER))
        try:
            return seams.header(os.pread(descriptor, seams.HEADER, 0))
        except OSError:
            return seams.header(bytes(seams.HEADER))
        finally:
            os.close(descriptor)

    def _file(self, path: str) -> Iterator[Record]:
        try:
            descriptor = os.dup(0) if path == "-" else (self._opened or _opened)(path)
        except OSError as error:
            raise SplitlockError(f"{path}: {error.strerror}; name a log file that can be read", 2) from None
        try:
            yield from self._open(path, descriptor)
        except stored.Broken as broken:
            self.unread.append(f"{path}: {broken}")
        except OSError as error:
            raise SplitlockError(f"{path}: {error.strerror}; name a log file", 2) from None
        finally:
            os.close(descriptor)

    def _open(self, path: str, descriptor: int) -> Iterator[Record]:
        texts = stored.text(descriptor, path)
        head = b""
        broken = None
        try:
            while len(head) < _HEAD and (chunk := next(texts, b"")):
                head += chunk
        except stored.Broken as error:
            texts, broken = iter(()), error
        if head.startswith(stored.JOURNAL):
            yield from self._journal(path, descriptor)
            return
        if self.last and (hole := self._seam(path, head)):
            yield Record(None, read=0, hole=hole)
        reader = structured.reader(head, self.passing, pasted=not self._opened)
        for text in rotated.parts(_from(head, texts)):
            yield from reader.add(text)
        yield from reader.end()
        self._ended(reader)
        if broken:
            raise broken

    def _seam(self, path: str, head: bytes) -> str:
        """Why a file may be missing between the one before and this one, which begins so; empty: none is, or numbers
        tell."""
        first = head.lstrip().partition(b"\n")[0]
        return seams.dated(self._all, self._older, path, seams.between(self.last, first)) if first else ""

    def _journal(self, path: str, descriptor: int) -> Iterator[Record]:
        try:
            start = os.pread(descriptor, len(stored.JOURNAL), 0)
        except OSError:
            start = b""
        if start != stored.JOURNAL:
            raise SplitlockError(f"{path}: a journal, compressed or in a pipe; unpack it to a file first", 2)
        journal = Journal(path, "--file", below.path(descriptor))  # the very file that was opened
        yield from journal
        self.first, self.last = self.first or journal.first, journal.last
        self.unread += journal.unread


def _opened(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _from(head: bytes, texts: Iterator[bytes]) -> Iterator[bytes]:
    yield head
    yield from texts


class Text(Source):
    """Lines that somebody has already."""

    def __init__(self, text: str) -> None:
        super().__init__("the line")
        self._text = text.encode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[Record]:
        reader = structured.reader(self._text, self.passing)
        yield from reader.add(self._text)
        yield from reader.end()


class Followed(Source):
    """A file that is being written: it may be rotated, cut off, or not be there for a while. Raises SplitlockError."""

    def __iter__(self) -> Iterator[Record]:
        try:
            descriptor = os.open(self.name, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise SplitlockError(f"{self.name}: {error.strerror}; name a log file that can be read", 2) from None
        reader: Lines | entries.Reader | None = None
        try:
            while True:
                try:
                    chunk = os.read(descriptor, _CHUNK)
                except OSError as error:
                    raise SplitlockError(f"{self.name}: {error.strerror}; name a log file", 2) from None
                if chunk:
                    reader = reader or structured.reader(self._plain(chunk), self.passing)
                    yield from reader.add(chunk)
                    continue
                successor = _successor(self.name, descriptor)
                if successor is not None:
                    while late := os.read(descriptor, _CHUNK):  # written to the old one before it was put aside
                        reader = reader or structured.reader(late, self.passing)
                        yield from reader.add(late)
                    if reader:
                        yield from reader.end()
                        self._ended(reader)
                    reader = None
                    if successor == descriptor:
                        os.lseek(descriptor, 0, os.SEEK_SET)
                    else:
                        os.close(descriptor)
                        descriptor = successor
                    continue
                if reader:
                    yield from reader.idle()
                    self._ended(reader)
                time.sleep(_PAUSE)
        finally:
            os.close(descriptor)

    def _plain(self, head: bytes) -> bytes:
        if stored.packed(head):
            raise SplitlockError(f"-f {self.name}: nobody adds to a file of this kind; leave out -f", 2)
        return head


def _successor(path: str, descriptor: int) -> int | None:
    """The file to go on with: a new one of that name, this one from its start where it was cut off, None: as is."""
    held = os.fstat(descriptor)
    try:
        now = os.stat(path)
        if (now.st_dev, now.st_ino) != (held.st_dev, held.st_ino):
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # between the old and the new
        return None
    return descriptor if held.st_size < os.lseek(descriptor, 0, os.SEEK_CUR) else None
