"""What has the kernel logged of split locks, and how whole is the log that says so? For watch, status and advise alike.

"Nothing was logged" says something only of a log that begins with the boot, lost nothing, and whose kernel detects.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from typing import NamedTuple

from splitlock._errors import SplitlockError
from splitlock.host import tasks
from splitlock.host.causes import Causes
from splitlock.host.log import wrappings
from splitlock.host.log.machine import UNTRACED, Machine
from splitlock.host.log.places import places
from splitlock.host.log.wrappings import JOURNALD, begins, clock
from splitlock.host.oops.explanation import explain
from splitlock.linux import versions
from splitlock.linux.dump import Dump
from splitlock.linux.log import lines
from splitlock.linux.oops import Collector, head
from splitlock.linux.others import Headless
from splitlock.report import status as report
from splitlock.report.lines import count
from splitlock.report.status import KERNEL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from splitlock.host.log.sources import Source
    from splitlock.host.log.wrappings import Record
    from splitlock.host.root import Root
    from splitlock.linux.log import Line
    from splitlock.report.oops import KnownCause

#: Lines of which each says that a split or bus lock happened. (`msr` follows a `trap` of the same lock.)
FOUND = ("trap", "guest", "killed", "oops", "alignment")
_BANNER = re.compile(r"Linux version (\d\S*) \(")
_BOOT = ("Linux version", "Command line:", "Hypervisor detected", "tdx: Guest detected")
_SECONDS = re.compile(rb"\s*(?:<\d+>)?\[ *(\d+)\.\d+")
_SOON = 60  # seconds; a log that ends so early was most likely saved by something that runs at boot
# Last lines of a machine that went down. `Kernel Offset` is a panic's too.
_ENDED = (b"Kernel panic", b"Kernel Offset", b"reboot:", b"Power down", b"Restarting system", b"machine restart")
_DAY = 86_400  # seconds
_NAMES = 10_000  # of tasks, that are kept apart
_HOLES = 4  # that are named
_DUMPS = 20  # oopses of a boot that are kept
_BOOT_WORDS = 1 << 16  # characters of a boot's lines
_FIRST = 60  # characters of a line that is shown as an example


class Said(NamedTuple):
    """A sentence of a record. `dump`: of an oops, all that followed it. Without `line`, records were lost."""

    record: Record
    line: Line | None
    dump: Dump | None = None


class Log:
    """A log that is read once; the attributes are of the last boot in it.

    `ends`: the log goes on to now (True), was saved at boot (False), or nobody knows (None). `ring`: the kernel or the
    journal was asked, for this boot. `untraced`: debug.exception-trace=0 holds here.
    """

    def __init__(self, source: Source, *, ends: bool | None = None, ring: bool = False, untraced: bool = False) -> None:
        self.source, self._ends, self.ring, self._untraced = source, ends, ring, untraced
        self.ran = 0  #: seconds that the machine has run, where that is known
        self._clocked = False  # does the kernel's clock stand before its messages?
        self.read = 0  #: lines or records, of all boots
        self.unknown = 0  #: lines with the kernel's words that are not understood, of all boots
        self.first_unknown = ""
        self.others: Counter[str] = Counter()  #: who else used the kernel's words, and how often
        self._oops: tuple[Said, Collector] | None = None
        self._headless = Headless()
        self._fresh()

    def _fresh(self) -> None:
        """A boot begins: what was before is not of this one."""
        self.release: str | None = None
        self.host = ""  #: whose boot it is, where the log says so
        self.banner = ""  #: the kernel's first line
        self.boot = ""  #: the lines of the boot that others ask for
        self.mode: str | None = None
        self.lost = self.suppressed = self.signals = self.found = 0
        self.tasks: Counter[tuple[str, str, bool]] = Counter()  #: by name, exception, whether KVM says it is a guest's
        self.dumps: list[Dump] = []
        self.said: list[Line] = []  #: the kernel's words about its detection, as it booted
        self.holes: dict[str, None] = {}  #: what is missing between its beginning and its end, each once
        self.listens = True  #: did whoever wrote it go on to hear the kernel?
        self.stuck = False  #: a guest's kernel could not turn detection off, and a program of its got no further

    def __iter__(self) -> Iterator[Said]:
        """What is said of split locks, in order; an oops when its dump has ended."""
        for record in self.source:
            self.read += record.read
            self.lost += record.lost
            self._missing(record)
            if record.lost:
                yield Said(record, None)
            if record.text is None:
                continue
            self._clocked = self._clocked or (not record.speaker and clock(record.text[:_FIRST]) is not None)
            if self._oops and self._oops[1].again(record.text):
                continue
            if self._oops and not self._oops[1].feed(record.text) and self._oops[1].done:
                yield self._dumped()
            some = False
            for line in lines(record.text):
                some = True
                if record.speaker and not (record.speaker == JOURNALD and line.kind == "lost"):
                    self._other(record.speaker)
                else:
                    self._take(line)
                    if line.kind in ("oops", "alignment") and head(record.text):
                        if self._oops:
                            yield self._dumped()
                        self._oops = Said(record, line), Collector(record.text)
                        continue
                yield Said(record, line)
            if self._oops and self._oops[1].done:
                yield self._dumped()
            if not record.speaker and self._headless.feed(record.text, known=self._oops is not None):
                self.unknown += 1
                self.first_unknown = self.first_unknown or "an oops whose first line is missing"
            if not some and not record.speaker and any(word in record.text for word in _BOOT):
                self._boots(record)
        if self._oops:
            yield self._dumped()

    def _missing(self, record: Record) -> None:
        """What is not in the log, and is known not to be."""
        hole = record.hole or (wrappings.unheard(record.text) if record.text else "")
        if hole:
            self.holes[hole] = None
        listens = wrappings.listens(record.text) if record.text else None
        self.listens = self.listens if listens is None else listens

    def _dumped(self) -> Said:
        assert self._oops
        (said, collector), self._oops = self._oops, None
        if len(self.dumps) < _DUMPS:
            self.dumps.append(collector.dump)
        return said._replace(dump=collector.dump)

    def _other(self, speaker: str) -> None:
        self.others[speaker if speaker in self.others or len(self.others) < _NAMES else "(more)"] += 1

    def _boots(self, record: Record) -> None:
        """A line of the kernel's as it boots. Its first is of second 0, and a name may hold another."""
        text = record.text or ""
        banner = _BANNER.search(text)
        before = text[: banner.start()] if banner else ""
        seconds = clock(before) if record.since_boot is None else int(record.since_boot)
        if banner and begins(before) and not (seconds or (seconds is None and self._clocked)):
            self._fresh()
            self.host = wrappings.host(text)
            self.release, self.banner = banner[1], text[banner.start() :].strip()
        if len(self.boot) < _BOOT_WORDS:
            self.boot += text + "\n"

    def _take(self, line: Line) -> None:
        if line.kind == "mode":
            self.mode = line.detail or self.mode
            self.said.append(line)
        elif line.kind == "msr":
            self.stuck = True
        elif line.kind == "suppressed" and line.exception:
            self.suppressed += line.number
        elif line.kind == "suppressed":  # of a limit that segfaults share
            self.signals += line.number
        elif line.kind == "lost":
            self.lost += line.number
        elif line.kind == "unknown":
            self.unknown += 1
            self.first_unknown = self.first_unknown or line.text[:_FIRST]
        elif line.kind in FOUND:
            self.found += 1
            key = (line.comm or KERNEL, line.exception, line.kind == "guest")
            if key in self.tasks or len(self.tasks) < _NAMES:
                self.tasks[key] += 1

    def gaps(self) -> list[str]:
        """Why it is less than all that the kernel said since it booted; empty: it is all. What a rate limit held back
        the kernel did not say."""
        said = list(self.source.unread)
        if not self.read:
            said.append("it is empty")
        elif self.release is None:
            said.append(
                "its beginning was overwritten" if self.source.begins is False else
                "the kernel's first line (Linux version ...) is not in it: the beginning is missing, or some levels"
            )  # fmt: skip
        if self.release is None and (beside := getattr(self.source, "beside", ())):
            said.append(f"beside it, and not read: {', '.join(map(os.path.basename, beside))}")
        if self._ends is False or (self._ends is None and self.release is not None and self._early()):
            said.append("it ends with the boot: what came later is not in it")
        last = clock(self.last())
        if self.ran and last is not None and last < self.ran / 2 and self.ran - last > _DAY:
            said.append(f"its last line is of {last} s after the boot, and the machine ran for {self.ran} s")
        said += [*self.holes][:_HOLES]
        said += [] if self.listens else ["rsyslogd stopped reading the kernel's log"]
        said += [f"{count(self.lost, 'record')} lost"] if self.lost else []
        if self.signals and self.mode == "fatal":
            held = count(self.signals, "line")
            said.append(f"{held} of signals held back by the kernel's rate limit: of segfaults, or of split locks")
        if self.unknown:
            words = f"{count(self.unknown, 'line')} in the kernel's words {'is' if self.unknown == 1 else 'are'}"
            said.append(f"{words} not understood, first: {self.first_unknown}")
        return said

    def deaf(self) -> str:
        """Why this kernel would log no split lock that a program takes; empty: it would, or nobody knows."""
        if self.mode == "off":
            return "detection is off: nothing is ever logged"
        if self.mode == "fatal" and {line.exception for line in self.said} == {"#DB"}:
            return "mode fatal by #DB: programs get SIGBUS, and no line says so"
        if self.mode == "fatal" and self._untraced:
            return UNTRACED
        if self.mode is None and self.release is not None and not self.found:
            return (
                "at boot the kernel said nothing of detection: the processor has none that it uses, or it is off "
                "(silent since Linux 7.1)"
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

    def last(self) -> str:
        """The last line of all, as it is."""
        return self.source.last.decode("utf-8", "replace")

    def _early(self) -> bool:
        last = _SECONDS.match(self.source.last)
        if last is None or any(word in self.source.last for word in _ENDED):
            return False
        return int(last[1]) < _SOON


_TASKS = 50  # kept in the report


class Heard:
    """The kernel's log of a machine since it booted: what all places have of this boot, told by the best of them."""

    def __init__(self, root: Root) -> None:
        self.source: str | None = None
        self.why = ""  #: why it was not read
        self.gaps: list[str] = []
        self._log: Log | None = None
        self._machine = Machine(root)
        read: list[Log] = []
        for place in places(root):
            log = Log(place.source, ends=place.ends, ring=place.ring)
            if self._hear(log):
                read.append(log)
                if root.live and not log.gaps():
                    break
        self._kept = self._of_this_boot(read)
        if self._kept:
            self._choose()
        elif not self.why:
            self.why = "no log is there"
        #: the mode that it told, the kernel's words about its detection, and those of the boot that others ask for
        self.mode = next((log.mode for log in self._kept if log.mode), None)
        self.said = next((log.said for log in self._kept if log.said), [])
        self.boot = next((log.boot for log in self._kept if log.boot), "")
        self.gaps += self._machine.silent(self._log) if self._log else []

    def _hear(self, log: Log) -> bool:
        """Read one; is it of this boot, as far as it tells?"""
        try:
            for _ in log:
                pass
        except SplitlockError as error:
            what, _, remedy = str(error).partition("; ")  # to name a log file is for `watch`: here none can be named
            self.why = self.why or (f"{what}; run it with sudo" if "sudo" in remedy else what)
            return False
        other = f"{log.source.name} is empty" if not log.read else self._machine.other(log)
        self.why = self.why or other
        return not other

    def _of_this_boot(self, read: list[Log]) -> list[Log]:
        """Without those that may be older than a whole one of the kernel's own; those that begin with the boot first.

        How long it has run, the machine tells, or what was asked of the kernel itself.
        """
        rings = [log for log in read if log.ring]
        ran = max([self._machine.ran, *(clock(log.last()) or 0 for log in rings)])
        for log in read:
            log.ran = 0 if log.ring else ran
        if any(not log.gaps() for log in rings):
            read = [log for log in read if log.ring or log.release is not None]
        return sorted(read, key=lambda log: log.release is None)

    def _choose(self) -> None:
        """The one that found most, then a whole one, then one that begins with the boot."""
        gaps = {log: log.gaps() for log in self._kept}
        self._log = max(self._kept, key=lambda log: (log.found, not gaps[log], log.release is not None))
        self.source, self.gaps, self.why = self._log.source.name, gaps[self._log], ""

    @property
    def booted(self) -> bool:
        """Was the log of this boot read from its first line on?"""
        return self._log is not None and self._log.release is not None

    def report(self) -> report.Log:
        """What was said: a line that two places have is one."""
        log = self._log
        if log is None:
            return report.Log(source=None, why=self.why, lines=0, suppressed=0, lost=0, tasks=[])
        said: Counter[tuple[str, str, bool]] = Counter()
        for one in self._kept:
            said |= one.tasks
        dumps = {str(dump.place or ""): dump for one in self._kept for dump in one.dumps if one is not log}
        here = {str(dump.place or "") for dump in log.dumps}
        dumped = log.dumps + [dump for place, dump in dumps.items() if place not in here]
        found = [
            report.Logged(
                comm=comm, exception=exception, lines=number, guest=guest or tasks.vmm_by_name(comm) is not None
            )
            for (comm, exception, guest), number in said.most_common(_TASKS)
        ]
        suppressed = max(one.suppressed for one in self._kept)
        return report.Log(
            source=self.source,
            why="; ".join(self.gaps),
            lines=max(log.found, said.total()),
            suppressed=suppressed,
            lost=log.lost,
            tasks=found,
            whole=not self.gaps and not suppressed,
            deaf="" if self._machine.silent(log) else log.deaf(),
            unknown=log.unknown,
            stuck=any(one.stuck for one in self._kept),
            oopses=[str(dump.place) if dump.place else "" for dump in dumped],
            causes=_causes(list(said), dumped),
        )


def _causes(said: list[tuple[str, str, bool]], dumps: list[Dump]) -> list[KnownCause]:
    """The known causes of what it says, each once."""
    known = Causes()
    found = [cause for comm, _, _ in said for cause in known.of_task(comm)]
    found += [cause for dump in dumps for cause in known.of_oops(explain(dump))]
    return list({cause.name: cause for cause in found}.values())
