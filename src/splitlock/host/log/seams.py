"""Do the files of one log meet, or may one be missing between them, or behind the last?

Numbers tell (kern.log.1, .2.gz), and the journal's numbers of entries. A date in a name tells only when the file was
put aside, not when the one before was: there the times of the lines beside the seam have to.
"""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from itertools import pairwise
from typing import NamedTuple

from splitlock.host.log.rotated import FAMILIES, age, date, family, number
from splitlock.report.lines import count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_DAY, _HOUR, _YEAR = 86_400, 3_600, 365 * 86_400  # seconds
_SHARE = 0.9  # of the time between two rotations, that a missing file would have covered
_HALF = 0.45  # of the time between two names: if one is missing between them, it covered half of it
_WALL = re.compile(
    rb"(?:<\d+>)?(?:1 )?\[?(?:\w{3} )?(?:(\d{4})-(\d\d)-(\d\d)[ T]|([A-Z][a-z]{2}) ([ \d]\d) )"
    rb"(\d\d):(\d\d):(\d\d)( \d{4})?"
)
_UNIX = re.compile(rb"(\d{9,10})\.\d+ ")
_CLOCK = re.compile(rb"(?:<\d+>)?\[ *(\d{1,12})\.\d+\]")
_MONTHS = (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec")
_REMEDY = "name it too, or look for it in a backup"


class Moment(NamedTuple):
    """When a line was written. `kind`: what its seconds count from: `wall`, `year` (which one is not told), `boot`."""

    kind: str
    seconds: int


def moment(line: bytes) -> Moment | None:
    """When a line of a log was written, by itself; None: it does not tell."""
    if found := _UNIX.match(line):
        return Moment("wall", int(found[1]))
    if found := _WALL.match(line):
        month = _MONTHS.index(found[4]) + 1 if found[4] in _MONTHS else int(found[2] or 0)
        year = int(found[1] or found[9] or 0)
        try:
            day = datetime(year or 2000, month, int(found[3] or found[5]), tzinfo=UTC)
        except ValueError:
            return None
        seconds = int(found[6]) * _HOUR + int(found[7]) * 60 + int(found[8])
        return Moment("wall" if year else "year", int(day.timestamp()) + seconds)
    found = _CLOCK.match(line)
    return Moment("boot", int(found[1])) if found else None


def between(last: bytes, first: bytes) -> int | None:
    """Seconds from one line to the next; None: they do not tell. The kernel's clock begins anew with each boot."""
    one, other = moment(last), moment(first)
    if one is None or other is None or one.kind != other.kind:
        return None
    passed = other.seconds - one.seconds
    if one.kind == "year" and passed < -_DAY:  # New Year
        passed += _YEAR + _DAY
    return None if one.kind == "boot" and passed < 0 else max(passed, 0)


def numbered(paths: list[str]) -> dict[str, str]:
    """What is missing between files that are one log, the oldest first, by their numbers; by the file that follows."""
    found = {}
    for older, newer in pairwise(paths):
        first, last = number(older), number(newer)
        if not _one(older, newer) or first is None or date(newer) is not None:
            continue
        if first - (last or 0) > 1:  # without a number: the one that is written
            found[newer] = _missing(newer, (last or 0) + 1, first - 1)
    return found


def dated(paths: list[str], older: str, newer: str, seconds: int | None) -> str:
    """Why a file may be missing between two of one log of which a date is in the name; empty: none is.

    `seconds`: between the last line of the one and the first of the other. `paths`: all of them.
    """
    one = date(older)
    if one is None or not _one(older, newer):
        return ""
    names = sorted({found[0] for path in paths if _one(path, newer) and (found := date(path)) is not None})
    other = date(newer)
    apart = other[0] - one[0] if other else min((b - a for a, b in pairwise(names)), default=0)
    bound = max(_SHARE * (_DAY if one[1] else _HOUR), _HALF * apart)
    pair = f"{os.path.basename(older)} and {os.path.basename(newer)}"
    if seconds is None:
        return f"whether a file between {pair} is missing is not known: their lines tell no time"
    if seconds < bound:
        return ""
    long = count(seconds // _DAY, "day") if seconds >= 2 * _DAY else f"{seconds // _HOUR} h"
    return f"no line of {long} between {pair}: whether a file is missing there is not known; {_REMEDY}"


def end(paths: list[str]) -> str:
    """What is missing behind the last file, where its name says that it was put aside; empty: nothing."""
    for last in paths:
        row = [path for path in paths if _one(path, last)]
        base = family(os.path.basename(last))
        if last != max(row, key=age) or (len(row) < 2 and base not in FAMILIES) or base == "dmesg":  # a boot's, each
            continue
        if date(last) is not None or number(last) is not None:
            return f"{base} is missing, which was written after {os.path.basename(last)}: {_REMEDY}"
    return ""


def _one(path: str, other: str) -> bool:
    """Are they files of one log?"""
    same = os.path.dirname(path) == os.path.dirname(other)
    return same and family(os.path.basename(path)) == family(os.path.basename(other))


def _missing(path: str, first: int, last: int) -> str:
    name = f"{family(os.path.basename(path))}.{first}"
    return f"{name} is missing: {_REMEDY}" if first == last else f"{name} to .{last} are missing: name them too"


class Header(NamedTuple):
    """Which entries a journal file holds (systemd's JOURNAL_FILE_FORMAT)."""

    sequence: bytes  #: of which numbering
    first: int  #: number of its first entry
    last: int
    since: int  #: microseconds since 1970


HEADER = 200  #: bytes


def header(data: bytes) -> Header:
    """A journal file's header; of one that is cut, zeros."""
    last, first, since = (int.from_bytes(data[at : at + 8], "little") for at in (160, 168, 184))
    return Header(data[72:88], first, last, since)


def journals(headers: Iterable[tuple[str, Header]]) -> dict[str, str]:
    """What is missing between journal files, by the file that follows: entries of which no file has the number.

    The entries of users' journals are counted with the system's.
    """
    found: dict[str, str] = {}
    ends: dict[bytes, tuple[int, str]] = {}
    for path, one in sorted(headers, key=lambda entry: (entry[1].sequence, entry[1].first)):
        if not one.first:
            continue
        before, older = ends.get(one.sequence, (one.first - 1, ""))
        if one.first > before + 1:
            pair = f"{os.path.basename(older)} and {os.path.basename(path)}"
            found[path] = f"{count(one.first - before - 1, 'entry', 'entries')} between {pair} are missing: {_REMEDY}"
        ends[one.sequence] = max((before, older), (one.last, path))
    return found
