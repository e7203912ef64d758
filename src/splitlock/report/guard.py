"""The decisions of `splitlock guard`: plain data, and the JSON lines of schema `splitlock/guard/1`."""

from __future__ import annotations

from typing import Literal

import msgspec

from splitlock.report.document import encoded

SCHEMA = "splitlock/guard/1"


class Finding(msgspec.Struct, kw_only=True):
    """One thing the gate found in a module."""

    kind: str  #: VMLAUNCH, MOV CR4, WRMSR, FOREIGN-CODE, ...
    evidence: str  #: `instruction`, `relocation pv_ops`, `relocation cr4_update_irqsoff`, `imports SYMBOL, ...`
    possible: bool  #: reached by some decodings only
    section: str | None  #: null: it is in no section
    offset: str | None  #: hex, bytes from the start of the section


class Decision(msgspec.Struct, kw_only=True):
    """What the gate said of one module that was to be loaded."""

    schema: str = SCHEMA
    time: str  #: UTC, ISO 8601
    pid: int
    comm: str  #: of the process, cut at 15 characters
    uid: int
    name: str  #: the module's, from its own .modinfo; may be empty
    digest: str | None  #: SHA-256 of the contents as the kernel saw them; null: it was let in and nobody asked
    build_id: str  #: hex, its start; may be empty
    size: int  #: bytes
    source: Literal["file", "memory"] = msgspec.field(name="from")  #: finit_module or init_module
    findings: list[Finding]
    total: int  #: findings, listed or not
    verdict: Literal["allow", "refuse", "disable"]  #: the policy's, under --audit too
    refused: bool  #: it was kept out
    listed: bool  #: let in because of `guard allow`
    doubt: str | None  #: why it is refused without a rule: no-elf, malformed, undecodable, too-big, unreadable, partial
    policy: str
    rule: int | None  #: its number in the policy, from 0
    reason: str  #: for a person
    log: str  #: what the kernel would have said; may be empty
    nanoseconds: int  #: that judging took
    gate: Literal["bpf", "fanotify"] = "bpf"

    @classmethod
    def from_json(cls, raw: bytes | str) -> Decision:
        """The decision in one line. Raises msgspec.ValidationError when there is none."""
        decision = msgspec.json.decode(raw, type=cls)
        if decision.schema != SCHEMA:
            raise msgspec.ValidationError(f"schema {decision.schema!r}, not {SCHEMA!r}")
        return decision

    def to_json(self) -> bytes:
        """As one line, with its end."""
        return encoded(self) + b"\n"


class Status(msgspec.Struct, kw_only=True):
    """The state of the gate, as `guard status --format json` has it."""

    schema: str = "splitlock/guard-status/1"
    gate: Literal["bpf", "fanotify", "none"]
    live: bool  #: proved now, by the canary
    why: str  #: why not, or why it is no BPF gate; may be empty
    policy: str | None
    audit: bool
    started: str | None  #: UTC, ISO 8601
    pins: list[str]
    counters: dict[str, int]  #: `missed`: runs of its programs that the kernel passed over; each may be a hole
    allowed: list[str]  #: digests, SHA-256
    holes: list[str]  #: what this gate does not see
    log: str
    watched: list[str] = []  #: file systems, by the fanotify gate
