"""What records are in a log's text, whatever wrapped them? Loggers, dmesg's options, JSON, terminals, trackers.

Formats with a structure of their own (JSON, the journal's export and verbose forms, /dev/kmsg): host/structured.py.
Here: lines as people have them, with colours, escapes, quotes and HTML undone, and put together where a terminal broke
them. Lines that can have nothing to do with split locks are counted and not looked at: a log is millions of them.
"""

from __future__ import annotations

import html
import re
from typing import NamedTuple

from splitlock.linux import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from splitlock.host.log.passing import Passing


class Record(NamedTuple):
    """One record, or a number of them that say nothing."""

    text: str | None  #: None: it carries no words, or none that matter
    time: float | None = None  #: seconds since 1970; None: the log does not tell
    lost: int = 0  #: records known to be lost before it
    live: bool = False  #: of this machine's present boot: its tasks may still run
    speaker: str = ""  #: who wrote it, where that is known not to be the kernel
    read: int = 1  #: lines or records that it stands for
    since_boot: float | None = None  #: seconds by the kernel's clock, of `live` ones; None: the log does not tell
    hole: str = ""  #: what is missing before it
    host: str = ""  #: whose kernel's it is, as far as the log tells
    ids: tuple[str, str] = ("", "")  #: of the machine and of its boot, as the journal has them
    anew: bool = False  #: a boot begins here, whose first line may be missing


LINE = 1 << 16  #: bytes of a line that are looked at at once: garbage may never end
_DUMP = 300  # lines behind an oops: registers, call trace
_SHORT = 16  # characters; a shorter line may be the rest of an address
_JOINED = 7  # lines that one message may be broken into
_COLOUR = re.compile(rb"\x1b\[[0-9;:?]*[A-Za-z]|\x1b[()][A-Za-z0-9]|\x1b\][^\x07\x1b]{0,200}(?:\x07|\x1b\\)")
_ESCAPE = re.compile(r"#(0[0-3][0-7])")  # rsyslog's, for control characters
_QUOTE = re.compile(r"(?:[>|:+] ?|\s)*")  # mail's, trackers' and margins
_NO_WIDTH = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]|<wbr ?/?>")
_BOLD = re.compile(r"(?<!\S)(\*\*|__|\*|~~)(?=\S)(.{0,200}?(?:plit lock|traps: ).{0,400}\w)\1(?!\w)")  # markdown's
_PARAGRAPH = 2048  # characters of a line in which that is looked for
_START = r"\[ *\d+\.\d{6}\]|\[\w{3} \w{3} +\d+ [\d:]{8} \d{4}\]"
#: How a line of a log begins; what does not may be the rest of the line before.
_STAMP = re.compile(
    rf"\s*+(?:<\d+>|[>|]|{_START}|\[[ +\w].{{0,30}}?\]|[A-Z][a-z]{{2}} [ \d]\d \d\d:|\w{{3}} \d{{4}}-|\d{{4}}-\d\d-\d\d"
    r"|\w{1,20} {0,20}: ?\w{1,20} {0,20}: |\d{1,20},\d{1,20},\d{1,20},|\S{1,255}?\.log\S{0,40}:|\{)"
)
_BROKEN = re.compile(r"(plit lock detected) {2,}(?=: )")  # dmesg's margin, where a paste made blanks of line breaks
_SPLIT = re.compile(
    rf" (?=(?:<\d+>)?(?:{_START}) |(?:[A-Z][a-z]{{2}} [ \d]\d [\d:]{{8}}|\d{{4}}-\d\d-\d\dT\S+) [^\s:]+ \S+: )"
)
_CLOCK = re.compile(r"\[ *(\d{1,12})\.\d{1,9}\](?: ?\[ *[TC]\d+\])?")  # CONFIG_PRINTK_CALLER's behind it
_REPEATED = re.compile(r"message repeated \d+ times: \[")  # rsyslog's
_MARGIN = " " * 8  # dmesg's, of a record's further lines, is as wide as its time stamp
_TAG = re.compile(r"<br ?/?>")
_HTML = re.compile(r"&[#\w]{2,8};|<br ?/?>")
# `Jun 30 19:44:44 box kernel: `, `... root[4243]: `, RFC 5424's `1 2026-06-30T19:44:44Z box root 4243 - - `
# busybox: `Jun 30 19:44:44 box kern.warn kernel: `
# (dmesg has a comma in its ISO times, and words of the kernel's own behind them: `Command line: `).
_SYSLOG = re.compile(
    r"(?:<\d+>)?(?:1 )?(?:(?:[A-Z][a-z]{2} [ \d]\d [\d:]{8}(?:\.\d+)?|\w{3} \d{4}-\d\d-\d\d [\d:.]+ \S+"
    r"|\d{4}-\d\d-\d\dT[^\s,]+|\d{4}-\d\d-\d\d [\d:]{8}(?:[.,]\d+)?(?: ?[+-]\d\d:?\d\d)?"
    r"(?! Command line| alignment check)|\d{9,}\.\d+) [^\s:\[\]/]+ (?:[a-z]\w*\.[a-z]+ )?"
    r"(?:([^\s:\[\]]{1,64}(?:\[\d+\])?): |(\S{1,64} (?:\d+|-)) - - )"
    r"|\[ *\d+\.\d+(?: <[^>]*>)?\] [^\s:\[\]/]+ ([^\s:\[\]]{1,64}\[\d+\]): )"
)
_FACILITY = re.compile(r"<(\d{1,3})>|(\w+) +:\w+ *: ")
LOCAL = "localhost"  #: the host of lines without a name: a machine has it too until it was told its own
QUOTED = "whoever chose a name that the kernel printed"  #: a part of a record, not at its start
_KERNEL = ("kernel", "kernel -", "kernel[0]", "kern", "vmunix", "klogd")
_USER = (1, "user", "1")  #: facility of klogd's lines too: the C library makes it of the kernel's, which is 0
# Whatever time a logger writes: a program's name and number directly before the kernel's words.
_TAGGED = re.compile(r"(?:^|\s)([^\s:\[\]]{1,64}\[\d+\]): (?=x86/split lock|traps: |(?:split_|handle_)\w+: \d)")
JOURNALD = "systemd-journald"  #: its own word: what it missed
_MARKS = "> |\t:+"  # with which a quoted or indented line begins
_FRAME = " \t`|"  # behind a line: markdown's
_STAND_FOR_NOTHING = frozenset("\0\r")


