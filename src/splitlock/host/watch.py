"""From records of a log to events and their sum, in memory that does not grow with the log."""

from __future__ import annotations

import datetime
import re
from collections import Counter, OrderedDict

from splitlock.host.explain import explain
from splitlock.linux.log import Line, lines
from splitlock.report.watch import Count, Event, Summary

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from splitlock.host.sources import Record
    from splitlock.host.space import Saved

_PLACES = 10_000  # kept apart in the sum
_EXPLAINED = 4_096  # answers that are kept for the same line again
_RIP = re.compile(r"RIP: 0010:(\S+)")  # the kernel's own code, in the dump that follows an oops
_PLACED = ("trap", "guest", "killed", "oops", "alignment")
_DUMP = 40  # lines in which it is looked for


class Watch:
    """Counts what it hands on. `space`: where addresses are looked up, None: in the tasks themselves."""

    def __init__(self, source: str, space: Saved | None = None) -> None:
        self.source, self._space = source, space
        self.read = self.recognised = self.lost = self.suppressed = self.uncounted = 0
        self.mode: str | None = None
        self._kinds: Counter[str] = Counter()
        self._counts: dict[tuple[object, ...], Count] = {}
        self._explained: OrderedDict[tuple[object, ...], Event] = OrderedDict()
        self._oops: tuple[Line, str | None] | None = None
        self._dump = 0

    def events(self, records: Iterable[Record]) -> Iterator[Event]:
        """What the records say of split locks, as they come."""
        for record in records:
            if record.lost:
                self.lost += record.lost
                yield Event(kind="lost", exception="", time=when(record.time), stamp="", text="", comm="", tid=None,
                            address=None, number=record.lost, detail="", guest=False)  # fmt: skip
            self.read += 1
            if record.text is None:
                continue
            if self._oops:
                yield from self._dumped(record.text)
            for line in lines(record.text):
                self.recognised += line.kind != "unknown"
                if line.kind == "oops":  # the function is named some lines later
                    self._oops, self._dump = (line, when(record.time)), _DUMP
                    continue
                yield self._event(line, record)
        if self._oops:
            yield self._oopsed("")

    def _dumped(self, text: str) -> Iterator[Event]:
        found = _RIP.search(text)
        self._dump -= 1
        if found or not self._dump:
            yield self._oopsed(found[1] if found else "")

    def _oopsed(self, function: str) -> Event:
        assert self._oops
        (line, time), self._oops = self._oops, None
        made = explain(line._replace(detail=function), live=False, time=time)
        self._count(made)
        return made

    def _event(self, line: Line, record: Record) -> Event:
        key = (line.kind, line.exception, line.comm, line.pid, line.address, line.detail, record.live)
        made = self._explained.get(key)
        if made is None or made.note:  # what was not known may be by now
            made = explain(line, self._space, live=record.live)
            self._explained[key] = made
            if len(self._explained) > _EXPLAINED:
                self._explained.popitem(last=False)
        made.time, made.stamp, made.text, made.number = when(record.time), line.stamp, line.text, line.number
        self._count(made)
        return made

    def _count(self, event: Event) -> None:
        self._kinds[event.kind] += 1
        if event.kind == "suppressed":
            self.suppressed += event.number
        elif event.kind == "lost":
            self.lost += event.number
        elif event.kind == "mode":
            self.mode = event.detail or self.mode
        elif event.kind in _PLACED:
            place = event.place
            where = (place.image, place.offset, place.function) if place and place.offset else (None, event.address)
            key = (event.exception, event.comm, event.guest, *where, event.detail if event.kind == "oops" else "")
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
                    image=place.image if place else "the kernel" if event.kind == "oops" else None,
                    offset=place.offset if place else None,
                    function=place.function if place else event.detail or None if event.kind == "oops" else None,
                    address=event.address,
                    guest=event.guest,
                )

    def summary(self, *, complete: bool) -> Summary:
        """The sum so far; the places with the most lines first."""
        return Summary(
            source=self.source,
            complete=complete,
            read=self.read,
            recognised=self.recognised,
            traps=self._kinds["trap"],
            guests=self._kinds["guest"],
            killed=self._kinds["killed"],
            oopses=self._kinds["oops"],
            suppressed=self.suppressed,
            lost=self.lost,
            mode=self.mode,
            counts=sorted(self._counts.values(), key=lambda count: -count.lines),
            uncounted=self.uncounted,
        )


def when(seconds: float | None) -> str | None:
    """UTC, ISO 8601."""
    if seconds is None:
        return None
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
