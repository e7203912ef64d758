"""What a policy says of a module: refuse it, turn detection off for it, or let it in.

A policy is an ordered list of rules, as in a firewall: for the module as a whole and for each of its
findings the first rule that applies decides, and the gravest of these answers is the verdict. The
shipped policies are TOML files in policies/, in the form users write their own (docs/policies.md).
`break:SYMBOL,...` is made here: a module that imports one of the symbols would no longer link.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from splitlock.image.module import ET_REL
from splitlock.modules.scan import SLD_AWARE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from splitlock.modules.policy import Policy, Rule
    from splitlock.modules.scan import Finding, Scan


class Verdict(NamedTuple):
    """A policy's answer to a module."""

    verdict: Literal["allow", "refuse", "disable"]
    reason: str  #: for a person
    log: str  #: the line that the kernel would have printed; empty: none
    kinds: frozenset[str] = frozenset()  #: of the findings that led to it


GRAVITY = {"allow": 0, "disable": 1, "refuse": 2}
CLEAN = Verdict("allow", "nothing found", "")


def facts(scan: Scan) -> frozenset[str]:
    """What rules can ask of a module: sld_safe, sld_aware, intree, signed, module, kernel.

    Of `sld_safe` and `intree` only the key counts, not its value, as in the posted patches. `module`: a file the
    module loader takes (ET_REL). `kernel`: the kernel itself; linked, with exports, but without .modinfo.
    """
    found: set[str] = {key for key in ("sld_safe", "intree") if key in scan.modinfo}
    if SLD_AWARE in scan.imports:
        found.add("sld_aware")
    if scan.signer is not None:
        found.add("signed")
    if scan.type == ET_REL:
        found.add("module")
    elif scan.exports and not scan.modinfo:
        found.add("kernel")
    return frozenset(found)


def judge(scan: Scan, policy: Policy, data: bytes | None = None) -> Verdict:
    """The answer of `policy` to a scanned module.

    `data`, the file's bytes, is needed by policies that decode as the posted patches would have (decode = "linear");
    the others judge the scan's findings. Raises ImageError where `data` is no ELF file.
    """
    if not scan.findings and not policy.whole and not policy.linear:
        return CLEAN
    known = facts(scan)
    rules = [rule for rule in policy.rules if rule.fits(scan, known)]
    whole = next((rule for rule in rules if rule.whole), None)
    if whole is not None and whole is rules[0]:  # decides all of it: no need to look at the text
        return _answer(whole, scan, known, "", [])
    chosen: tuple[Rule, str] | None = None
    answers: dict[tuple[str, str], Rule | None] = {}
    for found in _events(scan, policy, data) if rules else ():
        if found not in answers:
            answers[found] = next((rule for rule in rules if rule.covers(*found)), None)
        rule = answers[found]
        if rule is not None and (chosen is None or _before(rule, chosen[0], policy)):
            chosen = rule, found[0]
    if whole is not None and (chosen is None or GRAVITY[whole.verdict] > GRAVITY[chosen[0].verdict]):
        chosen = whole, ""
    if chosen is None or (chosen[0].verdict == "allow" and not chosen[0].reason):
        return _allowed(scan, policy, known)
    rule, kind = chosen
    same = [k for k in dict.fromkeys(k for (k, _), r in answers.items() if r is rule) if k != kind]
    answer = _answer(rule, scan, known, kind, same)
    return answer._replace(kinds=frozenset(k for (k, _), r in answers.items() if r and r.verdict == rule.verdict))


def _before(rule: Rule, other: Rule, policy: Policy) -> bool:
    """Does `rule`, met later, speak for the module instead of `other`? The gravest does; then the first in the policy.

    A linear decode stops at the first instruction that is refused.
    """
    if GRAVITY[rule.verdict] != GRAVITY[other.verdict]:
        return GRAVITY[rule.verdict] > GRAVITY[other.verdict]
    return not policy.linear and policy.rules.index(rule) < policy.rules.index(other)


def _events(scan: Scan, policy: Policy, data: bytes | None) -> Iterable[tuple[str, str]]:
    """What counts, as kind and evidence, in the order in which it is met."""
    if policy.linear:
        from splitlock.modules.sweep import sweep

        if data is None:
            raise TypeError("a policy with linear decoding needs the file")
        return ((kind, "instruction") for kind, _ in sweep(data))
    return ((finding.kind, finding.evidence) for finding in scan.findings if counts(finding, policy))


def counts(finding: Finding, policy: Policy) -> bool:
    """Does a policy look at a finding? A decoding that may not happen is left out unless it asks for these too."""
    return finding.certainty == "exact" or finding.evidence != "instruction" or policy.certainty == "possible"


def _answer(rule: Rule, scan: Scan, known: frozenset[str], kind: str, more: list[str]) -> Verdict:
    what = ""
    if kind:
        many = len(more)
        what = kind if not many else f"{kind} and {more[0] if many == 1 else f'{many} more kinds'}"
    elif rule.imports:
        what = "imports " + ", ".join(sorted(rule.imports & scan.imports))
    reason = ": ".join(part for part in (what, rule.reason or why(rule)) if part)
    if "sld_safe" in rule.unless and "sld_aware" in known and "sld_aware" not in rule.unless:
        reason += f" (though it imports {SLD_AWARE})"
    symbol = min(rule.imports & scan.imports, default="") if rule.imports else ""
    log = rule.log.replace("{name}", scan.name or "").replace("{kind}", kind).replace("{symbol}", symbol)
    return Verdict(rule.verdict, reason, log)


def why(rule: Rule) -> str:
    """A reason for rules that give none: what they asked for."""
    asked = [f"no {key}" for key in rule.unless]
    asked += [key if value else f"no {key}" for key, value in rule.asked()]
    if rule.name:
        asked.append("its name")
    if rule.signer:
        asked.append("its signer")
    return ", ".join(asked) or f"the policy says {rule.verdict}"


def _allowed(scan: Scan, policy: Policy, known: frozenset[str]) -> Verdict:
    """Why nothing of what was found counts."""
    if not scan.findings:
        return CLEAN
    held = {(finding.kind, finding.evidence) for finding in scan.findings if counts(finding, policy)}
    excuse = ""
    for rule in policy.rules:
        excused = [key for key in rule.unless if key in known]
        if rule.verdict == "allow" or not excused or not any(rule.covers(*found) for found in held):
            continue
        if rule.fits(scan, known - set(excused)):
            excuse = excused[0] if "sld_aware" not in excused else "sld_aware"
            break
    if excuse == "sld_aware":
        return Verdict("allow", f"SLD-aware: imports {SLD_AWARE}", "")
    if excuse == "sld_safe":
        own = "" if "sld_aware" in known else f"; its own word: it does not import {SLD_AWARE}"
        return Verdict("allow", f"marked sld_safe{own}", "")
    if excuse:
        return Verdict("allow", {"intree": "in-tree"}.get(excuse, excuse), "")
    if not held:
        return Verdict("allow", "possible findings only", "")
    return Verdict("allow", "nothing this policy forbids", "")
