"""Whose is a line within an oops's dump? What other processors dump at the same time, line by line.

The order of lines, which tells: a warning has its modules, `CPU:`, registers, trace, `end trace` (kernel/panic.c:
__warn); a lockup the same without an end (kernel/watchdog.c); a hung task a trace alone (kernel/sched/core.c:
sched_show_task). Where a second trace does not say where it ends, what follows is taken for its own.
"""

from __future__ import annotations

import re
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.linux.dump import Dump

_WARNING = re.compile(r"\[ cut here \]|\bWARNING: (?:CPU: \d+ |possible |\S+:\d+ at )")
_LOCKUP = re.compile(r"\bBUG: |\brcu: INFO: |\bINFO: rcu|\bNMI backtrace for cpu|\bINFO: NMI handler")
_TASK = re.compile(r"\bINFO: task |\btask:.{1,32} state:\w")
_CPU = re.compile(r"\bCPU: (\d{1,9}) (?:UID: \d{1,10} )?PID: (\d{1,10}) Comm: ")
_PLACE = re.compile(r"\b[RE]IP: ")
_VALUES = re.compile(r"\bCode: |\b(?:[RE][A-D]X|[RE][SD]I|[RE][BS]P|R\d\d|[CD]R\d|[FG]S|EFLAGS): *[0-9a-fA-F]|\bPKRU: ")
_FRAME = re.compile(r"\+0x[0-9a-fA-F]+/0x|</?[A-Z]+>|\b0x[0-9a-f]{4,16}$|\(\S{1,255}:\d{1,7}\)")


class Others:
    """Follows the dumps of others within one: `take` says of each line whether it is theirs."""

    def __init__(self) -> None:
        self._begin("")
        self._tail = False  # an `end trace` of theirs is still to come

    def _begin(self, kind: str) -> None:
        self._kind, self._known, self._placed, self._tracing = kind, False, False, False

    def take(self, line: str, dump: Dump, *, traced: bool) -> bool:
        """Is this line another's? `traced`: the oops's own trace has begun."""
        for kind, words in (("warning", _WARNING), ("lockup", _LOCKUP), ("task", _TASK)):
            if words.search(line):
                self._begin(kind)
                return True
        if "---[ end trace " in line:
            return self._ends()
        if not self._kind:
            if traced and "Call Trace:" in line:
                self._begin("task")
                self._tracing = True
            return bool(self._kind)
        return self._within(line, dump, traced)

    def _ends(self) -> bool:
        theirs = self._tail or (self._kind == "warning" and (self._known or self._tracing))
        self._begin("")
        self._tail = False
        return theirs

    def _within(self, line: str, dump: Dump, traced: bool) -> bool:
        if found := _CPU.search(line):
            mine = (int(found[1]), int(found[2])) == (dump.cpu, dump.pid)
            again = dump.cpu is None and self._known
            self._begin("" if mine or again else self._kind)
            self._known = bool(self._kind)
            return self._known
        if "Call Trace:" in line:
            return self._or_back(self._kind == "task" or self._known or traced, traces=True)
        if "Modules linked in:" in line:
            return self._or_back(self._kind != "task" and not self._known)
        if _PLACE.search(line):
            theirs = self._tracing or (self._known and not self._placed)
            self._placed = True
            return self._or_back(theirs)
        if _VALUES.search(line):
            return self._placed or self._tracing
        if self._tracing and _FRAME.search(line):
            if "</TASK>" in line:  # the outermost stack, the last of a trace
                self._tail = self._kind == "warning"
                self._begin("")
            return True
        return self._known and ("Hardware name: " in line or "Workqueue: " in line or "Tainted: [" in line)

    def _or_back(self, theirs: bool, *, traces: bool = False) -> bool:
        """Theirs; or else theirs has ended, and the oops's own goes on."""
        if not theirs:
            self._begin("")
        self._tracing = theirs and (self._tracing or traces)
        return theirs


_NUMBERED = re.compile(r"(?:^|\] *|[a-z]: *|>): [0-9a-f]{4} \[#\d+\]")  # the rest of a head that has a line break
_HEADS = re.compile(r"\[#\d+\]|\[ cut here \]|\bWARNING: |\bBUG: |\bINFO: |NMI backtrace|\bsysrq: |\bOops")
_KERNEL = re.compile(r"\b[RE]IP: (?:0010|0060):")
_LOCKED = re.compile(
    r"\bCode: [^<]{0,400}<(?:f0|(?:66|26|2e|36|3e|64|65|f2|f3)> (?:(?:66|26|2e|36|3e|64|65|f2|f3) ){0,14}f0\b)", re.I
)
_NEEDLES = (
    " Comm: ",
    "[#",
    "IP: 00",
    "Code: ",
    "cut here",
    "WARNING: ",
    "BUG: ",
    "INFO: ",
    "NMI backtrace",
    "sysrq: ",
    "Oops",
)
_DUMP = 200  # lines: a dump's, and those that come between them
_BEFORE = 8  # lines that may stand between `CPU:` and `Code:`


class Headless:
    """Looks for the dump of an oops whose first line is lost: only a split lock's has a line break within its head, and
    a locked instruction at which the kernel stopped has hardly another reason."""

    def __init__(self) -> None:
        self._rest, self._kernel = 0, False
        self._kept: deque[str] = deque(maxlen=_BEFORE)

    @property
    def records(self) -> list[str]:
        """What was seen of the dump that is there."""
        seen = list(self._kept)
        first = max((at for at, text in enumerate(seen) if _CPU.search(text)), default=-1)
        if first < 0:
            first = max((at for at, text in enumerate(seen) if _KERNEL.search(text)), default=len(seen) - 1)
        return seen[first:] if not _NUMBERED.search(seen[-1]) else seen[-1:]

    def feed(self, text: str, *, known: bool) -> bool:
        """Is it there, with this line? Said once of each dump. `known`: the line is a part of an oops with its head."""
        self._rest = _DUMP if known else max(self._rest - 1, 0)
        self._kept.append(text)
        if known or not any(needle in text for needle in _NEEDLES):
            return False
        found = bool(_NUMBERED.search(text))
        if not found and _HEADS.search(text):
            self._rest = _DUMP
            return False
        if self._rest:
            return False
        if "IP: 00" in text:
            self._kernel = bool(_KERNEL.search(text))
        found = found or (self._kernel and bool(_LOCKED.search(text)))
        self._rest = _DUMP if found else 0
        return found
