"""What does a serial log of the probe's image say? It is read as foreign bytes: nothing in it is taken on trust.

A line is `slp1 WORDS *CCCC` (boot/console.c), found wherever it stands by its sum.
"""

from __future__ import annotations

import binascii
import re
from typing import get_args

import msgspec

from splitlock._errors import SplitlockError
from splitlock.report.probe import Access, Clock, ClockSource, Leaf, Mode, Msr, Place, Row

LIMIT = 16 << 20  # bytes that are read of a log; a whole one has 8,000
_LINE = re.compile(rb"slp(\d{1,3}) ([ -~]{1,200}?) \*([0-9a-f]{4})")
_HEX = r"[0-9a-f]"
_START = re.compile(r"start from (\d{1,3})")
_CPUID = re.compile(rf"cpuid ({_HEX}{{8}}) ({_HEX}{{8}}) ({_HEX}{{8}}) ({_HEX}{{8}}) ({_HEX}{{8}})")
_MSR = re.compile(rf"msr ({_HEX}{{8}}) (?:({_HEX}{{16}})|raised (\d{{1,2}}))")
_BEGIN = re.compile(
    rf"begin (\d{{1,3}}) ({'|'.join(get_args(Mode))}) cpl([03]) am([01]) ac([01]) tc([01]) "
    rf"({'|'.join(get_args(Access))})"
)
_END = re.compile(
    rf"end (\d{{1,3}}) (?:done|raised (\d{{1,2}}) error ({_HEX}{{4}}) (at|after|elsewhere)) (right|wrong)"
    rf"((?: {_HEX}{{16}}){{0,3}})"
)
_CLOCK = re.compile(rf"clock (\d{{1,8}}) ({'|'.join(get_args(ClockSource))}) wait (\d{{1,4}})")
_STOP = re.compile(r"stop rows (\d{1,3}) splits (\d{1,3})")


class Log(msgspec.Struct):
    """A log's last run of the image."""

    rows: list[Row]
    cpuid: list[Leaf]
    msrs: list[Msr]
    clock: Clock | None = None
    expected: int | None = None  #: rows, by the line that ends a run
    overflowed: bool = False  #: the image's own stacks ran into each other, and it stopped
    lines: int = 0  #: the probe's
    damaged: int = 0
    foreign: int = 0
    resumed: int = 0  #: the row at which the log takes up a run that began before it

    @property
    def over(self) -> bool:
        """Has the image said its last line?"""
        return self.expected is not None or self.overflowed


def read(raw: bytes) -> Log:
    """Read a serial log. Raises SplitlockError where another version of the image wrote it."""
    log = Log([], [], [])
    begun: Row | None = None
    position = 0
    for found in _LINE.finditer(raw[:LIMIT]):
        log.foreign += _lines(raw[position : found.start()])
        position = found.end()
        version, words, told = found.groups()
        if binascii.crc_hqx(b"slp%s %s" % (version, words), 0) != int(told, 16):
            log.damaged += 1
            continue
        if version != b"1":
            raise SplitlockError(f"a log of another version of the probe, {version.decode()}; read it with that one", 2)
        log.lines += 1
        begun = _line(log, words.decode(), begun)
    log.foreign += _lines(raw[position:LIMIT])
    return log


def _lines(raw: bytes) -> int:
    """Lines that hold more than blanks."""
    return sum(bool(line.strip()) for line in raw.splitlines())


def _line(log: Log, words: str, begun: Row | None) -> Row | None:
    """Take one line in; gives the row that is under way after it."""
    if found := _BEGIN.fullmatch(words):
        number, mode, cpl, am, ac, detecting, access = found.groups()
        row = {
            "number": int(number), "mode": mode, "cpl": int(cpl), "am": am == "1", "ac": ac == "1",
            "detecting": detecting == "1", "access": access, "outcome": "unended",
        }  # fmt: skip
        log.rows = [known for known in log.rows if known.number != int(number)]
        log.rows.append(msgspec.convert(row, Row))
        return log.rows[-1]
    if found := _END.fullmatch(words):
        number, vector, error, place, right, cycles = found.groups()
        if begun is None or begun.number != int(number):
            log.damaged += 1  # what it belongs to is lost
            return begun
        begun.outcome = "completed" if vector is None else "raised"
        begun.vector = None if vector is None else int(vector)
        begun.error = error if begun.mode != "real16" else None
        begun.place = msgspec.convert(place, Place | None)
        begun.memory_right = right == "right"
        begun.cycles = [int(one, 16) for one in cycles.split()]
        return None
    if found := _START.fullmatch(words):
        if begun is not None and found[1] == str(begun.number + 1):
            begun.outcome = "reset"
        if found[1] == "0" or log.lines == 1:
            log.rows, log.expected, log.overflowed = [], None, False
            log.resumed = int(found[1])
        log.cpuid, log.msrs, log.clock = [], [], None
        return None
    if found := _CPUID.fullmatch(words):
        log.cpuid.append(Leaf(leaf=found[1], eax=found[2], ebx=found[3], ecx=found[4], edx=found[5]))
    elif found := _MSR.fullmatch(words):
        log.msrs.append(Msr(number=found[1], value=found[2], vector=None if found[2] else int(found[3])))
    elif found := _CLOCK.fullmatch(words):
        log.clock = msgspec.convert({"khz": int(found[1]), "source": found[2], "wait_ms": int(found[3])}, Clock)
    elif found := _STOP.fullmatch(words):
        log.expected = int(found[1])
    elif words == "overflow":
        log.overflowed = True
    else:
        log.damaged += 1
    return begun


def missing(log: Log) -> list[str]:
    """What the log does not tell, each in one line; nothing: it is whole."""
    told = []
    if log.resumed:
        told.append(f"rows 0 to {log.resumed - 1}: run before this log began; start the image again for all of them")
    if log.overflowed:
        told.append("the rest: the image's own stacks overlapped, a fault of the probe's, not of the hypervisor's")
    last = log.rows[-1] if log.rows else None
    broken = last is not None and last.outcome == "unended"
    if log.expected is None:
        where = f"{'within' if broken else 'after'} row {last.number}" if last else "before the first row"
        told.append(f"the end: the log breaks off {where}")
    have = {row.number for row in log.rows if row.outcome != "unended" or (row is last and log.expected is None)}
    numbers = range(log.resumed, log.expected if log.expected is not None else max(have, default=-1) + 1)
    gone = [str(number) for number in numbers if number not in have]
    if gone:
        told.append(f"row{'s' if len(gone) > 1 else ''} {', '.join(gone)}: not in the log, or spoilt there")
    return told
