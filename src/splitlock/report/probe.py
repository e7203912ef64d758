"""The report of `splitlock probe`: plain data, what is in the JSON of schema `splitlock/probe/1`."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from splitlock.report.document import Document

SCHEMA: Final = "splitlock/probe/1"

Mode = Literal["real16", "prot32", "long64"]
Place = Literal["at", "after", "elsewhere"]
Access = Literal["aligned", "cpuid", "misaligned", "split", "buslock"]
#: hypervisor: its leaf 0x40000010; pit: measured; cpuid15, cpuid16: the processor's words; guess: the fastest there is
ClockSource = Literal["hypervisor", "pit", "cpuid15", "cpuid16", "guess"]
Verdict = Literal[
    "exposes-feature",
    "forwards-blindly",
    "breaks-guest",
    "throttles",
    "injects-when-asked",
    "emulates",
    "nothing-to-handle",
    "unclear",
]


class Row(msgspec.Struct, kw_only=True):
    """One experiment: one kind of access in one state of the processor, executed one to three times."""

    number: int
    mode: Mode
    cpl: int
    am: bool  #: CR0.AM
    ac: bool  #: EFLAGS.AC
    detecting: bool  #: TEST_CTRL bit 29
    access: Access  #: aligned, split, buslock: a locked add; misaligned: an add without lock, within a line
    #: reset: the machine was reset, or ended by itself; unended: the log does not say
    outcome: Literal["completed", "raised", "reset", "unended"]
    vector: int | None = None  #: of what was raised: 17 is #AC, 1 is #DB
    error: str | None = None  #: its error code, hex; real mode has none
    place: Place | None = None  #: where it was raised, seen from the instruction
    memory_right: bool | None = None  #: the operand has the value it should have; null: not known
    cycles: list[int] = []  #: of the time-stamp counter, one an execution that completed

    @property
    def asked(self) -> bool:
        """Does this guest ask for alignment checks? (SDM volume 3, interrupt 17)"""
        return self.cpl == 3 and self.am and self.ac

    @property
    def alignment_check(self) -> bool:
        """Did it end in `#AC`?"""
        return self.outcome == "raised" and self.vector == 17


class Leaf(msgspec.Struct, kw_only=True):
    """What CPUID says: registers in hex."""

    leaf: str
    eax: str
    ebx: str
    ecx: str
    edx: str


class Msr(msgspec.Struct, kw_only=True):
    """What RDMSR says."""

    number: str  #: hex
    value: str | None  #: hex; null: it raised `vector`
    vector: int | None = None


class Clock(msgspec.Struct, kw_only=True):
    """The time-stamp counter, as the image found it."""

    khz: int
    source: ClockSource  #: who said so
    wait_ms: int  #: for which it waited before each row of split locks


class Report(Document, kw_only=True):
    """What one run of the image found, and what it means."""

    schema: Literal["splitlock/probe/1"]
    source: str  #: what the image ran on, or the log's file
    verdict: Verdict
    reasons: list[str]
    not_told: list[str]  #: what could not be told apart, and why
    cpuid: list[Leaf]
    msrs: list[Msr]
    clock: Clock | None  #: null: not in the log, so it is not known whether the image waited
    rows: list[Row]
    expected: int | None  #: rows that the image had; null: it never came to its end
    split_locks: int  #: executed, or begun
    missing: list[str]  #: what is not in the log, and how it ended where that was not by itself
    damaged: int  #: lines of the probe's that were spoilt
    foreign: int  #: lines that are not the probe's

    @property
    def complete(self) -> bool:
        """Is everything there that the image had to say?"""
        return not self.missing
