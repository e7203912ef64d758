"""What does a text say of split locks? The grammar of the kernel's lines, made from the table of its sentences."""

from __future__ import annotations

import re
from functools import lru_cache
from string import Formatter
from typing import Literal, NamedTuple

from splitlock.linux.sentences import PREFIX, SENTENCES, Sentence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

#: trap        a task took a split or bus lock and went on
#: guest       a guest's `#AC` in a mode that kills its virtual machine: SIGBUS for the VMM. `detail`: fatal, bogus
#: killed      SIGBUS after `#AC`: mode fatal, or the task asked for alignment checks. `mapped`: where it ran
#: mode        what is said at boot. `detail`: off, warn, fatal, ratelimit:N
#: note        something else that is said at boot
#: oops        a split lock in kernel mode; the dump that follows is linux/oops.py's
#: alignment   an `#AC` in kernel mode that the kernel did not take for a split lock
#: msr         a guest's kernel cannot turn detection off, and does not get on
#: suppressed  `number` lines held back by a rate limit. `detail`: the function that would have said them, or `signals`:
#:             lines of any signal, which need not be about split locks
#: lost        `number` records of any kind lost on the way
#: unknown     the kernel's prefix or a piece of one of its sentences, and not understood: cut, damaged, or new
Kind = Literal[
    "trap", "guest", "killed", "mode", "note", "oops", "alignment", "msr", "suppressed", "lost", "unknown"
]  # fmt: skip


class Mapped(NamedTuple):
    """What a `traps:` line says of where the code was mapped (mm/memory.c: print_vma_addr())."""

    file: str  #: the last part of its path
    start: int  #: address of the mapping
    size: int  #: bytes
    offset: int | None  #: of the instruction in the file; None: this kernel does not say


class Line(NamedTuple):
    """One sentence of the kernel's."""

    kind: Kind
    exception: str  #: #AC, #DB or empty
    comm: str  #: the task's name
    pid: int  #: as the kernel's current->pid has it: a thread's; 0: none
    address: int | None  #: as logged; None where there is none, or somebody took it out
    number: int  #: of lines or records for `suppressed` and `lost`; else 1
    detail: str
    text: str  #: the kernel's words
    stamp: str  #: what stood before them
    mapped: Mapped | None = None


# What a pager, journalctl or a person leaves of an address is none; nor is one with a blank in it.
_CUT = r"(?![0-9a-fA-F…>?*]|\.\.| [0-9a-fA-F]+\s*$)"
# A name is 15 bytes of whatever its owner likes, slashes and blanks among them (`CPU 1/KVM/3302738 took`); in
# /dev/kmsg each may be an escape of four characters.
_FIELDS = {
    "comm": "(.{0,60}?)", "pid": r"(\d{1,10})", "address": rf"([0-9a-fA-F]{{1,16}}){_CUT}", "sp": "([0-9a-f]{1,16})",
    "error": "([0-9a-f]{1,8})", "value": "([0-9a-f]{1,16})", "number": r"(\d{1,6})", "count": r"(\d{1,12})",
    "rate": r"(\d{1,9})", "name": r"(\S{1,64})", "function": "(show_signal(?:_msg)?)",
    "place": r"( in (?:.{1,255}?)\[(?:[0-9a-f]+,)?[0-9a-f]+\+[0-9a-f]+\])?",
}  # fmt: skip
_NUMBERS = {"pid": 10, "address": 16, "count": 10, "rate": 10}
_BREAK = r"(?: ?(?:\n|\r\n|\\n|\\x0a|#012| ))?"  # a line break, as consoles, JSON, /dev/kmsg and rsyslog have it
_PLACE = re.compile(r" in (.*)\[(?:([0-9a-f]+),)?([0-9a-f]+)\+([0-9a-f]+)\]")
# Behind words with no number at their end: nothing that would be more of the sentence. A date may follow.
_END = r"(?!\w)(?! (?!x86/|[A-Z][a-z]{2} +\d|\d{4}-)\w)"


def _pattern(sentence: Sentence) -> str:
    """A regular expression for a sentence; its groups are the template's fields, in order."""
    found = ""
    for words, field, _, _ in Formatter().parse(sentence.template):
        found += re.escape(words) + (_FIELDS[field] if field else "")
    if sentence.kind == "oops":  # the part behind the break may be the next line
        head, _, tail = found.partition(re.escape("\n"))
        return rf"{head}(?:{_BREAK}{tail}|\s*$|\s*[\r\n\"'\\])"
    if sentence.kind in ("trap", "guest"):  # who shortens a line often begins here, or takes the address out
        found = found.replace("\\ 0x" + _FIELDS["address"], " ?(?:0x" + _FIELDS["address"] + ")?")
        found = f"(?:{re.escape(PREFIX)})?" + found.removeprefix(re.escape(PREFIX))
    found = found.replace("0x" + _FIELDS["address"], "0[xX]" + _FIELDS["address"])
    return found + _END if sentence.template[-1].isalpha() else found