def matters(line: bytes) -> bool:
    """May it have to do with split locks, or with how the machine booted? Asked of every line of every log."""
    return (
        b"plit" in line or b"bus_lock" in line or b"suppress" in line or b"messages" in line or b"x86/s" in line
        or b"lignment" in line or b"traps:" in line or b"0x33" in line or b"Linux version" in line
        or b"ommand line" in line or b"ypervisor det" in line or b"tdx: " in line
        or b"ernel logging (" in line or b"pping message" in line or b"log source =" in line
        or b" [#" in line or b"Code: " in line or b"IP: 0010:" in line or b" Comm: " in line
        or b"cut here" in line or b"WARNING: " in line
        or b"BUG: " in line or b"INFO: " in line or b"NMI back" in line  # linux/others.py: an oops without its head
        or b"_lock t" in line or b"check ip:" in line or b"lock det" in line or b"trap at a" in line
    )  # fmt: skip


def plain(line: bytes) -> str:
    """A line with its encoding and escapes undone: HTML's, rsyslog's, a serial console's."""
    text = line.decode("utf-8", "replace")
    if "\r" in text or "\0" in text:
        text = "".join(character for character in text if character not in _STAND_FOR_NOTHING)
    if not text.isascii() or "<wbr" in text:
        text = _NO_WIDTH.sub("", text)
    if len(text) <= _PARAGRAPH and ("*" in text or "__" in text or "~~" in text):
        text = _BOLD.sub(r"\2", text)
    if _HTML.search(text):
        text = html.unescape(_TAG.sub("\n", text))
    if "\xa0" in text or "\\" in text:  # of a web page; markdown's
        text = text.replace("\xa0", " ").replace("\\_", "_").replace("\\#", "#")
    if "#0" in text:
        text = _ESCAPE.sub(lambda match: match[0] if match[1] == "012" else chr(int(match[1], 8)), text)
    return text.rstrip(_FRAME) if text.endswith(("`", "|")) else text


