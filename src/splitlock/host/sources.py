"""Where the kernel's lines come from: /dev/kmsg, systemd's journal, a file that may be rotated, a pipe."""

from __future__ import annotations

import codecs
import errno
import os
import re
import select
import shutil
import subprocess
import time
from collections import namedtuple

import msgspec

from splitlock._errors import SplitlockError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

#: One record. `text`: None for what carries no words; `time`: seconds since 1970, None where the log does not tell;
#: `lost`: records known to be lost before it; `live`: of this machine's present boot, so that its tasks may still run.
Record = namedtuple("Record", "text time lost live")

KMSG = "/dev/kmsg"
_RECORD = 8192  # bytes; the kernel's PRINTKRB_RECORD_MAX is 1,024 of text, up to four times as many escaped
_LINE = 1 << 16  # bytes of a line that are looked at: garbage may never end
_CHUNK = 1 << 18
_PAUSE = 0.5  # seconds between looks at a file
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")


def kmsg(path: str = KMSG, *, follow: bool) -> Iterator[Record]:
    """The kernel's ring buffer, from its oldest record on. Every record has a number: gaps are what was overwritten.

    Source: Documentation/ABI/testing/dev-kmsg. Raises SplitlockError.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        what = (
            "run it with sudo, or name a log file" if error.errno in (errno.EPERM, errno.EACCES) else "name a log file"
        )
        raise SplitlockError(f"{path}: {error.strerror}; {what}", 2) from None
    booted = time.time() - time.clock_gettime(time.CLOCK_MONOTONIC)
    expected = None
    poll = select.poll()
    poll.register(file, select.POLLIN)
    try:
        while True:
            try:
                raw = os.read(file, _RECORD)
            except BlockingIOError:
                if not follow:
                    return
                poll.poll()
                continue
            except OSError as error:
                if error.errno == errno.EPIPE:  # overwritten before it was read: the next number says how many
                    continue
                if error.errno == errno.EINVAL:  # longer than any record should be
                    continue
                raise SplitlockError(f"{path}: {error.strerror}; name a log file", 2) from None
            if not raw:
                return
            record, expected = _kmsg_record(raw, booted, expected)
            yield record
    finally:
        os.close(file)


def _kmsg_record(raw: bytes, booted: float, expected: int | None) -> tuple[Record, int | None]:
    head, _, text = raw.partition(b";")
    fields = head.split(b",")
    try:
        number, stamp = int(fields[1]), int(fields[2]) / 1e6
    except (IndexError, ValueError):
        return Record(None, None, 0, True), expected
    lost = number - expected if expected is not None and number > expected else 0
    words = _ESCAPED.sub(lambda match: bytes([int(match[1], 16)]), text.partition(b"\n")[0])
    return Record(words.decode("utf-8", "replace"), booted + stamp, lost, True), number + 1


class _Entry(msgspec.Struct):
    """What is wanted of an entry of the journal (systemd.journal-fields(7)); bytes that are no UTF-8 are a list."""

    MESSAGE: str | list[int] | None = None
    time: str | None = msgspec.field(default=None, name="__REALTIME_TIMESTAMP")


def journal(*, follow: bool, files: list[str] | None = None, boot: bool = False) -> Iterator[Record]:
    """The kernel's messages in systemd's journal, or in these files of one. Raises SplitlockError.

    `boot`: since this boot only.
    """
    if shutil.which("journalctl") is None:
        raise SplitlockError("--journal: journalctl is not installed; leave out --journal, or name a log file", 2)
    words = ["journalctl", "--output=json", "--output-fields=MESSAGE", "--no-pager", "--quiet"]
    # its own notes of what it missed are of transport `driver`
    words += ["_TRANSPORT=kernel", "+", "_TRANSPORT=driver"] + ([f"--file={path}" for path in files or ()])
    words += (["--boot"] if boot else []) + (["--follow", "--lines=all"] if follow else [])
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
    assert process.stdout
    assert process.stderr
    decoder = msgspec.json.Decoder(_Entry)
    ended = False
    try:
        for line in process.stdout:
            try:
                entry = decoder.decode(line)
            except msgspec.DecodeError:
                yield Record(None, None, 0, False)
                continue
            text = (
                entry.MESSAGE
                if isinstance(entry.MESSAGE, str)
                else bytes(entry.MESSAGE or ()).decode("utf-8", "replace")
            )
            yield Record(text, int(entry.time) / 1e6 if entry.time else None, 0, files is None)
        ended = True
    finally:
        if not ended:
            process.terminate()
        failed = process.wait()
        said = process.stderr.read().decode("utf-8", "replace").strip().replace("\n", "; ")
        process.stderr.close()
        process.stdout.close()
    if failed:
        raise SplitlockError(f"--journal: journalctl: {said or f'exit status {failed}'}; or name a log file", 2)


def file(path: str, *, follow: bool) -> Iterator[Record]:
    """The lines of a file; `-`: of standard input. Followed, it may be rotated, cut off, or not be there for a while.

    Raises SplitlockError.
    """
    try:
        descriptor = os.dup(0) if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise SplitlockError(f"{path}: {error.strerror}; name a log file that can be read", 2) from None
    lines = _Lines()
    try:
        while True:
            try:
                chunk = os.read(descriptor, _CHUNK)
            except OSError as error:
                raise SplitlockError(f"{path}: {error.strerror}; name a log file", 2) from None
            if chunk:
                yield from lines.add(chunk)
                continue
            if not follow or path == "-":
                break
            successor = _successor(path, descriptor)
            if successor is not None:
                while late := os.read(descriptor, _CHUNK):  # written to the old one before it was put aside
                    yield from lines.add(late)
                yield from lines.end()
                if successor == descriptor:
                    os.lseek(descriptor, 0, os.SEEK_SET)
                else:
                    os.close(descriptor)
                    descriptor = successor
                continue
            time.sleep(_PAUSE)
        yield from lines.end()
    finally:
        os.close(descriptor)


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


class _Lines:
    """Chunks into lines; of a line that is too long, its start."""

    def __init__(self) -> None:
        self._rest = b""
        self._skipping = False
        self._decode = codecs.getdecoder("utf-8")

    def add(self, chunk: bytes) -> Iterator[Record]:
        *whole, self._rest = (self._rest + chunk).split(b"\n")
        for line in whole:
            if self._skipping:
                self._skipping = False
                continue
            yield self._record(line)
        if len(self._rest) > _LINE:
            if not self._skipping:
                yield self._record(self._rest[:_LINE])
            self._rest, self._skipping = b"", True

    def end(self) -> Iterator[Record]:
        if self._rest and not self._skipping:
            yield self._record(self._rest)
        self._rest, self._skipping = b"", False

    def _record(self, line: bytes) -> Record:
        return Record(self._decode(line[:_LINE], "replace")[0], None, 0, False)
