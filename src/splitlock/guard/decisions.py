"""From a decision as the gate notes it to one that people and programs read (`report.guard.Decision`).

The gate knows numbers of rules and of symbols; the policy's words come from what is kept beside it, and say the same
as `splitlock scan` would of the file. A gate whose words are lost (they are in /run) still has its verdicts.
"""

from __future__ import annotations

import ctypes
import hashlib
import time
from operator import and_

from splitlock.guard import layout
from splitlock.linux.proc import status
from splitlock.linux.text import when
from splitlock.modules.foreign import loads_foreign_code
from splitlock.modules.scan import SLD_AWARE
from splitlock.report.guard import Decision, Finding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.guard.state import RuleWords, Words
    from splitlock.modules.policy import Policy
    from splitlock.modules.scan import Scan
    from splitlock.modules.verdict import Verdict

SIZE = ctypes.sizeof(layout.Decision)
_PLAIN = [word for bit, word in layout.EVIDENCE.items() if bit != layout.IMPORTS]  # evidence that says it all


def decode(raw: bytes, config: layout.Config, words: Words | None) -> Decision:
    """A record of the ring buffer, made under `config`, in words."""
    there = layout.Decision.from_buffer_copy(raw[:SIZE].ljust(SIZE, b"\0"))
    boot = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return record(there, config, words, when((there.time + boot) // 1000 / 1e6))


def record(there: layout.Decision, config: layout.Config, words: Words | None, time: str) -> Decision:
    """A decision made under `config`, in words."""
    name = _text(there.name)
    symbols = [_text(config.symbol[bit].name) for bit in layout.bits(there.imports)]
    found = [_finding(each, symbols) for each in there.finding[: there.named]]
    # `because` has the kinds of all rules with this verdict: the one that decides speaks of its own
    own = config.rule[there.rule].kinds if there.rule >= 0 else (0, 0)
    because = layout.kinds(map(and_, there.because, own))
    first = next((finding.kind for finding in found if finding.kind in because), because[0] if because else "")
    doubt = layout.DOUBTS[there.doubt] if there.doubt < len(layout.DOUBTS) else "unreadable"
    reason, log = "", ""
    if there.allowed:
        reason = "on the list of `guard allow`"
    elif doubt is not None:
        reason = f"cannot be judged: {layout.WORDS[doubt]}"
    elif there.rule < 0 or (there.verdict == layout.ALLOW and words is not None and not _own_reason(words, there.rule)):
        reason = _allowed(there, config)
    elif words is not None and there.rule < len(words.rules):
        reason, log = _answer(there, config, words.rules[there.rule], symbols, first, because, name)
    else:
        reason = f"rule {there.rule} of the policy"
    return Decision(
        time=time,
        pid=there.pid,
        comm=_text(there.comm),
        uid=there.uid,
        name=name,
        digest=bytes(there.digest).hex() if there.digested else None,
        build_id=_text(there.build_id),
        size=there.size,
        source="memory" if there.from_memory else "file",
        findings=found,
        total=there.total,
        verdict=layout.VERDICTS[there.verdict],  # type: ignore[arg-type]
        refused=bool(there.refused),
        listed=bool(there.allowed),
        doubt=doubt,
        policy=_text(config.policy),
        rule=there.rule if there.rule >= 0 else None,
        reason=reason,
        log=log,
        nanoseconds=there.duration,
    )


def from_scan(
    data: bytes, found: Scan | None, verdict: Verdict | None, doubt: str, policy: Policy, tid: int,
    *, refused: bool, nanoseconds: int,
) -> Decision:  # fmt: skip
    """The decision of the fanotify gate, from what the scanner says; without a verdict `doubt` says why."""
    counted = [] if found is None else found.findings
    every = [
        Finding(
            kind=each.kind,
            evidence=next((word for word in _PLAIN if each.evidence.startswith(word)), each.evidence),
            possible=each.certainty == "possible",
            section=each.section,
            offset=None if each.offset is None else f"{each.offset:#x}",
        )
        for each in counted
    ]
    # one of each kind and evidence, its first place, as the gate in the kernel names them
    first: dict[tuple[str, str], Finding] = {}
    for each in every:
        first.setdefault((each.kind, each.evidence), each)
    findings = list(first.values())
    pid, uid, comm = process(tid)
    return Decision(
        time=when(time.time()),
        pid=pid,
        comm=comm,
        uid=uid,
        name=(found.name or "") if found else "",
        digest=hashlib.sha256(data).hexdigest(),
        build_id="",
        size=len(data),
        source="file",
        findings=findings[: layout.FINDINGS],
        total=len(every),
        verdict="refuse" if verdict is None else verdict.verdict,
        refused=refused,
        listed=False,
        doubt=None if verdict else "malformed",
        policy=policy.name,
        rule=None,
        reason=verdict.reason if verdict else f"cannot be judged: {doubt}",
        log=verdict.log if verdict else "",
        nanoseconds=nanoseconds,
        gate="fanotify",
    )


def process(tid: int) -> tuple[int, int, str]:
    """Of a thread: its process, the user, the name; zeros for what is not known."""
    try:
        fields = status(tid)
        return int(fields["Tgid"]), int(fields["Uid"].split()[0]), fields["Name"]
    except (OSError, KeyError, ValueError):
        return tid, 0, "?"


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _own_reason(words: Words, rule: int) -> str:
    return words.rules[rule].reason if rule < len(words.rules) else ""


def _finding(there: layout.Finding, symbols: list[str]) -> Finding:
    section = _text(there.section)
    evidence = layout.EVIDENCE.get(there.evidence, f"evidence {there.evidence}")
    if there.evidence == layout.IMPORTS:
        evidence += " " + ", ".join(loads_foreign_code(frozenset(symbols)))
    return Finding(
        kind=layout.KINDS[there.kind] if there.kind < len(layout.KINDS) else f"kind {there.kind}",
        evidence=evidence,
        possible=bool(there.possible),
        section=section or None,
        offset=f"{there.offset:#x}" if section else None,
    )


def _answer(
    there: layout.Decision,
    config: layout.Config,
    rule: RuleWords,
    imported: list[str],
    kind: str,
    because: list[str],
    name: str,
) -> tuple[str, str]:
    """The reason of a rule, and the kernel's line, as modules.verdict has them."""
    what = ""
    symbols = sorted(set(rule.imports) & set(imported))
    if kind:
        more = [other for other in because if other != kind]
        what = kind if not more else f"{kind} and {more[0] if len(more) == 1 else f'{len(more)} more kinds'}"
    elif symbols:
        what = "imports " + ", ".join(symbols)
    reason = ": ".join(part for part in (what, rule.reason or rule.why) if part)
    unless = config.rule[there.rule].unless
    aware, safe = layout.FACTS["sld_aware"], layout.FACTS["sld_safe"]
    if unless & safe and there.facts & aware and not unless & aware:
        reason += f" (though it imports {SLD_AWARE})"
    symbol = symbols[0] if symbols else ""
    return reason, rule.log.replace("{name}", name).replace("{kind}", kind).replace("{symbol}", symbol)


def _allowed(there: layout.Decision, config: layout.Config) -> str:
    """Why nothing of what was found counts."""
    if not any(there.kinds):
        return "nothing found" if not there.total else "possible findings only"
    for number in range(config.rules):
        rule = config.rule[number]
        excused = rule.unless & there.facts
        if rule.verdict == layout.ALLOW or not excused or rule.whole:
            continue
        if any(rule.kinds) and not any(a & b for a, b in zip(rule.kinds, there.kinds, strict=True)):
            continue
        left = there.facts & ~excused
        if rule.needs & ~left or rule.needs_not & left or (rule.imports and not rule.imports & there.imports):
            continue
        if excused & layout.FACTS["sld_aware"]:
            return f"SLD-aware: imports {SLD_AWARE}"
        if excused & layout.FACTS["sld_safe"]:
            return f"marked sld_safe; its own word: it does not import {SLD_AWARE}"
        if excused & layout.FACTS["intree"]:
            return "in-tree"
        return next(fact for fact, bit in layout.FACTS.items() if excused & bit)
    return "nothing this policy forbids"