def kernels(name: str) -> bool:
    """Is a syslog tag the kernel's, however a logger spells it?"""
    return name.rstrip(": ").lower() in _KERNEL


def other(facility: object, name: str) -> str:
    """Who says that words are not the kernel's, by a facility (None: not told) and a name; empty: nobody does."""
    if name and kernels(name):
        return "" if facility in (None, 0, "0", "kern", "kernel", *_USER) else "user space"
    return name or ("" if facility in (None, 0, "0", "kern", "kernel") else "user space")


def speaker(text: str) -> str:
    """Who says that a line is not the kernel's; empty: nobody does."""
    given, named = _FACILITY.match(text), _SYSLOG.match(text)
    facility = (int(given[1]) >> 3 if given[1] else given[2]) if given else None
    name = (named[1] or named[2] or named[3]) if named else ""
    if not name and (tagged := _TAGGED.search(text)):
        name = tagged[1]
    return other(facility, name)


# As _SYSLOG has it, and as `journalctl -o short-monotonic`.
_HOST = re.compile(
    r"(?:<\d+>)?(?:1 )?(?:[A-Z][a-z]{2} [ \d]\d [\d:]{8}(?:\.\d+)?|\w{3} \d{4}-\d\d-\d\d [\d:.]+ \S+"
    r"|\d{4}-\d\d-\d\dT[^\s,]+|\d{4}-\d\d-\d\d [\d:]{8}(?:[.,]\d+)?(?: ?[+-]\d\d:?\d\d)?|\d{9,}\.\d+|\[ *\d+\.\d{6}\])"
    r" ([^\s:\[\]/]+) (?:[a-z]\w*\.[a-z]+ )?(?:(?:kernel|[^\s:\[\]]{1,64}\[\d+\]|rsyslogd): |\S{1,64} (?:\d+|-) - - )"
)
_ZEROS = b"\0" * 32  # what a file system leaves after a crash where lines were to be


def host(text: str) -> str:
    """Which machine a line of syslog is of; empty: it does not say."""
    found = _HOST.match(text)
    return found[1] if found else ""


def begins(before: str) -> bool:
    """May the kernel's message begin behind that, as far as the line tells? A name within one may hold its words."""
    clocks = list(_CLOCK.finditer(before))
    named = _SYSLOG.match(before)
    if not clocks and not named:
        return before.rstrip()[-1:] in ("", *":]>|-\"'`.,(=")
    end = max(clocks[-1].end() if clocks else 0, named.end() if named else 0)
    tags = _REPEATED.sub("", before[end:]).split()
    return not tags or tags[-1] == "kernel:" or all(word.endswith((":", "]", ">")) for word in tags)


def clock(before: str) -> int | None:
    """The kernel's clock in front of a message, in whole seconds since boot; None: there is none."""
    found = list(_CLOCK.finditer(before))
    return int(found[-1][1]) if found else None


