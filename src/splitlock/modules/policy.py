"""Policies: TOML files, checked strictly, and the ones made from the command line."""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import msgspec

from splitlock._errors import SplitlockError
from splitlock.x86.privileged import GROUPS, KINDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.modules.scan import Scan

_LARGEST = 1 << 20  # bytes of a policy file
DIRECTORY = Path(__file__).parent / "policies"
SHIPPED = ("refuse", "disable", "kernel-2020")
# What was proposed in April 2020 to no longer export. The first: Zijlstra, 6 April, a sketch (LKML
# 20200406140403.GL20730@hirez.programming.kicks-ass.net). The second: Hellwig, "decruft the vmalloc API", 8 April (LKML
# 20200408115926.1467567-1-hch@lst.de), whose branch has this name; it went into 5.8. docs/policies.md tells the rest.
_SKETCH = ("__get_vm_area", "map_vm_area", "unmap_kernel_range", "unmap_kernel_range_noflush")
#: Sets of exports by name: whatever takes symbols to be no longer exported takes these too.
EXPORT_SETS = {
    "unexport-2020": _SKETCH,
    "sanitize-vmalloc-api": (*_SKETCH, "__vmalloc_node_range", "vmalloc_user_node_flags"),
}
#: Kinds that are no instruction's: of relocations, of imports; and those that only a linear decode gives.
OTHERS = ("MOV DRn", "FOREIGN-CODE", "MALFORMED", "EXTRQ", "INSERTQ")
_FACTS = ("intree", "sld_safe", "sld_aware", "signed", "module", "kernel")
Fact = Literal["intree", "sld_safe", "sld_aware", "signed", "module", "kernel"]


