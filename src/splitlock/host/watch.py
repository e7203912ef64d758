"""From records of a log to events and their sum, in memory that does not grow with the log."""

from __future__ import annotations

from collections import Counter, OrderedDict

from splitlock.host.causes import Causes
from splitlock.host.explain.line import explain
from splitlock.host.log.boots import FOUND
from splitlock.host.log.heard import Log
from splitlock.host.log.machine import label
from splitlock.host.log.wrappings import LOCAL
from splitlock.host.oops import explanation as oops
from splitlock.linux.text import when
from splitlock.report.watch import Count, Event, Host, Summary

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from splitlock.host.explain.space import Saved
    from splitlock.host.log.heard import Said
    from splitlock.host.log.wrappings import Record
    from splitlock.host.oops.files import Files
    from splitlock.linux.log import Line

_KERNEL = ("oops", "alignment")
_PLACES = 10_000  # kept apart in the sum
_EXPLAINED = 4_096  # answers that are kept for the same line again


class Watch:
    """Counts what it hands on. `space`: where addresses are looked up, None: in the tasks themselves.

    `files`: code and debug information of the kernel; `causes`: the known ones.
    """

    def __init__(
        self, log: Log, space: Saved | None = None, files: Files | None = None, causes: Causes | None = None
    ) -> None:
        self._log, self._space, self._files = log, space, files
        self._causes, self._told = causes or Causes(), set[str]()
        self.recognised = self.lost = self.suppressed = self.uncounted = 0
        self._kinds: Counter[str] = Counter()
        self._counts: dict[tuple[object, ...], Count] = {}
        self._explained: OrderedDict[tuple[object, ...], Event] = OrderedDict()

    def events(self) -> Iterator[Event]:
        """What the log says of split locks, as it comes."""
        for said in self._log:
            if said.line is not None:
                self.recognised += said.line.kind != "unknown"
                yield self._event(said.line, said)
                continue
            made = Event(kind="lost", exception="", time=_when(said.record.time), stamp="", text="", comm="", tid=None,
                         address=None, number=said.record.lost, detail="", guest=False)  # fmt: skip
            self._count(made)
            yield made

    def elsewhere(self, event: Event) -> bool:
        """Is it another machine's than the log's first?"""
        return bool(self._log.hosts) and label(event.host) not in ("", LOCAL, self._log.named)

    def _event(self, line: Line, said: Said) -> Event:
        record = said.record
        if said.dump and said.dump.place:
            line = line._replace(detail=str(said.dump.place))
        key = (line.kind, line.exception, line.comm, line.pid, line.address, line.detail, record.live, record.speaker)
        made = self._explained.get(key)
        if made is None or made.note:  # what was not known may be by now
            made = self._explain(line, record)
            self._explained[key] = made
            if len(self._explained) > _EXPLAINED:
                self._explained.popitem(last=False)
        made.time, made.stamp, made.text, made.number = _when(record.time), line.stamp, line.text, line.number
        made.host = record.host
        if said.dump:
            made.oops = oops.explain(said.dump, self._files)
            made.detail = line.detail
        made.causes = [cause for cause in self._causes.of_event(made) if cause.name not in self._told]
        self._told.update(cause.name for cause in made.causes)
        if not record.speaker or line.kind == "lost":
            self._count(made)
        return made

    def _explain(self, line: Line, record: Record) -> Event:
        made = explain(line, self._space, live=record.live, since_boot=record.since_boot)
        if line.kind != "lost":
            made.speaker = record.speaker
        return made

    def _count(self, event: Event) -> None:
        self._kinds[event.kind] += 1
        if event.kind == "suppressed":
            self.suppressed += event.number if event.exception else 0  # else of a limit shared with segfaults
        elif event.kind == "lost":
            self.lost += event.number
        elif event.kind in FOUND:
            place = event.place
            where = (place.image, place.offset, place.function) if place and place.offset else (None, event.address)
            key = (event.exception, event.comm, event.guest, *where, event.detail if event.kind in _KERNEL else "")
            count = self._counts.get(key)
            if count is not None:
                count.lines += 1
            elif len(self._counts) >= _PLACES:
                self.uncounted += 1
            else:
                self._counts[key] = Count(
                    lines=1,
                    exception=event.exception,
                    comm=event.comm,
                    image=place.image if place else "the kernel" if event.kind in _KERNEL else None,
                    offset=place.offset if place else None,
                    function=place.function if place else event.detail or None if event.kind in _KERNEL else None,
                    address=event.address,
                    guest=event.guest,
                )

    def summary(self, *, complete: bool) -> Summary:
        """The sum so far; the places with the most lines first."""
        log = self._log
        doubts = log.doubts()
        return Summary(
            source=log.source.name,
            complete=complete,
            read=log.read,
            recognised=self.recognised,
            traps=self._kinds["trap"],
            guests=self._kinds["guest"],
            killed=self._kinds["killed"],
            oopses=self._kinds["oops"] + self._kinds["alignment"],
            refused=self._kinds["msr"],
            unknown=log.unknown,
            others=dict(log.others),
            suppressed=self.suppressed,
            lost=self.lost,
            mode=log.mode,
            whole=not doubts and not log.suppressed,
            doubts=doubts,
            counts=sorted(self._counts.values(), key=lambda count: -count.lines),
            uncounted=self.uncounted,
            hosts=_hosts(log) if log.hosts else [],
        )


def _hosts(log: Log) -> list[Host]:
    boots = {log.named: log, **log.hosts}
    return [Host(name=name, release=boot.release, mode=boot.mode, lines=boot.found) for name, boot in boots.items()]


def _when(seconds: float | None) -> str | None:
    return None if seconds is None else when(seconds, "milliseconds")