class Lines:
    """Lines into records. `pasted`: several may stand in one. `passing`: is told of all."""

    def __init__(self, *, pasted: bool = True, passing: Passing | None = None) -> None:
        self._pasted, self._passing = pasted, passing
        self.first = self.last = b""  #: of all lines that were given, not empty
        self._rest = b""
        self._held: str | None = None  # the next line may belong to it
        self._parts = self._dump = self._passed = 0
        self._pieces: list[str] = []  # what is held, as it was broken
        self._width = 0  # of lines that went on in the next one

    def matters(self, line: bytes) -> bool:
        """May a line have to do with split locks, by itself or because it follows an oops?"""
        return bool(self._dump) or matters(line)

    def add(self, chunk: bytes) -> Iterator[Record]:
        """The records of a chunk of text, in which a line may begin or end."""
        whole, line_break, rest = (self._rest + chunk).rpartition(b"\n")
        if len(rest) > LINE:  # no end in sight: looked at in pieces, cut at a blank
            pieces, start = [whole] if line_break else [], 0
            while len(rest) - start > LINE:
                end = rest.rfind(b" ", start + LINE // 2, start + LINE) + 1 or start + LINE
                pieces.append(rest[start:end])
                start = end
            whole, line_break, rest = b"\n".join(pieces), b"\n", rest[start:]
        self._rest = rest
        if line_break:
            yield from self._blocks(_COLOUR.sub(b"", whole) if b"\x1b" in whole else whole)

    def _blocks(self, whole: bytes) -> Iterator[Record]:
        """Some hundred lines at a time, most of which need no look at each."""
        start = 0
        while len(whole) - start > LINE:
            end = whole.rfind(b"\n", start, start + LINE)
            end = end if end >= 0 else whole.find(b"\n", start)
            if end < 0:
                break
            yield from self.take(whole[start:end])
            start = end + 1
        yield from self.take(whole[start:])

    def end(self) -> Iterator[Record]:
        """The last line, if nothing ended it, and what waited for more."""
        rest, self._rest = self._rest, b""
        if rest:
            yield from self.take(_COLOUR.sub(b"", rest))
        yield from self.idle()

    def idle(self) -> Iterator[Record]:
        """What waited for a line that may be long in coming."""
        yield from self._let_go()
        if self._passed:
            passed, self._passed = self._passed, 0
            yield Record(None, read=passed)

    def take(self, whole: bytes) -> Iterator[Record]:
        """The records of whole lines."""
        if _ZEROS in whole:
            yield from self._let_go()
            yield Record(None, read=0, hole="zero bytes are in it where lines were, as a crash leaves them")
            whole = whole.replace(b"\0", b"")  # the next boot's first line stands directly behind
        if self._held is None and not self._dump and not matters(whole):
            self._ends(whole)
            if self._passing:
                yield from self._passing.see(whole)
            yield Record(None, read=whole.count(b"\n") + 1)
            return
        self._ends(whole)
        for line in whole.split(b"\n"):
            if self._passing and (seen := [*self._passing.see(line)]):
                yield from self._let_go()
                yield from seen
            if self._held is None and not self._dump and not matters(line):
                self._passed += 1
            else:
                yield from self._look(line)
        if self._passed:
            passed, self._passed = self._passed, 0
            yield Record(None, read=passed)

    def _ends(self, whole: bytes) -> None:
        """Keep the first and the last line."""
        if not self.first:
            self.first = whole.lstrip().partition(b"\n")[0]
        self.last = whole.rstrip().rpartition(b"\n")[2] or self.last

    def _look(self, line: bytes) -> Iterator[Record]:
        text = plain(line[: 4 * LINE])
        if self._held is not None:
            joined = self._join(self._held, text)
            if joined is not None:
                self._held = joined
                self._passed += 1
                return
            yield from self._let_go()
        if self._dump or matters(line):
            self._held, self._parts, self._pieces = text, 1, [text]
        else:
            self._passed += 1

    def _let_go(self) -> Iterator[Record]:
        held, self._held = self._held, None
        if held is None:
            return
        who, where = speaker(held), host(held)
        if "plit lock detected  " in held:
            held = _BROKEN.sub(r"\1\n", held)
        pieces = held.split("\n")
        if self._pasted and (" [" in held or " <" in held):
            pieces = [piece for line in pieces for piece in _SPLIT.split(line)]
        for number, piece in enumerate(pieces):
            if (
                "plit lock detected" in piece
                or "alignment check: " in piece
                or "IP: 0010:" in piece
                or " Comm: " in piece
            ):
                self._dump = _DUMP
            elif self._dump:
                self._dump -= 1
            words, _, rest = piece.partition("#012")
            quoted = self._quoted(words)
            if not quoted and "plit lock detected" in words:  # the break is the kernel's own
                words, rest = piece, ""
            yield Record(words, speaker=who or quoted, read=0 if number else 1, host=(number and host(piece)) or where)
            if rest:
                yield Record(rest, speaker=who or QUOTED, read=0, host=where)

    def _quoted(self, text: str) -> str:
        """Who else than the kernel says something in a line of its log: nobody, or whoever chose a name."""
        if text.startswith(_MARGIN) and self.first[:1] in (b"[", b"<") and not _STAMP.match(text.lstrip()):
            return QUOTED
        said = log.parse(text)
        before = text[: text.find(said.text)] if said is not None else ""
        known = _CLOCK.search(before) or _SYSLOG.match(before)
        return QUOTED if known and not begins(before) else ""

    def _join(self, held: str, line: str) -> str | None:
        """The line before with this one behind it, where a terminal or a mail program made two of it; else None."""
        mark = _QUOTE.match(held)[0] if held[:1] in _MARKS else ""  # type: ignore[index]
        rest = line.removeprefix(mark)
        # most logs begin each line alike
        alike = rest[:1] == held[len(mark) :][:1] and len(rest) > _SHORT and rest[-1:] != "]"
        if alike or not rest.strip() or self._parts > _JOINED:
            return None
        found = _last(held)
        ways = [held + rest, f"{held.rstrip()} {rest.lstrip()}"]
        if held.endswith("="):  # mail, quoted-printable
            ways.insert(0, held[:-1] + rest)
        if len(held) < self._width:  # a terminal gives no blanks at the end of a line
            ways.reverse()
        joined, pieces = None, [*self._pieces, rest]
        if found is None or found.kind == "unknown":
            if not _STAMP.match(rest):
                joined = next((way for way in [*ways, *_together(pieces)] if _better(way, rest)), None)
                if joined is None and found is not None and _a_part(rest):
                    joined = "".join(pieces)
                elif joined is not None:
                    pieces = [joined]
        elif _continues(found, rest) and _TAIL.fullmatch(held[held.rfind(found.text) + len(found.text) :]):
            joined = next((way for way in ways if _more(found, way)), None)
            pieces = [joined or ""]
        if joined is not None:
            self._width = max(self._width, len(held) if self._parts == 1 else 0)
            self._parts += 1
            self._pieces = pieces
        return joined


def _together(pieces: list[str]) -> list[str]:
    """What may have been broken so: at a column, with or without the blanks at its ends, or at blanks."""
    width = max(map(len, pieces))
    return [
        "".join(pieces),
        "".join(piece if len(piece) == width else f"{piece} " for piece in pieces),
        " ".join(piece.strip() for piece in pieces),
    ]


def _a_part(rest: str) -> bool:
    """May a line be a part of a sentence that was broken into more than two?"""
    alone = _last(rest)
    return not matters(rest.encode()) if alone is None else alone.kind == "unknown"


_HEX = re.compile(r"\s*(?:0?x)?[0-9a-f]{1,16}\s*")
_IN = re.compile(r"\s*+(?:i?n )?[^\s\[]{0,255}\[?[0-9a-f,]{0,33}\+?[0-9a-f]{0,16}\]\s*+")
_TAIL = re.compile(r"\s*(?:0x?|in? ?.{0,300})?\s*")  # of a message that was broken: what was not understood of it


def _continues(found: log.Line, rest: str) -> bool:
    """May a line be the rest of what was understood: an address's last digits, a mapping?"""
    if found.kind in ("trap", "guest"):
        return _HEX.fullmatch(rest) is not None
    return found.kind == "killed" and found.mapped is None and _IN.fullmatch(rest) is not None


def _more(found: log.Line, way: str) -> bool:
    """Does a text say the same, and more of it?"""
    made = _last(way)
    return made is not None and made.kind == found.kind and made[:7] != found[:7]


def _better(way: str, rest: str) -> bool:
    """Do two lines in one say what neither does?"""
    made, alone = _last(way), _last(rest)
    if made is None or made.kind == "unknown":
        return False
    same = alone is not None and alone[:5] == made[:5] and alone.text != made.text  # its prefix was in the line before
    return alone is None or alone.kind == "unknown" or same


def _last(text: str) -> log.Line | None:
    found = None
    for line in log.lines(text):
        found = line
    return found


def records(chunks: Iterable[bytes], lines: Lines) -> Iterator[Record]:
    """All of a text's lines."""
    for chunk in chunks:
        yield from lines.add(chunk)
    yield from lines.end()
