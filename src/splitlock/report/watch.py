"""The events of `splitlock watch` and `explain`, and their sum: plain data, JSON of schema `splitlock/watch/1`."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from splitlock.report.document import Document
from splitlock.report.oops import KnownCause, Oops

SCHEMA: Final = "splitlock/watch/1"
SUMMARY: Final = "splitlock/watch-summary/1"

Kind = Literal[
    "trap", "guest", "killed", "mode", "note", "oops", "alignment", "msr", "suppressed", "lost", "unknown"
]  # fmt: skip


#: Why no more is known of an address.
Cause = Literal[
    "gone", "another-task", "not-permitted", "no-memory", "guest", "kernel-address", "no-address", "not-mapped",
    "not-executable", "not-saved", "no-file", "no-image", "deleted", "replaced", "other-code",
    "does-not-fit", "outside", "unread",
]  # fmt: skip


class Frame(msgspec.Struct, kw_only=True):
    """A function that an instruction belongs to."""

    function: str | None
    source: str | None  #: `file:line`, in this function: of the instruction, or of the call that was inlined there
    inlined: bool  #: into the next frame


class Place(msgspec.Struct, kw_only=True):
    """The instruction that an address means."""

    image: str
    offset: str | None  #: hex, address in the file, as addr2line takes it (PE: RVA); null: it is no file's code
    build_id: str | None
    #: The outermost function with a source file of the program's own, not a header of its compiler's or system's
    function: str | None
    source: str | None  #: `file:line`, there
    frames: list[Frame]  #: all functions, what is inlined included, innermost first
    instruction: str | None  #: the locked one: for #DB the one before the logged address; null: there is none
    instruction_address: str | None  #: hex, as the process has it
    operand_size: int | None  #: bytes
    certain: bool  #: false: the instruction before is the likeliest of several decodings


class Process(msgspec.Struct, kw_only=True):
    """Whose task it was."""

    pid: int
    command: list[str]
    container: str | None
    vm: str | None  #: the virtual machine's name
    vmm: str | None  #: what the process is, where it runs a virtual machine: QEMU, VirtualBox, ...


class Event(msgspec.Struct, kw_only=True):
    """One line of the kernel's."""

    schema: Literal["splitlock/watch/1"] = SCHEMA
    kind: Kind  #: `unknown`: in the kernel's words, and not understood
    exception: str  #: `#AC`, `#DB` or empty
    time: str | None  #: UTC, ISO 8601, where the log tells
    stamp: str  #: what came before the kernel's words
    text: str  #: the kernel's words
    comm: str  #: of the task, cut at 15 characters
    tid: int | None
    address: str | None  #: hex, as logged
    number: int  #: lines suppressed, or records lost; else 1
    #: a mode (`mode`), fatal or bogus (`guest`), the kernel's own `in FILE[...]` (`killed`), a function (`oops`)
    detail: str
    guest: bool  #: the address is a virtual machine's, not the process's, or most likely is (`note`)
    process: Process | None = None
    place: Place | None = None
    oops: Oops | None = None  #: what the dump after an oops says and means
    causes: list[KnownCause] = []  #: known causes that fit; `watch` tells each once
    note: str = ""  #: why no more is known, and what to do
    cause: Cause | None = None  #: the same for programs
    host: str = ""  #: whose kernel's line it is, as logged; empty: the log does not tell
    speaker: str = ""  #: who wrote the line, where that is known not to be the kernel: it is not counted


class Count(msgspec.Struct, kw_only=True):
    """What came from one place. Places of many processes are one where image and offset are."""

    lines: int
    exception: str
    comm: str
    image: str | None
    offset: str | None
    function: str | None
    address: str | None  #: where no image is known
    guest: bool


class Host(msgspec.Struct, kw_only=True):
    """One of several machines in a log, as of its last boot there."""

    name: str
    release: str | None  #: of its kernel; null: its first line is not there
    mode: str | None
    lines: int  #: of split and bus locks


class Summary(Document, kw_only=True):
    """A whole watch. What the kernel did not log nobody counted: in mode warn it logs #AC once a task."""

    schema: Literal["splitlock/watch-summary/1"] = SUMMARY
    source: str
    complete: bool  #: false: interrupted
    read: int  #: lines, or records
    recognised: int
    traps: int
    guests: int
    killed: int
    oopses: int  #: `alignment` too: `#AC` in a kernel that knows no split locks
    refused: int  #: `msr`: a guest's kernel could not turn detection off
    unknown: int  #: lines in the kernel's words that are not understood
    others: dict[str, int]  #: who else used the kernel's words: not counted
    suppressed: int  #: lines that the kernel held back
    lost: int  #: records that were overwritten, or dropped, before they were read
    mode: str | None  #: as logged at boot
    whole: bool  #: read from a boot's first line on, and the kernel would have logged what happened
    doubts: list[str]  #: why it is not, or would not have
    counts: list[Count]
    uncounted: int  #: lines of places beyond the most that are kept apart
    hosts: list[Host] = msgspec.field(
        default_factory=list
    )  #: of several machines in one log, each; `mode` is the first one's
