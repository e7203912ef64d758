"""The reports of `splitlock simulate`: plain data, as JSON `splitlock/simulate/1` and `splitlock/simulate-matrix/1`."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from splitlock.report.document import Document

SCHEMA: Final = "splitlock/simulate/1"
MATRIX_SCHEMA: Final = "splitlock/simulate-matrix/1"

#: executed; slowed: executed, after waiting; emulated: performed without a lock; livelock: traps for ever;
#: of modules: loaded, refused, disables (loaded, and detection is off for good), unloaded; of the machine: resumed (it
#: woke), online (a CPU came); not-started: its module is not there, or nothing was to be done
Fate = Literal[
    "executed", "slowed", "emulated", "sigbus", "oops", "panic", "livelock",
    "loaded", "refused", "disables", "unloaded", "resumed", "online",
    "not-started",
]  # fmt: skip


class Step(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One thing that somebody did."""

    who: str
    what: str
    source: str  #: of the rule
    log: str = ""  #: the kernel's line
    lines: int = 0  #: how many such; if the program never goes on: in each five seconds
    held_back: int = 0  #: how many more the kernel's rate limit leaves out
    milliseconds: float = 0.0  #: that the task waited
    alone_milliseconds: float = 0.0  #: for which no other core could run split locks


class Event(msgspec.Struct, kw_only=True):
    """One thing that happened, and what came of it."""

    event: str
    fate: Fate
    victim: str  #: who died, or is stuck; empty: nobody
    bus_locked_nanoseconds: float  #: for which split locks held the bus up
    steps: list[Step]


class Report(Document, kw_only=True):
    """A scenario, event by event."""

    schema: Literal["splitlock/simulate/1"]
    scenario: str
    title: str
    tells: str  #: what it shows
    host: str
    events: list[Event]

    @property
    def harmed(self) -> bool:
        """Did anybody die, or get stuck?"""
        return any(event.victim for event in self.events)


class Cell(msgspec.Struct, kw_only=True):
    """One mode, policy, hypervisor and guest."""

    mode: str
    policy: str
    hypervisor: str
    guest: str
    access: str
    fate: Fate
    victim: str
    why: str  #: the rule that decided


class Admission(msgspec.Struct, kw_only=True):
    """What a policy says to a hypervisor's module, with detection on."""

    policy: str
    hypervisor: str
    outcome: Literal["loaded", "refused", "disables"]
    reason: str


class Matrix(Document, kw_only=True):
    """Everything at once."""

    schema: Literal["splitlock/simulate-matrix/1"]
    processor: list[str]
    linux: str
    admissions: list[Admission]
    cells: list[Cell]

    @property
    def unreleased(self) -> bool:
        """Is there a hypervisor in it that no released kernel has?"""
        return any("April 2020" in one.hypervisor for one in self.admissions)
