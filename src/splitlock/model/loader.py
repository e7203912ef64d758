"""What does the module loader say to a module, and what becomes of detection?

The answers are the scanner's (splitlock.modules): `none` is Linux as it is; `disable` and `kernel-2020` are what was
posted for the kernel in April 2020, and look at whether detection is on; `refuse` is what `splitlock guard` enforces,
in any mode; `break:SYMBOL,...` are symbols that the kernel no longer exports.
"""

from __future__ import annotations

from functools import cache
from typing import Literal, NamedTuple

from splitlock._errors import ImageError, SplitlockError
from splitlock.modules.policy import Policy, load
from splitlock.modules.scan import Finding, Scan, scan
from splitlock.modules.verdict import Verdict, judge

Outcome = Literal["loaded", "refused", "disables"]

NONE = "none"
_SOURCES = {
    "disable": "LWN 816918: disable (Gleixner, Zijlstra)",
    "kernel-2020": "LWN 816918: refuse (Zijlstra), x86/module: Out-of-tree module decode and sanitize",
    "refuse": "splitlock guard: policies/refuse.toml",
}
_ENOEXEC = "ENOEXEC"


class Admission(NamedTuple):
    """What the loader did."""

    outcome: Outcome
    reason: str
    source: str
    log: str = ""


class Module(NamedTuple):
    """A module that was looked at: what the scanner found, and its bytes (None: it is described, not read)."""

    name: str
    scan: Scan
    data: bytes | None = None


def read(name: str, data: bytes, policy: str) -> Module:
    """A real module. Raises SplitlockError where it is no x86-64 ELF file."""
    try:
        kinds = _policy(policy).kinds if policy != NONE else frozenset[str]()
        return Module(name, scan(data, kinds | _policy("refuse").kinds), data)
    except ImageError as error:
        raise SplitlockError(f"{name}: {error}; name a kernel module", 2) from None


def described(
    name: str, kinds: tuple[str, ...], *, text: bool = True, imports: tuple[str, ...] = (), **marks: bool
) -> Module:
    """A module of which only this is known. `text`: the instructions are in `.text`; `marks`: intree, sld_safe."""
    section = ".text" if text else ".noinstr.text"
    findings = [
        Finding(kind, "possible", None, None, None, None, "imports")
        if kind == "FOREIGN-CODE"
        else Finding(kind, "exact", section, 0, None, kind, "instruction")
        for kind in kinds
    ]
    modinfo = {"name": [name], **{mark: ["Y"] for mark, there in marks.items() if there}}
    return Module(name, Scan(name, modinfo, frozenset(imports), frozenset(), findings, None, None, None, 1))


@cache
def _policy(name: str) -> Policy:
    return load(name)


def verdict(module: Module, policy: str) -> Verdict:
    """The policy's answer."""
    rules = _policy(policy)
    found = module.scan
    if rules.linear and module.data is None:  # what its decoding of `.text` would meet
        rules = Policy(policy, rules.rules)
        found = found._replace(findings=[finding for finding in found.findings if finding.section == ".text"])
    return judge(found, rules, module.data)


def admit(module: Module, policy: str, detecting: bool) -> Admission:
    """Load it, while detection is on or not."""
    if policy == NONE:
        return Admission("loaded", "nobody looks at it", "kernel/module/main.c: load_module()")
    source = _SOURCES.get(policy, "LWN 816918: break (Hellwig, Zijlstra)" if policy.startswith("break:") else policy)
    answer = verdict(module, policy)
    if answer.verdict == "disable":
        if not detecting:
            return Admission("loaded", "detection is off anyhow", source)
        return Admission("disables", answer.reason, source, answer.log)
    if answer.verdict == "refuse":
        marked = policy == "kernel-2020" and not any(kind.startswith("MOV ") for kind in answer.kinds)
        if marked and not detecting and "MALFORMED" not in answer.kinds:
            return Admission("loaded", "detection is off: VMX instructions are let in", source)
        error = {"kernel-2020": _ENOEXEC, "refuse": "EPERM"}.get(policy, "ENOENT" if ":" in policy else "")
        return Admission("refused", f"{answer.reason}{error and f' ({error})'}", source, answer.log)
    return Admission("loaded", answer.reason, source)
