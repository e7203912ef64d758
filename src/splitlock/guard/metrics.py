"""The gate's counters for Prometheus: what the kernel counted, and by verdict and module kind what was followed."""

from __future__ import annotations

import importlib

from splitlock import _prometheus
from splitlock.guard import gate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from splitlock.report.guard import Decision

_ABOUT = {
    "decisions": "modules judged", "allowed": "modules let in", "refused": "modules kept out",
    "disabled": "modules let in that turn the mitigation off", "doubts": "modules that could not be judged",
    "lost": "decisions that were made and not logged", "canaries": "probes that proved the gate live",
    "missed": "runs of the gate's programs that the kernel passed over",
}  # fmt: skip


class Metrics:
    """What is served. The kernel's counters are read when they are asked for."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._verdicts = client.Counter("splitlock_guard_followed", "decisions followed", ["verdict", "doubt"])
        self._seconds = client.Histogram(
            "splitlock_guard_judging_seconds", "what judging a module took",
            buckets=(1e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2, 5e-2, 0.1, 0.5, 1, 5),
        )  # fmt: skip

    def count(self, decision: Decision) -> None:
        """One decision more."""
        self._verdicts.labels(decision.verdict, decision.doubt or "").inc()
        self._seconds.observe(decision.nanoseconds / 1e9)

    def collect(self) -> Iterator[Any]:
        """The kernel's own counters, as prometheus_client asks for them."""
        core = importlib.import_module("prometheus_client.core")
        up = gate.is_up()
        yield core.GaugeMetricFamily("splitlock_guard_up", "whether the gate is up", value=int(up))
        if up:
            counted = gate.counters()
            for name, about in _ABOUT.items():
                yield core.CounterMetricFamily(f"splitlock_guard_{name}", about, value=counted.get(name, 0))
            yield core.CounterMetricFamily(
                "splitlock_guard_seconds", "time spent judging", value=counted.get("nanoseconds", 0) / 1e9
            )


def serve(address: str) -> Metrics:
    """Serve them at `address`, HOST:PORT. Raises SplitlockError."""
    client = _prometheus.serve(address, "log --listen")
    made = Metrics(client)
    client.REGISTRY.register(made)
    return made
