"""The report of `splitlock advise`: plain data, what is in the JSON of schema `splitlock/advise/1`."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from splitlock.report.document import Document
from splitlock.report.judgement import Judgement

SCHEMA: Final = "splitlock/advise/1"


class Guest(msgspec.Struct, kw_only=True):
    """A guest that `splitlock guest` watched."""

    path: str
    hits: int
    takers: list[str]  #: who took split locks in it
    unwatched: list[str]  #: why it may take some that were not seen; with neither it is clean


class Report(Document, kw_only=True):
    """Whether to turn it on here."""

    schema: Literal["splitlock/advise/1"] = SCHEMA
    source: str  #: where the machine is known from
    linux: str | None  #: as `uname -r` says it; null: not known
    mode: str  #: in effect: off, warn, fatal, ratelimit, or unknown
    inside: str | None  #: the hypervisor that this machine is a guest of; null: none is seen
    judgement: Judgement  #: as `splitlock status` has it
    guests: list[Guest]
    command_line: str  #: for the kernel; empty: nothing to turn on, or it is not known whether there is
    unscanned: list[str]  #: modules that could not be looked into, and why
    interrupted: bool  #: a scan was, by Ctrl-C: there may be more hypervisors
