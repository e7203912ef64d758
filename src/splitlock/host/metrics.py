"""What a watch counts, for Prometheus: by comm, image and function, bounded in number."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from splitlock.report.watch import Event

_SERIES = 2_000  # label values are what programs call themselves: beyond these all are one


class Metrics:
    """The counters, made with prometheus_client `client`."""

    def __init__(self, client: Any) -> None:
        labels = ["exception", "comm", "image", "function", "guest", "kind"]
        self._lines = client.Counter("splitlock_watch_lines", "kernel lines about split and bus locks", labels)
        self._suppressed = client.Counter(
            "splitlock_watch_suppressed", "lines that the kernel held back", ["exception"]
        )
        self._lost = client.Counter("splitlock_watch_lost", "records lost before they were read")
        self._seen: set[tuple[str, ...]] = set()

    def count(self, event: Event) -> None:
        """One event more. What is not the kernel's word is not counted, what is not understood is."""
        if event.speaker:
            return
        if event.kind == "suppressed":
            self._suppressed.labels(event.exception).inc(event.number)
        elif event.kind == "lost":
            self._lost.inc(event.number)
        elif event.kind not in ("mode", "note"):
            place = event.place
            names = (event.comm, place.image if place else "", (place and place.function) or "")
            if names not in self._seen and len(self._seen) >= _SERIES:
                names = ("(more)", "", "")
            self._seen.add(names)
            self._lines.labels(event.exception, *names, "yes" if event.guest else "no", event.kind).inc()
