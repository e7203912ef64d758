"""The decisions of `splitlock guard`: plain data, the JSON lines of schema `splitlock/guard/1`, and as text."""

from __future__ import annotations

from typing import Literal

import msgspec

SCHEMA = "splitlock/guard/1"
_WIDTH = 80
_MARGIN = " " * 9
_COLOURS = {"allow": "32", "refuse": "1;31", "disable": "1;33"}


class Finding(msgspec.Struct, kw_only=True):
    """One thing the gate found in a module."""

    kind: str  #: VMLAUNCH, MOV CR4, WRMSR, FOREIGN-CODE, ...
    evidence: str  #: `instruction`, `relocation pv_ops`, `relocation cr4_update_irqsoff`, `imports`
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
        return msgspec.json.encode(self) + b"\n"


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
    counters: dict[str, int]
    allowed: list[str]  #: digests, SHA-256
    holes: list[str]  #: what this gate does not see
    log: str
    watched: list[str] = []  #: file systems, by the fanotify gate


def head() -> str:
    """The table's head."""
    return f"{'VERDICT':<8} {'TIME (UTC)':<19} {'MODULE':<18} {'BY':<20} WHY"


def render(decision: Decision, *, verbose: bool = False, colour: bool = False) -> str:
    """One decision as text, 80 columns wide."""
    verdict = "REFUSED" if decision.refused else "allow" if decision.listed else decision.verdict
    by = f"{decision.comm}/{decision.pid}"
    line = f"{verdict:<8} {decision.time[:19].replace('T', ' '):<19} {_cut(decision.name or '?', 18):<18} {by:<20} "
    rest = decision.reason
    lines = [line + rest] if len(line) + len(rest) <= _WIDTH else [line.rstrip(), *_wrap(_MARGIN + rest, "", _MARGIN)]
    if verbose or decision.refused:
        lines += _wrap(", ".join(_facts(decision)), _MARGIN, _MARGIN)
    if verbose or verdict != "allow":
        lines += findings(decision, verbose)
        if decision.log:
            lines += _wrap(f"log: {decision.log}", _MARGIN, _MARGIN + "     ")
    text = "".join("".join(c if c.isprintable() else "?" for c in one) + "\n" for one in lines)
    if colour:
        number = _COLOURS.get(verdict, _COLOURS["refuse"])
        text = f"\x1b[{number}m{verdict}\x1b[0m" + text[len(verdict) :]
    return text


def render_test(decision: Decision, path: str, *, verbose: bool = False) -> str:
    """What the gate says of a file, as text."""
    verdict = "allow" if decision.listed else decision.verdict
    lines = _wrap(f"{verdict:<8} {decision.name or path.rpartition('/')[2]}: {decision.reason}", "", _MARGIN)
    if verbose or decision.verdict != "allow":
        lines.append(_MARGIN + path)
        lines += findings(decision, verbose)
        if decision.log:
            lines += _wrap(f"log: {decision.log}", _MARGIN, _MARGIN + "     ")
    if verbose and decision.digest:
        lines.append(f"{_MARGIN}sha256 {decision.digest}")
    return "".join("".join(c if c.isprintable() else "?" for c in one) + "\n" for one in lines)


def findings(decision: Decision, verbose: bool) -> list[str]:
    """A line a kind, the first place; every finding when verbose."""
    lines, seen = [], set()
    for finding in decision.findings:
        if not verbose and finding.kind in seen:
            continue
        seen.add(finding.kind)
        where = f"{finding.section}+{finding.offset}  " if finding.section else ""
        what = finding.kind + (" (possible)" if finding.possible else "")
        lines.append(_cut(f"{_MARGIN}{what:<20} {where}{finding.evidence}", _WIDTH))
    if decision.total > len(decision.findings):
        lines.append(f"{_MARGIN}and {decision.total - len(decision.findings):,} more findings")
    return lines


def _facts(decision: Decision) -> list[str]:
    how = "from memory" if decision.source == "memory" else "from a file"
    facts = [f"{decision.size:,} bytes {how}", f"uid {decision.uid}", f"{decision.nanoseconds / 1e6:.2f} ms"]
    if decision.digest:
        facts.append(f"sha256 {decision.digest}")
    elif decision.build_id:
        facts.append(f"build id {decision.build_id}")
    return facts


def render_status(status: Status) -> str:
    """The gate's state as text, 80 columns wide."""
    what = {"bpf": "BPF LSM", "fanotify": "fanotify", "none": "none"}[status.gate]
    lines = [f"gate      {what}{': live' if status.live else ': NOT LIVE' if status.gate != 'none' else ''}"]
    if status.why:
        lines += _wrap(f"          {status.why}", "", " " * 10)
    if status.policy is not None:
        lines.append(f"policy    {status.policy}" + (" (audit: nothing is refused)" if status.audit else ""))
    if status.started:
        lines.append(f"since     {status.started}")
    if status.counters:
        shown = [f"{number:,} {name}" for name, number in status.counters.items() if name != "nanoseconds"]
        lines += _wrap(f"counted   {', '.join(shown)}", "", " " * 10)
        if status.counters.get("decisions"):
            each = status.counters["nanoseconds"] / status.counters["decisions"] / 1e6
            lines.append(f"          {each:.3f} ms a decision")
        if status.counters.get("lost"):
            lines.append("          lost: decided as all others, but nobody read the log in time")
    if status.allowed:
        lines += [f"{'allow' if not at else '':<9} {digest}" for at, digest in enumerate(status.allowed)]
    if status.pins:
        lines += _wrap(f"pins      {' '.join(status.pins)}", "", " " * 10)
    if status.watched:
        lines += _wrap(f"watches   {' '.join(status.watched)}", "", " " * 10)
    if status.gate != "none":
        lines.append(f"log       {status.log}")
    for number, hole in enumerate(status.holes):
        lines += _wrap(f"{'blind to' if not number else '':<9} {hole}", "", " " * 12)
    return "\n".join(lines) + "\n"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _wrap(text: str, first: str, then: str) -> list[str]:
    lines, line = [], first
    for word in text.split(" "):
        if len(line) + len(word) > _WIDTH and line.strip():
            lines.append(line.rstrip())
            line = then
        line += word + " "
    return [*lines, line.rstrip()]
