"""What records are in logs with a structure of their own: /dev/kmsg's, the journal's export and verbose forms?

Sources: Documentation/ABI/testing/dev-kmsg; systemd's JOURNAL_EXPORT_FORMATS and systemd.journal-fields(7).
"""

from __future__ import annotations

import re

from splitlock.host.log.entries import WHOLE, Reader, by, seconds, whole, whose
from splitlock.host.log.jsons import Json
from splitlock.host.log.wrappings import LINE, Lines, Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from splitlock.host.log.passing import Passing

_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")
_KMSG = re.compile(
    rb"(?:[^\s,;]+,)?(\d{1,20}),(\d{1,20}),(\d{1,20}),[^;]*;"
)  # netconsole may put the kernel's release first
KERN = 8  #: a record's priority below it is of facility 0, the kernel's; who writes to /dev/kmsg gets another
_EXPORT = re.compile(rb"_{0,2}[A-Z][A-Z0-9_]*=")
_VERBOSE = re.compile(rb"\[s=[0-9a-f]+;i=")
_JSON = re.compile(rb"\s*+(?:(?:\x1e|data: )\s*+)?(?:\{\s*+[\"}]|\[\s*+[\"{\[\]])")


def kmsg_record(raw: bytes) -> tuple[int, int, float, str] | None:
    """A record of /dev/kmsg: priority, number, seconds since boot, text. None: it is none."""
    match = _KMSG.match(raw)
    if match is None:
        return None
    words = raw[match.end() :].partition(b"\n")[0]
    if b"\\x" in words:
        words = _ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), words)
    return int(match[1]), int(match[2]), int(match[3]) / 1e6, words.decode("utf-8", "replace")


class Kmsg(Reader):
    """Saved records of /dev/kmsg, netconsole's extended ones too. Their numbers tell what is missing."""

    def __init__(self, passing: Passing) -> None:
        super().__init__()
        self._passing = passing
        self._expected: int | None = None

    def line(self, line: bytes) -> Iterator[Record]:
        found = kmsg_record(line)
        if found is None:  # a key=value line, or something else among them
            if line[:1] != b" ":
                yield Record(line.decode("utf-8", "replace"))
            return
        priority, number, seconds, text = found
        yield from self._passing.tell("", int(seconds))
        lost = number - self._expected if self._expected is not None and number > self._expected else 0
        self._expected = number + 1
        self._note(f"[{seconds:12.6f}] {text}")
        yield from whole(text, Record(text, None, lost, speaker="" if priority < KERN else "user space"))


class Entries(Reader):
    """The journal's entries: fields of one, then the next."""

    def __init__(self) -> None:
        super().__init__()
        self._fields: dict[str, str] = {}

    def close(self) -> Iterator[Record]:
        fields, self._fields = self._fields, {}
        if fields:
            yield from self.entry(fields)

    def entry(self, fields: dict[str, str]) -> Iterator[Record]:
        text = fields.get("MESSAGE", "")
        self._note(text)
        host, ids = whose(fields)
        yield from whole(text, Record(text, seconds(fields), speaker=by(fields), host=host, ids=ids))


class Export(Entries):
    """`journalctl --output=export`: NAME=value, or NAME, the length, and the value; an empty line ends an entry."""

    def add(self, chunk: bytes) -> Iterator[Record]:
        data, at = self._rest + chunk, 0
        while (end := data.find(b"\n", at)) >= 0:
            line = data[at:end]
            name, equals, value = line.partition(b"=")
            after = end + 1
            if line and not equals:
                if len(data) < after + 8:
                    break
                size = int.from_bytes(data[after : after + 8], "little")
                after += 8 + min(size, WHOLE) + 1
                if len(data) < after:
                    break
                value = data[end + 9 : after - 1]
            at = after
            if not line:
                yield from self.close()
            elif name in _KEPT:
                self._fields[name.decode()] = value[:LINE].decode("utf-8", "replace")
        self._rest = data[at:]

    def end(self) -> Iterator[Record]:
        yield from self.add(b"\n")
        yield from self.close()


_KEPT = {b"MESSAGE", b"_TRANSPORT", b"SYSLOG_IDENTIFIER", b"SYSLOG_FACILITY", b"_COMM", b"_PID", b"_UID",
         b"__REALTIME_TIMESTAMP", b"_HOSTNAME", b"_MACHINE_ID", b"_BOOT_ID"}  # fmt: skip


class Verbose(Entries):
    """`journalctl --output=verbose`: a line with the time, then fields with a margin; of long ones, more lines."""

    _name = ""

    def line(self, line: bytes) -> Iterator[Record]:
        text = line.decode("utf-8", "replace")
        if text[:1] not in (" ", "\t"):
            if _VERBOSE.search(line):
                yield from self.close()
                self._name = ""
            return
        name, equals, value = text.strip().partition("=")
        if (
            equals
            and text.startswith("    ")
            and text[4:5] != " "
            and name.replace("_", "").isalnum()
            and name.isupper()
        ):
            self._name = name
            self._fields[name] = value
        elif self._name and len(self._fields[self._name]) < LINE:
            self._fields[self._name] += "\n" + text.strip()


def reader(head: bytes, passing: Passing, *, pasted: bool = True) -> Lines | Reader:
    """What reads a text that begins so. `pasted`: a person may have put several lines into one. `passing`: is told of
    all lines."""
    start = head.lstrip()
    if _KMSG.match(start):
        return Kmsg(passing)
    if _VERBOSE.search(head[: head.find(b"\n") + 1]):
        return Verbose()
    if _EXPORT.match(start) and b"\n_" in head:
        return Export()
    return Json(passing) if _JSON.match(head) else Lines(pasted=pasted, passing=passing)
