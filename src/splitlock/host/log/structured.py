"""What records are in logs with a structure of their own: /dev/kmsg's, the journal's export and verbose forms, JSON?

Sources: Documentation/ABI/testing/dev-kmsg; systemd's JOURNAL_EXPORT_FORMATS and systemd.journal-fields(7).
"""

from __future__ import annotations

import re

import msgspec

from splitlock.host.log.wrappings import JOURNALD, LINE, QUOTED, Lines, Record, begins, matters
from splitlock.linux import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")
_KMSG = re.compile(rb"(?:[^\s,;]+,)?(\d+),(\d+),(\d+),[^;]*;")  # netconsole may put the kernel's release first
KERN = 8  #: a record's priority below it is of facility 0, the kernel's; who writes to /dev/kmsg gets another
_EXPORT = re.compile(rb"_{0,2}[A-Z][A-Z0-9_]*=")
_VERBOSE = re.compile(rb"\[s=[0-9a-f]+;i=")
_JSON = re.compile(rb"\s*(?:\x1e|data: )?\s*(?:\{\s*[\"}]|\[\s*[\"{\[\]])")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}]', re.S)
_TEXTS = ("MESSAGE", "msg", "message", "log", "line", "text", "textPayload", "body")
_WHOLE = 32 << 20  # characters of a JSON string, or of an object, that are waited for


def kmsg_record(raw: bytes) -> tuple[int, int, float, str] | None:
    """A record of /dev/kmsg: priority, number, seconds since boot, text. None: it is none."""
    match = _KMSG.match(raw)
    if match is None:
        return None
    words = raw[match.end() :].partition(b"\n")[0]
    if b"\\x" in words:
        words = _ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), words)
    return int(match[1]), int(match[2]), int(match[3]) / 1e6, words.decode("utf-8", "replace")


def whole(text: str, made: Record) -> Iterator[Record]:
    """A record's text as lines, as consoles have them.

    The kernel's sentence begins a record. What stands elsewhere in it is a part of a name: of a file, of a task, of a
    USB device; whoever chose it may have put line breaks and the kernel's words there. An oops alone has two lines.
    """
    said = log.parse(text)
    if "\n" in text and (said is None or said.kind == "unknown"):
        said = log.parse(text.replace("\n", " ")) or said
    quoted = said is not None and bool(said.stamp) and not begins(f"{said.stamp} ")
    if said is not None and not quoted and said.kind not in ("oops", "alignment"):
        yield made._replace(text=f"{said.stamp} {said.text}".lstrip())
        return
    own = 2 if said is not None and not quoted else 1
    for number, line in enumerate(text.split("\n")):
        speaker = made.speaker or (QUOTED if quoted or number >= own else "")
        yield made._replace(
            text=line, speaker=speaker, read=0 if number else made.read, lost=0 if number else made.lost
        )


class Reader:
    """Chunks into whole lines, and those into records."""

    def __init__(self) -> None:
        self.first = self.last = b""
        self._rest = b""

    def add(self, chunk: bytes) -> Iterator[Record]:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > LINE * 16:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            yield from self.line(line)

    def end(self) -> Iterator[Record]:
        rest, self._rest = self._rest, b""
        if rest:
            yield from self.line(rest)
        yield from self.close()

    def idle(self) -> Iterator[Record]:
        yield from ()

    def line(self, line: bytes) -> Iterator[Record]:
        raise NotImplementedError

    def close(self) -> Iterator[Record]:
        yield from ()

    def _note(self, text: str) -> None:
        self.last = text.encode("utf-8", "replace")
        self.first = self.first or self.last


class Kmsg(Reader):
    """Saved records of /dev/kmsg, netconsole's extended ones too. Their numbers tell what is missing."""

    _expected: int | None = None

    def line(self, line: bytes) -> Iterator[Record]:
        found = kmsg_record(line)
        if found is None:  # a key=value line, or something else among them
            if line[:1] != b" ":
                yield Record(line.decode("utf-8", "replace"))
            return
        priority, number, seconds, text = found
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
        yield from whole(text, Record(text, seconds(fields), speaker=by(fields)))


def seconds(fields: dict[str, Any]) -> float | None:
    """An entry's time, in seconds since 1970."""
    given = fields.get("__REALTIME_TIMESTAMP")
    return int(given) / 1e6 if isinstance(given, str) and given.isdecimal() else None


def by(fields: dict[str, Any]) -> str:
    """Who an entry is from, where it is not from the kernel: by its transport, which journald itself notes."""
    transport, name = fields.get("_TRANSPORT"), fields.get("SYSLOG_IDENTIFIER")
    if transport == "driver":
        return JOURNALD
    if transport == "kernel":  # what programs write to /dev/kmsg comes that way too, with a facility of its own
        return "" if str(fields.get("SYSLOG_FACILITY") or "0") == "0" else str(name or "user space")
    if transport is None:
        return "" if name in (None, "kernel") else str(name)
    return str(fields.get("_COMM") or name or transport)


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
                after += 8 + min(size, _WHOLE) + 1
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


_KEPT = {b"MESSAGE", b"_TRANSPORT", b"SYSLOG_IDENTIFIER", b"SYSLOG_FACILITY", b"_COMM", b"__REALTIME_TIMESTAMP"}


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


