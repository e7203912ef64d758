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
from splitlock.host.log.boots import NAMES, Boot
from splitlock.host.log.machine import UNTRACED, Machine, label
from splitlock.host.log.places import places
from splitlock.host.log.wrappings import JOURNALD, LOCAL, clock
from splitlock.host.oops.explanation import explain
from splitlock.linux.dump import Dump
from splitlock.linux.log import Line, lines
from splitlock.linux.oops import Collector, head
from splitlock.linux.others import Headless
from splitlock.report import status as report
from splitlock.report.lines import count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from splitlock.host.log.sources import Source
    from splitlock.host.log.wrappings import Record
    from splitlock.host.root import Root
    from splitlock.report.oops import KnownCause

_BOOT = ("Linux version", "Command line:", "Hypervisor detected", "tdx: Guest detected")
_SECONDS = re.compile(rb"\s*(?:<\d+>)?\[ *(\d{1,12})\.")
_SOON = 60  # seconds; a log that ends so early was most likely saved by something that runs at boot
# Last lines of a machine that went down. `Kernel Offset` is a panic's too.
_ENDED = (b"Kernel panic", b"Kernel Offset", b"reboot:", b"Power down", b"Restarting system", b"machine restart")
_DAY = 86_400  # seconds
_HOSTS = 1000  # that are kept apart
_DUMPS = 20  # oopses of a boot that are kept
_FIRST = 60  # characters of a line that is shown as an example


class Said(NamedTuple):
    """A sentence of a record. `dump`: of an oops, all that followed it. Without `line`, records were lost."""

    record: Record
    line: Line | None
    dump: Dump | None = None


