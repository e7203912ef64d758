"""What has one boot of one machine said of split locks, as far as a log has it?"""

from __future__ import annotations

import re
from collections import Counter

from splitlock.host.log.wrappings import begins, clock
from splitlock.linux import versions
from splitlock.report.lines import count
from splitlock.report.status import KERNEL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.host.log.wrappings import Record
    from splitlock.linux.dump import Dump
    from splitlock.linux.log import Line

#: Lines of which each says that a split or bus lock happened. (`msr` follows a `trap` of the same lock.)
FOUND = ("trap", "guest", "killed", "oops", "alignment")
NAMES = 10_000  #: of tasks, that are kept apart
_BANNER = re.compile(r"Linux version (\d\S*) \(")
# rsyslog's runtime/ratelimit.c and imjournal.c; journald-syslog.c; syslog-ng's logqueue.c.
_UNHEARD = re.compile(
    r"\b(?:(rsyslogd)[^\s:]{0,30}: ((?:[^:]{1,99}: ?)?\d{1,12} messages lost|[^:]{0,99}:? ?begins? to drop messages)"
    r"|(systemd-journald)[^\s:]{0,30}: (Forwarding to syslog missed \d{1,12} messages)"
    r"|(syslog-ng)[^\s:]{0,30}: (.{0,99}dropping messages?))"
)
_SPEAKS = 400  # characters in which a daemon's name and its word stand
_HOLES = 4  # that are named
_BOOT_WORDS = 1 << 16  # characters of a boot's lines


class Boot:
    """The last boot of a machine in a log; told of its records in order."""

    def __init__(self) -> None:
        self.clocked = False  # does the kernel's clock stand before its messages?
        self.id = ""  #: as the journal has it
        self.begin()

    def begin(self, *, unseen: bool = False) -> None:
        """A boot begins: what was before is not of this one. `unseen`: its first line is not there yet."""
        self.unseen = unseen
        self.release: str | None = None
        self.host = ""  #: whose boot it is, where the log says so
        self.banner = ""  #: the kernel's first line
        self.boot = ""  #: the lines of the boot that others ask for
        self.mode: str | None = None
        self.told_by = ""  #: the file that the mode stands in
        self.lost = self.suppressed = self.signals = self.found = 0
        self.tasks: Counter[tuple[str, str, bool]] = Counter()  #: by name, exception, whether KVM says it is a guest's
        self.dumps: list[Dump] = []
        self.said: list[Line] = []  #: the kernel's words about its detection, as it booted
        self.holes: dict[str, None] = {}  #: what is missing between its beginning and its end, each once
        self.listens = True  #: did whoever wrote it go on to hear the kernel?
        self.stuck = False  #: a guest's kernel could not turn detection off, and a program of its got no further

    def comes(self, record: Record) -> None:
        """A record, before what it says is looked at."""
        known = bool(record.ids[1]) and bool(self.id)
        if record.anew or (known and self.id != record.ids[1]):
            self.begin(unseen=True)
        self.id = record.ids[1] or self.id
        self.lost += record.lost
        hole = record.hole or (_unheard(record.text) if record.text else "")
        if hole:
            self.holes[hole] = None
        listens = _listens(record.text) if record.text else None
        self.listens = self.listens if listens is None else listens

    def starts(self, record: Record) -> None:
        """A line of the kernel's as it boots. Its first is of second 0, and a name may hold another."""
        text = record.text or ""
        banner = _BANNER.search(text)
        before = text[: banner.start()] if banner else ""
        seconds = clock(before) if record.since_boot is None else int(record.since_boot)
        if banner and begins(before) and not (seconds or (seconds is None and self.clocked)):
            self.begin()
            self.host = record.host
            self.release, self.banner = banner[1], text[banner.start() :].strip()
        if len(self.boot) < _BOOT_WORDS:
            self.boot += text + "\n"

    def take(self, line: Line, source: str) -> None:
        """One sentence of its kernel's. `source`: the file that it stands in."""
        if line.kind == "mode":
            if line.detail:
                self.mode, self.told_by = line.detail, source
            self.said.append(line)
        elif line.kind == "msr":
            self.stuck = True
        elif line.kind == "suppressed" and line.exception:
            self.suppressed += line.number
        elif line.kind == "suppressed":  # of a limit that segfaults share
            self.signals += line.number
        elif line.kind == "lost":
            self.lost += line.number
        elif line.kind in FOUND:
            self.found += 1
            key = (line.comm or KERNEL, line.exception, line.kind == "guest")
            if key in self.tasks or len(self.tasks) < NAMES:
                self.tasks[key] += 1

    def beginning(self) -> str:
        """Why its first line is not there; empty: it is."""
        if self.release is not None:
            return ""
        first = "the kernel's first line (Linux version ...)"
        if self.unseen:
            return f"the machine was started anew, and {first} of that boot is not in it: the beginning is missing"
        return f"{first} is not in it: the beginning is missing, or some levels"

    def missing(self) -> list[str]:
        """What is known not to be in it, though the kernel said it. What a rate limit held back it did not say."""
        said = [*self.holes][:_HOLES]
        said += [] if self.listens else ["rsyslogd stopped reading the kernel's log"]
        said += [f"{count(self.lost, 'record')} lost"] if self.lost else []
        if self.signals and self.mode == "fatal":
            held = count(self.signals, "line")
            said.append(f"{held} of signals held back by the kernel's rate limit: of segfaults, or of split locks")
        return said

    def deaf(self) -> str:
        """Why this kernel would log no split lock that a program takes; empty: it would, or nobody knows."""
        if self.mode == "off":
            return "detection is off: nothing is ever logged"
        if self.mode == "fatal" and {line.exception for line in self.said} == {"#DB"}:
            return "mode fatal by #DB: programs get SIGBUS, and no line says so"
        if self.mode is None and self.release is not None and not self.found:
            return (
                "at boot the kernel said nothing of detection: the processor has none that it uses, it is off (silent "
                f"since Linux {versions.OFF_SAYS_NOTHING.first}), or ratelimit detects nothing for want of #DB"
            )
        return ""

    def unarmed(self) -> str:
        """Why its word at boot may be untrue; empty: it is not."""
        release = versions.release(self.release or "")
        if {line.exception for line in self.said if line.kind == "mode"} != {"#DB"} or release is None:
            return ""
        if versions.has(versions.AMD_BUS_LOCKS, release) == "yes":
            return ""
        first = versions.AMD_BUS_LOCKS.first
        return (
            f"on a processor of AMD's Linux before {first} says that it detects bus locks, and does not: "
            "`splitlock status` tells"
        )


def _unheard(text: str) -> str:
    """What a syslog daemon says of messages that it lost."""
    found = _UNHEARD.search(text[:_SPEAKS])
    return ": ".join(word for word in found.groups() if word) if found else ""


def _listens(text: str) -> bool | None:
    """Does rsyslogd say that it begins (True) or ends (False) to read the kernel's log?"""
    if "log source = /proc/kmsg started" in text:
        return True
    return False if "Kernel logging (proc) stopped" in text else None