def _fields(sentence: Sentence) -> list[str]:
    return [field for _, field, _, _ in Formatter().parse(sentence.template) if field]


def _groups() -> Iterator[tuple[int, tuple[Sentence, list[str]]]]:
    """By the number of the group that is a whole sentence; its fields' groups follow."""
    number = 1
    for sentence in SENTENCES:
        fields = _fields(sentence)
        yield number, (sentence, fields)
        number += 1 + len(fields)


_SENTENCES = re.compile("|".join(f"({_pattern(sentence)})" for sentence in SENTENCES))
_GROUPS = dict(_groups())
# Of a line that a narrow terminal broke there may be any part.
_PART = (
    r"x86/spl(?:i(?:t(?: (?:l(?:oc?)?)?)?)?)?\s*$|plit lock detec|\block detection(?:: ?#|:?\s*$)|_lock trap at"
    r"|detection: #(?:AC|DB): |(?:took a|fatal|bogus) (?:split|bus)(?:_|\s*$)|(?:^\W{0,40}|lock |\bc?k )trap at addr"
    r"|(?:alignment )?check ip:[0-9a-f]"
)
# Where a sentence may begin, and what is a piece of one.
_ANCHOR = re.compile(
    r"x86/split lock|#(?:AC|DB): |traps: |(?:Oops: )?Split lock detected|alignment check: |unchecked MSR access"
    r"|tdx: #AC|\*\* \d|[Mm]issed \d|split_lock_warn: |handle_bus_lock: |show_signal|(?:split|bus)_lock trap"
    rf"|{_PART}"
)
_PIECE = re.compile(
    r"x86/split lock|#(?:AC|DB): .{0,60}/\d+ (?:took|fatal|bogus)|(?:split|bus)_lock trap|Oops: Split lock"
    r"|traps: .{0,60}\[\d+\] trap alignment check|unchecked MSR access error: WRMSR to 0x33"
    rf"|{_PART}"
)
_STOP = re.compile(rf"\n|{re.escape(PREFIX)}")  # one search for both: a line may hold a hundred thousand pieces
_NEEDLES = ("plit lock", "_lock t", "#AC: ", "#DB: ", "lignment check", "callbacks suppressed", "messages dropped",
            "issed ", "0x33 (", "tdx: #AC", "x86/spl", "lock detection", "check ip:", " a split", " a bus",
            "trap at a", "tal split", "gus split")  # fmt: skip


def lines(text: str) -> Iterator[Line]:
    """All that a text says of split locks, in order.

    It may begin with whatever a logger puts there, hold several of the kernel's messages, and end within one.
    """
    if not any(needle in text for needle in _NEEDLES):  # a million other lines a minute
        return iter(())
    return iter(_lines(text))


@lru_cache(maxsize=2)  # a record is asked about by everybody who reads it: its wrapping, the oops's head, the log
def _lines(text: str) -> tuple[Line, ...]:
    return tuple(_found(text))


def _found(text: str) -> Iterator[Line]:
    done = 0
    for anchor in _ANCHOR.finditer(text):
        start = anchor.start()
        if start < done:
            continue
        match = _SENTENCES.match(text, start)
        if match is not None:
            yield _line(match, text[done:start].strip())
            done = match.end()
        elif _PIECE.match(text, start):
            stop = _STOP.search(text, start + 1)
            end = stop.start() if stop else len(text)
            piece = text[start:end].strip()
            yield Line("unknown", "", "", 0, None, 1, "", piece, text[done:start].strip())
            done = end


def parse(text: str) -> Line | None:
    """The first thing that a text says of split locks; None: nothing."""
    return next(lines(text), None)


def _line(match: re.Match[str], stamp: str) -> Line:
    group = match.lastindex or 0
    while group not in _GROUPS:
        group -= 1
    sentence, names = _GROUPS[group]
    given = dict(zip(names, match.groups()[group:], strict=False))
    number = {name: int(value, _NUMBERS[name]) for name, value in given.items() if value and name in _NUMBERS}
    mapped = _PLACE.fullmatch(given.get("place") or "")
    detail = sentence.detail
    if "rate" in number:
        detail += f":{number['rate']}"
    elif mapped:
        detail = mapped[0].strip()
    return Line(
        sentence.kind,  # type: ignore[arg-type]  # one of Kind's: tests/linux/test_log.py
        sentence.exception,
        given.get("comm") or "",
        number.get("pid", 0),
        number.get("address"),
        number.get("count", 1),
        detail,
        match[0].strip(),
        stamp,
        mapped and Mapped(mapped[1], int(mapped[3], 16), int(mapped[4], 16), int(mapped[2], 16) if mapped[2] else None),
    )
