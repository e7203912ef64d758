"""What records are in JSON, in any arrangement, however long, cut or mixed with other lines?"""

from __future__ import annotations

import re
from itertools import pairwise

import msgspec

from splitlock.host.log.entries import ENTRY, LONG, WHOLE, Reader, by, seconds, whole, whose
from splitlock.host.log.wrappings import LINE, Lines, Record, clock, matters

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from splitlock.host.log.passing import Passing

_INSIDE = re.compile(rb'(?:[^"\\]++|\\.)*+', re.S)
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|["{}]', re.S)  # a quote alone: its string has not ended
_TEXTS = ("MESSAGE", "msg", "message", "log", "line", "text", "textPayload", "body")
_HEAD = 40  # characters in which the kernel's clock stands
_DEEPEST = 100  # values within each other that are looked into: loggers have some five
_GAP = 8  # bytes between JSON's strings that may be something else


class Json(Reader):
    """JSON in any arrangement: an object a line, one over many lines, behind `data: ` or RS; arrays.

    The innermost objects are records; of strings that stand outside of those, each line is one.
    """

    def __init__(self, passing: Passing) -> None:
        super().__init__()
        self._passing = passing
        self._lines = Lines()
        self._text = b""  # what has not been dealt with, from where an open object or string begins
        self._at = 0
        self._new: list[bytes] = []  # lines behind it
        self._size = 0
        self._inside = False  # of a long string, of which what came before has been dealt with
        #: where an object began, and its strings; None: has objects, or is long. And whose the open ones are.
        self._open: list[tuple[int, list[bytes]] | None] = []
        self._whose: list[str] = []

    def add(self, chunk: bytes) -> Iterator[Record]:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            yield from self.line(line)
        if len(self._rest) > LONG:
            rest, self._rest = self._rest, b""
            yield from self._more(rest)

    def line(self, line: bytes) -> Iterator[Record]:
        if not self._new and not self._text.strip() and not self._open and not self._inside:
            bare = line.strip(b"\x1e \r\t,").removeprefix(b"data: ")
            if bare[:1] == b"{" and bare[-1:] == b"}":
                try:
                    found = msgspec.json.decode(bare)
                except (msgspec.DecodeError, RecursionError):  # of thousands of brackets
                    pass
                else:
                    yield from self.value(found)
                    return
        yield from self._more(line + b"\n")

    def _more(self, text: bytes) -> Iterator[Record]:
        self._new.append(text)
        self._size += len(text)
        if self._size > max(LINE, len(self._text)):  # what is open is not looked at again for each line
            yield from self.idle()

    def idle(self) -> Iterator[Record]:
        if self._new:
            self._text = self._text[self._at :] if self._inside else self._text
            self._at = 0 if self._inside else self._at
            self._text += b"".join(self._new)
            self._new, self._size = [], 0
            yield from self._tokens()

    def close(self) -> Iterator[Record]:
        """What is left in the end is no JSON: a part of some, as lines. Its last word may be cut."""
        yield from self.idle()
        for entry in self._open:
            yield from self._strings(entry[1] if entry else [])
        left = self._text[self._at :].strip()
        if left and (self._inside or left.startswith(b'"')):
            left = _unescaped(left.removeprefix(b'"')) + "\u2026".encode()
        yield from self._plain(left, "")
        self._text, self._at, self._open, self._whose, self._inside = b"", 0, [], [], False

    def _plain(self, text: bytes, who: str, host: str = "") -> Iterator[Record]:
        if not host:
            yield from self._passing.see(text)
        for made in (self._lines.add(text), self._lines.end()):
            for record in made:
                yield record._replace(speaker=who or record.speaker, host=host or record.host)
        self.first, self.last = self._lines.first, self._lines.last

    def _tokens(self) -> Iterator[Record]:
        if self._inside:
            yield from self._string()
        open_string = self._inside
        for match in () if self._inside else _TOKEN.finditer(self._text, self._at):
            yield from self._gap(match.start())
            if match[0] == b'"':
                self._at, open_string = match.start(), True
                break
            self._at = match.end()
            yield from self._token(match[0], match.start())
        if not open_string:
            yield from self._gap(len(self._text))
            self._at = len(self._text)
        elif not self._inside and len(self._text) - self._at > LONG:
            yield from self._given_up()
            self._at, self._inside = self._at + 1, True
            yield from self._tokens()
            return
        # what has been dealt with goes; an open string or object waits for its end
        start = next((entry[0] for entry in self._open if entry is not None), self._at)
        if len(self._text) - start > WHOLE:
            yield from self._given_up()
            start = self._at
        self._text, self._at = self._text[start:], self._at - start
        self._open = [entry and (entry[0] - start, entry[1]) for entry in self._open]

    def _gap(self, end: int) -> Iterator[Record]:
        """What stands outside of strings is no JSON where it has words."""
        if end - self._at > _GAP and matters(gap := self._text[self._at : end]):
            yield from self._plain(gap, "")

    def _token(self, token: bytes, at: int) -> Iterator[Record]:
        if token == b"{":
            yield from self._given_up()
            self._open.append((at, []))
            self._whose.append(self._whose[-1] if self._whose else "")
        elif token == b"}":
            inner = self._open.pop() if self._open else None
            who = self._whose.pop() if self._whose else ""
            if inner is not None:
                yield from self._object(self._text[inner[0] : self._at], inner[1], who)
        elif self._open and (entry := self._open[-1]) is not None:
            entry[1].append(token)
        else:
            yield from self._strings([token])

    def _given_up(self) -> Iterator[Record]:
        """The innermost open object is not waited for."""
        outer = self._open[-1] if self._open else None
        if outer is not None:
            names = [token[1:-1].decode("utf-8", "replace") for token in outer[1] if len(token) < LINE]
            self._whose[-1] = self._whose[-1] or by(dict(pairwise(names)))
            yield from self._strings(outer[1])
            self._open[-1] = None

    def _string(self) -> Iterator[Record]:
        """The next part of a long string."""
        match = _INSIDE.match(self._text, self._at)
        end = match.end() if match else self._at
        ended = self._text[end : end + 1] == b'"'
        if not ended:  # no escape has a blank in it
            blank = self._text.rfind(b" ", self._at, end) + 1
            end = blank if blank > self._at or end - self._at < LINE else end
        for record in self._lines.add(_unescaped(self._text[self._at : end])):
            yield record._replace(speaker=(self._whose[-1] if self._whose else "") or record.speaker)
        if ended:
            yield from self._lines.end()
            self._inside = False
        self._at = end + ended

    def _object(self, text: bytes, strings: list[bytes], who: str) -> Iterator[Record]:
        try:
            found = msgspec.json.decode(text.decode("utf-8", "replace"))
        except (msgspec.DecodeError, RecursionError):
            yield from self._strings(strings)
        else:
            yield from self.value(found, who)

    def _strings(self, tokens: list[bytes]) -> Iterator[Record]:
        for token in tokens:
            if self._lines.matters(token):
                yield from self._plain(_unescaped(token[1:-1]), self._whose[-1] if self._whose else "")

    def value(self, found: object, who: str = "", deep: int = 0) -> Iterator[Record]:
        """The records in a value. `who`: by whom it is, where that is known not to be the kernel; `deep`: within how
        many others it is."""
        if deep > _DEEPEST:
            yield Record(None, lost=1)
        elif isinstance(found, str):
            yield from self._plain(found.encode("utf-8", "replace"), who)
        elif isinstance(found, list):
            for each in found:
                yield from self.value(each, who, deep + 1)
        elif isinstance(found, dict):
            who = who or by(found)
            texts = next((texts for name in _TEXTS if (texts := _texts(found.get(name)))), [])
            if not texts and not ENTRY.isdisjoint(found) and (who or "MESSAGE" in found):
                yield Record(None, lost=0 if who else 1)  # journalctl leaves out what is long
            elif not texts:
                for each in found.values():
                    if not isinstance(each, str) or self._lines.matters(each.encode("utf-8", "replace")):
                        yield from self.value(each, who, deep + 1)
            elif not ENTRY.isdisjoint(found):
                self._note(texts[0])
                host, ids = whose(found)
                for text in texts:
                    yield from whole(text, Record(text, seconds(found), speaker=who, host=host, ids=ids))
            elif "msg" in found and isinstance(found.get("time"), float):  # dmesg's: an object is a record
                self._note(f"[{found['time']:12.6f}] {texts[0]}")
                yield from self._passing.tell("", int(found["time"]))
                for text in texts:
                    yield from whole(text, Record(text, speaker=who))
            else:
                host, _ = whose(found)
                for text in texts:
                    if host and not who:
                        yield from self._passing.tell(host, -1 if (at := clock(text[:_HEAD])) is None else at)
                    yield from self._plain(text.encode("utf-8", "replace"), who, host)
                self._note(texts[0])


def _unescaped(text: bytes) -> bytes:
    """What stands between a JSON string's quotes; as it is where that is no JSON."""
    try:
        found = msgspec.json.decode(b'"' + text + b'"', type=str)
    except msgspec.DecodeError:
        return text.replace(b"\\r\\n", b"\n").replace(b"\\n", b"\n")
    return found.encode("utf-8", "replace")


def _texts(value: object) -> list[str]:
    """The strings of a field: one, a list of them, or the journal's list of bytes, for what is no UTF-8."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        return []
    if all(isinstance(each, int) and 0 <= each < 256 for each in value):
        return [bytes(value).decode("utf-8", "replace")]
    found = [_texts(each) for each in value]
    return [text for texts in found for text in texts] if all(found) else []