class _Rule(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A [[rule]] as it is written."""

    verdict: Literal["allow", "refuse", "disable"]
    kinds: list[str] = []
    evidence: list[str] = []
    imports: list[str] = []
    name: list[str] = []
    signer: list[str] = []
    intree: bool | None = None
    sld_safe: bool | None = None
    sld_aware: bool | None = None
    signed: bool | None = None
    module: bool | None = None
    kernel: bool | None = None
    unless: list[Fact] = []
    reason: str = ""
    log: str = ""


class _File(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A policy as it is written."""

    description: str = ""
    decode: Literal["functions", "linear"] = "functions"
    certainty: Literal["exact", "possible"] = "exact"
    rule: list[_Rule]


class Rule:
    """One rule: what it applies to, and what follows. `kinds` and `imports` are the full names; empty: any."""

    __slots__ = ("evidence", "imports", "kinds", "log", "name", "needs", "reason", "signer", "unless", "verdict")

    def __init__(self, raw: _Rule, kinds: frozenset[str]) -> None:
        self.verdict = raw.verdict
        self.kinds = kinds
        self.evidence = raw.evidence
        self.imports = frozenset(raw.imports)
        self.name = [pattern.replace("-", "_") for pattern in raw.name]
        self.signer = raw.signer
        self.needs = {key: value for key in _FACTS if (value := getattr(raw, key)) is not None}
        self.unless = raw.unless
        self.reason = raw.reason
        self.log = raw.log

    @property
    def whole(self) -> bool:
        """Does it speak of the module as a whole?"""
        return not self.kinds and not self.evidence

    def covers(self, kind: str, evidence: str) -> bool:
        """Does it apply to such a finding?"""
        if self.kinds and kind not in self.kinds:
            return False
        return not self.evidence or any(fnmatchcase(evidence, pattern) for pattern in self.evidence)

    def fits(self, scan: Scan, known: frozenset[str]) -> bool:
        """Does it apply to a module of which these facts are `known`, as far as findings are not asked for?"""
        if any((key in known) != value for key, value in self.needs.items()):
            return False
        if not known.isdisjoint(self.unless) or (self.imports and self.imports.isdisjoint(scan.imports)):
            return False
        if self.name and not any(fnmatchcase((scan.name or "").replace("-", "_"), pattern) for pattern in self.name):
            return False
        return not self.signer or any(fnmatchcase(scan.signer or "", pattern) for pattern in self.signer)

    def asked(self) -> list[tuple[str, bool]]:
        """The facts it wants to hold, or not to."""
        return list(self.needs.items())


class Policy:
    """A policy's `name`, `rules`, how it decodes (`linear`), and the `certainty` from which on findings count."""

    __slots__ = ("certainty", "kinds", "linear", "name", "rules", "whole")

    def __init__(self, name: str, rules: list[Rule], linear: bool = False, certainty: str = "exact") -> None:
        self.name = name
        self.rules = rules
        self.linear = linear
        self.certainty = certainty
        self.kinds = frozenset().union(*(rule.kinds for rule in rules))  #: that it has rules for
        #: has rules that can turn away a module in which nothing was found
        self.whole = any(rule.whole and rule.verdict != "allow" for rule in rules)


def load(text: str) -> Policy:
    """The policy of `--policy TEXT`: a shipped one's name, `break:SYMBOL,...`, or the path of a TOML file.

    Raises SplitlockError, exit status 2, that names the file and the key.
    """
    if text.startswith("break:"):
        symbols = named([symbol for symbol in text[6:].split(",") if symbol])
        if not symbols:
            raise SplitlockError("--policy break: names no symbol (break:SYMBOL,...)", 2)
        # The kernel's words, and -ENOENT, of a symbol that nobody exports: kernel/module/main.c, simplify_symbols().
        rule = _Rule(
            verdict="refuse",
            imports=symbols,
            reason="would no longer link",
            log="{name}: Unknown symbol {symbol} (err -2)",
        )
        return Policy(text, [Rule(rule, frozenset())])
    if text in SHIPPED:
        return _read(DIRECTORY / f"{text}.toml", text)
    if os.sep not in text and not text.endswith(".toml"):
        raise SplitlockError(
            f"--policy {text}: no such policy; one of {', '.join(SHIPPED)}, break:SYMBOL,... or a TOML file", 2
        )
    return _read(Path(text), text)


def named(symbols: list[str]) -> list[str]:
    """Symbols, with each set's name replaced by what is in it."""
    return [symbol for name in symbols for symbol in EXPORT_SETS.get(name, (name,))]


def _read(path: Path, name: str) -> Policy:
    import tomllib

    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST)  # it may be a device that never ends
        if len(text) == _LARGEST:
            raise SplitlockError(f"--policy {name}: a megabyte or more; name a policy in TOML", 2)
        raw = tomllib.loads(text.decode())
    except OSError as error:
        raise SplitlockError(f"--policy {name}: {error.strerror}; name a TOML file that can be read", 2) from None
    except UnicodeDecodeError as error:
        raise SplitlockError(f"--policy {name}: not UTF-8 at byte {error.start}; TOML files are", 2) from None
    except (ValueError, RecursionError) as error:  # numbers of 5,000 digits, thousands of brackets
        raise SplitlockError(f"--policy {name}: no valid TOML: {error}", 2) from None
    try:
        file = msgspec.convert(raw, _File)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        key = where.rstrip("`").lstrip(".") or "top level"
        raise SplitlockError(f"--policy {name}: {key}: {what} (see docs/policies.md)", 2) from None
    rules = []
    for number, rule in enumerate(file.rule):
        rules.append(Rule(rule, _kinds(name, number, rule.kinds)))
    return Policy(name, rules, file.decode == "linear", file.certainty)


def _kinds(name: str, number: int, words: list[str]) -> frozenset[str]:
    found: set[str] = set()
    for place, word in enumerate(words):
        kinds = expand(word)
        if not kinds:
            raise SplitlockError(
                f"--policy {name}: rule[{number}].kinds[{place}]: {word!r} is no kind and no group of kinds "
                "(docs/scan.md lists them)",
                2,
            )
        found |= kinds
    return frozenset(found)


def expand(word: str) -> frozenset[str]:
    """The kinds of a group, the kind of that name, or those that fit a pattern such as `MOV CR*`; none if unknown."""
    if word.lower() in GROUPS:
        return frozenset(GROUPS[word.lower()])
    word = word.upper()
    return frozenset(kind for kind in (*KINDS, *OTHERS) if fnmatchcase(kind.upper(), word))
