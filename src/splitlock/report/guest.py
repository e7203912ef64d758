"""The report of `splitlock guest`: plain data, what is in the JSON of schema `splitlock/guest/1`."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from splitlock.report.document import Document

SCHEMA: Final = "splitlock/guest/1"


class Site(msgspec.Struct, kw_only=True):
    """One instruction that took split locks, as one program ran it."""

    where: Literal["firmware", "boot loader", "kernel", "module", "user", "nested"]
    mode: Literal[16, 32, 64] | None  #: bits of the code; null: could not be told
    hits: int
    address: str  #: hex, linear address of the instruction
    instruction: str
    operand_size: int  #: bytes
    operand_address: str  #: hex, at the first hit
    image: str | None  #: the file, as the guest names it; the module; the UEFI program; null: none, or not known
    offset: str | None  #: hex: of a file in that, of a UEFI program in its image, else in the function
    function: str | None
    source: str | None  #: `file:line`
    comm: str | None  #: the program that did it (of a nested guest: that runs it); null: unknown, or not a program's
    pid: int | None  #: its number in the guest


class Watched(msgspec.Struct, kw_only=True):
    """What was under watch, and by what means."""

    qemu: str  #: version
    api: int  #: version of QEMU's plugin interface
    registers: bool  #: could be read: without them nobody has a name
    cpus: int
    sites: int  #: locked instructions that QEMU translated
    kernel: str | None  #: the guest's Linux, as `uname -r` says it; null: none was seen
    processes: bool  #: could be named
    seconds: float  #: real time from start to end
    end: str  #: why it ended: `power off`, `duration`, `until`, `interrupted`, or `qemu: ` and how that ended


class Report(Document, kw_only=True):
    """One guest, from its firmware on."""

    schema: Literal["splitlock/guest/1"]
    guest: str  #: the kernel, disk or ISO that was booted
    hits: int
    unnamed: int  #: of these: in no site below, as there were too many different ones
    sites: list[Site]  #: most hits first
    ready: bool | None  #: for `split_lock_detect=fatal`; null: no Linux kernel was seen
    watched: Watched
    unwatched: list[str]  #: what could not be seen, or not be named, and why
