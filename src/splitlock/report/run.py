"""The report of `splitlock run`: plain data, and what is in the JSON of schema `splitlock/run/1`."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from splitlock.report.document import Document

SCHEMA: Final = "splitlock/run/1"


class Frame(msgspec.Struct, kw_only=True):
    """One function at a site, from the innermost inlined one to the function that holds the code."""

    function: str | None
    source: str | None  #: `file:line`
    inlined: bool


class Sample(msgspec.Struct, kw_only=True):
    """One split lock of a site."""

    time: str  #: UTC, ISO 8601
    pid: int
    tid: int
    comm: str
    operand_address: str  #: hex
    operand: str  #: data symbol + offset, stack, heap, or the mapping
    past_line: int  #: bytes of the operand that lie on the second cache line
    stack: list[str]  #: from the inside out


class Site(msgspec.Struct, kw_only=True):
    """One instruction that took split locks."""

    image: str
    offset: str  #: hex, virtual address in the ELF file, as addr2line takes it
    build_id: str | None
    function: str | None  #: the innermost, inlined or not
    source: str | None  #: `file:line`
    frames: list[Frame]
    instruction: str
    operand_size: int  #: bytes
    hits: int
    processes: int  #: that were seen to take one here
    threads: int
    samples: list[Sample]


class Watched(msgspec.Struct, kw_only=True):
    """What was under watch."""

    sites: int  #: locked instructions whose operand could split
    bytes: int  #: of code, in which these are all
    images: int
    processes: int  #: that were started, the program's own included


class Unmonitored(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Code that was not watched: an image's or a mapping's."""

    reason: str
    image: str | None = None
    mapping: str | None = None
    bytes: int | None = None
    sites: int | None = None  #: locked instructions in it, where that can be told


class Report(Document, kw_only=True):
    """A whole run."""

    schema: Literal["splitlock/run/1"]
    command: list[str]
    mode: str
    exit_status: int | None  #: None with `-D`, where it is its parent's to know
    hits: int
    sites: list[Site]
    watched: Watched
    unmonitored: list[Unmonitored]