class Log(Boot):
    """A log that is read once; the attributes are of the last boot in it of the machine that is asked about.

    `ends`: the log goes on to now (True), was saved at boot (False), or nobody knows (None). `ring`: the kernel or the
    journal was asked, for this boot. `untraced`: debug.exception-trace=0 holds here. `asked`: the machine's name;
    empty: that of the first that is named.
    """

    def __init__(
        self, source: Source, *, ends: bool | None = None, ring: bool = False, untraced: bool = False, asked: str = ""
    ) -> None:
        super().__init__()
        self.source, self._ends, self.ring, self._untraced = source, ends, ring, untraced
        self.named = asked
        self.hosts: dict[str, Boot] = {}  #: the other machines in it
        self.own = False  #: is there a line with the name of the one that is asked about?
        self._unnamed = False  # are there lines without a machine's name?
        self._ids: dict[tuple[str, str], str] = {}  # a machine's name, by the journal's ids
        self.ran = 0  #: seconds that the machine has run, where that is known
        self.read = 0  #: lines or records, of all boots
        self.unknown = 0  #: lines with the kernel's words that are not understood, of all boots
        self.first_unknown = ""
        self.others: Counter[str] = Counter()  #: who else used the kernel's words, and how often
        self._oops: tuple[Said, Collector, Boot] | None = None
        self._headless: dict[int, Headless] = {}  # of each boot

    def __iter__(self) -> Iterator[Said]:
        """What is said of split locks, in order; an oops when its dump has ended."""
        for record in self.source:
            self.read += record.read
            boot = self._boot(record)
            boot.comes(record)
            if record.lost:
                yield Said(record, None)
            if record.text is None:
                continue
            boot.clocked = boot.clocked or (not record.speaker and clock(record.text[:_FIRST]) is not None)
            if self._oops and self._oops[2] is boot:
                if self._oops[1].again(record.text):
                    continue
                if not self._oops[1].feed(record.text) and self._oops[1].done:
                    yield self._dumped()
            some = False
            for line in lines(record.text):
                some = True
                if record.speaker and not (record.speaker.partition("[")[0] == JOURNALD and line.kind == "lost"):
                    self._other(record.speaker)
                else:
                    self._take(line, boot)
                    if line.kind in ("oops", "alignment") and head(record.text):
                        if self._oops:
                            yield self._dumped()
                        self._oops = Said(record, line), Collector(record.text), boot
                        continue
                yield Said(record, line)
            if self._oops and self._oops[1].done:
                yield self._dumped()
            own = self._oops is not None and self._oops[2] is boot
            headless = self._headless.get(id(boot)) or self._headless.setdefault(id(boot), Headless())
            if not record.speaker and headless.feed(record.text, known=own):
                if self._oops:
                    yield self._dumped()
                self.unknown += 1
                self.first_unknown = self.first_unknown or "an oops whose first line is missing"
                line = Line("unknown", "", "", 0, None, 1, "", record.text.strip(), "")
                self._oops = Said(record, line), Collector.headless(headless.records), boot
            if not some and not record.speaker and any(word in record.text for word in _BOOT):
                boot.starts(record)
        if self._oops:
            yield self._dumped()

    def _boot(self, record: Record) -> Boot:
        """Of which machine a record is: that which is asked about, or another. A machine is `localhost` at first."""
        name = label(record.host)
        if name == LOCAL:
            self._unnamed = self._unnamed or not any(record.ids)
            name = ""
        known = self._ids.get(record.ids) if record.ids[1] else None
        if known is None and name and record.ids[1] and len(self._ids) < NAMES:
            known = self._ids[record.ids] = name
        name = known or name
        if not name:
            return self
        self.named = self.named or name
        if name == self.named:
            self.own = True
            return self
        if name not in self.hosts and len(self.hosts) >= _HOSTS:
            name = "(more)"
        return self.hosts.setdefault(name, Boot())

    def _dumped(self) -> Said:
        assert self._oops
        (said, collector, boot), self._oops = self._oops, None
        if len(boot.dumps) < _DUMPS and not collector.dump.head.lost:
            boot.dumps.append(collector.dump)
        return said._replace(dump=collector.dump)

    def _other(self, speaker: str) -> None:
        self.others[speaker if speaker in self.others or len(self.others) < NAMES else "(more)"] += 1

    def _take(self, line: Line, boot: Boot) -> None:
        if line.kind == "unknown":
            self.unknown += 1
            self.first_unknown = self.first_unknown or line.text[:_FIRST]
        boot.take(line, self.source.at)

    def gaps(self) -> list[str]:
        """Why it is less than all that the kernel said since it booted; empty: it is all. What a rate limit held back
        the kernel did not say."""
        said = list(self.source.unread)
        if not self.read:
            said.append("it is empty")
        elif missing := self.beginning():
            said.append("its beginning was overwritten" if self.source.begins is False else missing)
        if self.release is None and (beside := getattr(self.source, "beside", ())):
            said.append(f"beside it, and not read: {', '.join(map(os.path.basename, beside))}")
        if self._ends is False or (self._ends is None and self.release is not None and self._early()):
            said.append("it ends with the boot: what came later is not in it")
        last = clock(self.last())
        if self.ran and last is not None and last < self.ran / 2 and self.ran - last > _DAY:
            said.append(f"its last line is of {last} s after the boot, and the machine ran for {self.ran} s")
        said += self.missing()
        if self.hosts and self._unnamed:
            said.append(f"lines without a machine's name: {self.named} and {', '.join(self.hosts)} are in it")
        if self.unknown:
            words = f"{count(self.unknown, 'line')} in the kernel's words {'is' if self.unknown == 1 else 'are'}"
            said.append(f"{words} not understood, first: {self.first_unknown}")
        return said

    def deaf(self) -> str:
        """Why this kernel would log no split lock that a program takes; empty: it would, or nobody knows."""
        return UNTRACED if self.mode == "fatal" and self._untraced else super().deaf()

    def doubts(self) -> list[str]:
        """Why none that is found does not mean that there was none; with several machines, of each by its name."""
        said = self.gaps() + [why for why in (self.deaf(), self.unarmed()) if why]
        if not self.hosts:
            return said
        said = [f"{self.named}: {why}" for why in said]
        for name, boot in self.hosts.items():
            early = boot.release is not None and self._soon(name)
            whys = [boot.beginning(), *boot.missing(), boot.deaf(), boot.unarmed()]
            whys += ["it ends with the boot: what came later is not in it"] if early else []
            said += [f"{name}: {why}" for why in whys if why]
        return said

    def last(self) -> str:
        """The last line of all, as it is."""
        return self.source.last.decode("utf-8", "replace")

    def _soon(self, name: str) -> bool:
        """Is a machine's last line, of several, of its boot?"""
        return any(label(host) == name and 0 <= last < _SOON for host, last in self.source.passing.clocks.items())

    def _early(self) -> bool:
        if self.hosts:
            return self._soon(self.named)
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
            log = Log(place.source, ends=place.ends, ring=place.ring, asked=self._machine.host)
            if self._hear(log):
                read.append(log)
                if root.live and not log.gaps():
                    break
        self._kept = self._of_this_boot(read)
        if self._kept:
            self._choose()
        elif not self.why:
            self.why = "no log is there"
        #: the mode, the file that told it, the kernel's words about its detection, those of its boot for others
        told = next((log for log in self._kept if log.mode), None)
        self.mode, self.told_by = (told.mode, told.told_by) if told else (None, "")
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
