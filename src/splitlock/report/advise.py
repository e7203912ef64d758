"""The report of `splitlock advise`: plain data, what is in the JSON of schema `splitlock/advise/1`."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from splitlock.report.document import Document

SCHEMA: Final = "splitlock/advise/1"

#: safe: nobody whom we know of is harmed; slows: somebody waits; breaks: somebody dies or is stuck
Verdict = Literal["safe", "slows", "breaks"]
Kind = Literal["kvm", "kvm-before", "unmarked", "virtualbox"]
Known = Literal["yes", "no", "unknown"]


class Host(msgspec.Struct, kw_only=True):
    """What advice needs to know of a machine."""

    source: str  #: where it is known from
    split_locks: Known  #: `#AC`, of which the kernel makes use
    bus_locks: Known  #: `#DB`
    amd: bool
    linux: str | None  #: as `uname -r` says it; null: not known
    mode: str  #: in effect: off, warn, fatal, ratelimit, or unknown
    mitigate: bool
    inside: str | None  #: the hypervisor that this machine is a guest of; null: none is seen


class Hypervisor(msgspec.Struct, kw_only=True):
    """A module, or a file that a module loads, with which guests can be run."""

    name: str
    path: str | None
    kind: Kind  #: how it treats a guest's `#AC`, see docs/simulate.md
    loaded: Known
    why: str  #: it is taken for that
    refused: bool  #: `splitlock guard` keeps it out, under policy refuse


class Guest(msgspec.Struct, kw_only=True):
    """A guest that `splitlock guest` watched."""

    path: str
    hits: int
    takers: list[str]  #: who took split locks in it
    unwatched: list[str]


class Reason(msgspec.Struct, kw_only=True):
    """One thing that a mode does here."""

    verdict: Verdict
    who: str
    what: str
    rules: list[str]  #: of the model that say so, each with its source


class Mode(msgspec.Struct, kw_only=True):
    """One mode, on this machine."""

    mode: str
    effective: str  #: what the kernel makes of it
    verdict: Verdict
    guarded: Verdict  #: where `splitlock guard` kept out what policy refuse refuses
    reasons: list[Reason]


class Report(Document, kw_only=True):
    """Whether to turn it on here."""

    schema: Literal["splitlock/advise/1"]
    host: Host
    hypervisors: list[Hypervisor]
    guests: list[Guest]
    modes: list[Mode]
    recommended: str  #: a mode
    guard: bool  #: together with `splitlock guard`
    command_line: str  #: for the kernel; empty: nothing to turn on
    first: list[str]  #: what to do before
    unwatched: list[str]  #: what this cannot know
    interrupted: bool  #: a scan was, by Ctrl-C: there may be more hypervisors