class Json(Reader):
    """JSON in any arrangement: an object a line, one over many lines, behind `data: ` or RS; arrays.

    The innermost objects are records; of strings that stand outside of those, each line is one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lines = Lines()
        self._text = ""  # what has not been dealt with, from where an open object or string begins
        self._at = 0
        self._new: list[str] = []  # lines behind it
        self._size = 0
        self._open: list[tuple[int, list[str]] | None] = []  # where an object began, its strings; None: has objects

    def line(self, line: bytes) -> Iterator[Record]:
        if not self._new and not self._text.strip():
            bare = line.strip(b"\x1e \r\t,").removeprefix(b"data: ")
            if bare[:1] == b"{" and bare[-1:] == b"}":
                try:
                    found = msgspec.json.decode(bare)
                except msgspec.DecodeError:
                    pass
                else:
                    yield from self.value(found)
                    return
        self._new.append(line.decode("utf-8", "replace"))
        self._size += len(line)
        if self._size > max(LINE, len(self._text)):  # what is open is not looked at again for each line
            yield from self.idle()

    def idle(self) -> Iterator[Record]:
        if self._new:
            self._text += "\n".join(self._new) + "\n"
            self._new, self._size = [], 0
            yield from self._tokens()

    def close(self) -> Iterator[Record]:
        """What is left in the end is no JSON: a part of some, as lines."""
        yield from self.idle()
        for line in self._text[self._at :].split("\n"):
            if matters(line.encode()):
                yield Record(line)

    def _tokens(self) -> Iterator[Record]:
        for match in _TOKEN.finditer(self._text, self._at):
            self._at = match.end()
            token = match[0]
            if token == "{":
                if self._open:
                    outer = self._open[-1]
                    yield from self._strings(outer[1] if outer else [])
                    self._open[-1] = None
                self._open.append((match.start(), []))
            elif token == "}":
                inner = self._open.pop() if self._open else None
                if inner is not None:
                    yield from self._object(self._text[inner[0] : match.end()], inner[1])
            elif self._open and self._open[-1] is not None:
                self._open[-1][1].append(token)
            else:
                yield from self._strings([token])
        # what has been dealt with goes; an open string or object waits for its end
        keep = next((entry[0] for entry in self._open if entry is not None), None)
        rest = self._text.find('"', self._at)
        start = min(at for at in (keep, rest if rest >= 0 else len(self._text)) if at is not None)
        if len(self._text) - start > _WHOLE:
            yield from self.close()
            self._text, self._at, self._open = "", 0, []
            return
        self._text, self._at = self._text[start:], max(0, self._at - start)
        self._open = [entry and (entry[0] - start, entry[1]) for entry in self._open]

    def _object(self, text: str, strings: list[str]) -> Iterator[Record]:
        try:
            found = msgspec.json.decode(text.encode("utf-8", "replace"))
        except msgspec.DecodeError:
            yield from self._strings(strings)
        else:
            yield from self.value(found)

    def _strings(self, tokens: list[str]) -> Iterator[Record]:
        for token in tokens:
            if self._lines.matters(token.encode()):
                try:
                    yield from self.value(msgspec.json.decode(token.encode("utf-8", "replace")))
                except msgspec.DecodeError:
                    yield Record(token)

    def value(self, found: object) -> Iterator[Record]:
        """The records in a value."""
        if isinstance(found, str):
            yield from self._text_lines(found)
        elif isinstance(found, list):
            for each in found:
                yield from self.value(each)
        elif isinstance(found, dict):
            key = next((name for name in _TEXTS if isinstance(found.get(name), str | list)), None)
            if key is None:
                for each in found.values():
                    if not isinstance(each, str) or self._lines.matters(each.encode("utf-8", "replace")):
                        yield from self.value(each)
                return
            text = found[key]
            if isinstance(text, list) and all(isinstance(each, int) and 0 <= each < 256 for each in text):
                text = bytes(text).decode("utf-8", "replace")  # the journal's, for what is no UTF-8
            if not isinstance(text, str):
                yield from self.value(text)
            elif key == "msg" and isinstance(found.get("time"), float):  # dmesg's: an object is a record
                self._note(f"[{found['time']:12.6f}] {text}")
                yield from whole(text, Record(text))
            elif "_TRANSPORT" in found or "__CURSOR" in found:
                self._note(text)
                yield from whole(text, Record(text, seconds(found), speaker=by(found)))
            else:
                yield from self._text_lines(text)
                self._note(text)

    def _text_lines(self, text: str) -> Iterator[Record]:
        yield from self._lines.take(text.encode("utf-8", "replace"))
        yield from self._lines.idle()
        self.first, self.last = self._lines.first, self._lines.last


def reader(head: bytes, *, pasted: bool = True) -> Lines | Reader:
    """What reads a text that begins so. `pasted`: a person may have put several lines into one."""
    start = head.lstrip()
    if _KMSG.match(start):
        return Kmsg()
    if _VERBOSE.search(head[: head.find(b"\n") + 1]):
        return Verbose()
    if _EXPORT.match(start) and b"\n_" in head:
        return Export()
    return Json() if _JSON.match(head) else Lines(pasted=pasted)
