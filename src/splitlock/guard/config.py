"""From a policy to what the gate understands: struct gate_config.

The gate judges as `splitlock scan` does, from the same policies, but it has no patterns over texts, and nothing that
takes a signature apart. What it cannot judge is an error that names the rule and the key, never
left out: a rule that silently does not apply would let in what it was written against.
"""

from __future__ import annotations

import os

from splitlock._errors import SplitlockError
from splitlock.guard import layout
from splitlock.guard.state import RuleWords, Words
from splitlock.modules import foreign, paravirt
from splitlock.modules.verdict import why
from splitlock.x86.privileged import DEFAULT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from splitlock.modules.policy import Policy, Rule

    Error = Callable[[str, str], SplitlockError]

_GLOBS = frozenset("*?[")


def build(policy: Policy, *, audit: bool = False, digests: bool = True, release: str | None = None) -> layout.Config:
    """The gate's configuration for a policy, on the kernel `release` (the running one by default).

    `audit`: nothing is refused, only logged. `digests`: a SHA-256 for modules that are allowed as well.
    Raises SplitlockError, exit status 2, for what the gate cannot judge.
    """
    if policy.linear:
        raise SplitlockError(
            f'--policy {policy.name}: decode = "linear": the gate decodes every function of every section, not as the '
            "patches of 2020 did; `splitlock scan` has this policy",
            2,
        )
    if len(policy.rules) > layout.RULES:
        raise SplitlockError(f"--policy {policy.name}: {len(policy.rules)} rules; the gate has {layout.RULES}", 2)
    made = layout.Config(version=layout.VERSION, audit=audit, digests=digests, rules=len(policy.rules))
    made.possible = policy.certainty == "possible"
    made.policy = os.fsencode(policy.name)[:63]
    pv_ops, _ = paravirt.layout_for(release or os.uname().release)
    for offset, operation in pv_ops.entries.items():
        made.pv_ops[offset // 8] = layout.NUMBER[operation.kind] + 1
    symbols = _Symbols(made, policy.name)
    made.lookups = symbols.bits(sorted(foreign.LOOKUPS))
    made.mappers = symbols.bits(sorted(foreign.MAPPERS))
    made.executable = symbols.bits(sorted(foreign.EXECUTABLE))
    patterns = 0
    looked_for = (DEFAULT | policy.kinds) & frozenset(layout.KINDS) | {layout.FOREIGN}
    for number, rule in enumerate(policy.rules):

        def error(key: str, why: str, number: int = number) -> SplitlockError:
            return SplitlockError(f"--policy {policy.name}: rule[{number}].{key}: {why}", 2)

        if rule.signer:
            raise error("signer", "the gate takes no signatures apart; ask for `signed`, and see module.sig_enforce")
        there = made.rule[number]
        there.verdict = layout.VERDICTS.index(rule.verdict)
        there.whole = rule.whole
        there.imports = symbols.bits(sorted(rule.imports), error)
        for fact, value in rule.needs.items():
            if value:
                there.needs |= layout.FACTS[fact]
            else:
                there.needs_not |= layout.FACTS[fact]
        for fact in rule.unless:
            there.unless |= layout.FACTS[fact]
        there.pattern, there.patterns = patterns, len(rule.name)
        for text in rule.name:
            if patterns == layout.PATTERNS:
                raise error("name", f"the policy has more than the gate's {layout.PATTERNS} names")
            made.pattern[patterns] = _pattern(text, error)
            patterns += 1
        if not rule.whole:
            _coverage(there, rule, looked_for, pv_ops, error)
    return made


class _Symbols:
    """The imports that are asked for: each has a number, whoever asks."""

    def __init__(self, config: layout.Config, policy: str) -> None:
        self.config, self.policy = config, policy
        self.numbers: dict[str, int] = {}
        self.own = 0  # asked for by the gate itself
        self.bits(layout.OWN_SYMBOLS)

    def bits(self, names: Iterable[str], error: Error | None = None) -> int:
        """A bitmap of symbols."""
        found = 0
        for name in names:
            number = self.numbers.get(name)
            if number is None:
                raw = os.fsencode(name)
                number = len(self.numbers)
                if error is not None:
                    if len(raw) >= layout.SYMBOL:
                        raise error("imports", f"{name}: the gate's symbols have at most {layout.SYMBOL - 1} bytes")
                    if number == layout.SYMBOLS:
                        own = layout.SYMBOLS - self.own
                        raise error("imports", f"the policy has more than the {own} symbols that the gate can ask for")
                self.config.symbol[number].name = raw
                self.config.symbols = number + 1
                self.numbers[name] = number
                if error is None:
                    self.own = number + 1
            found |= 1 << number
        return found


def _pattern(text: str, error: Error) -> layout.Pattern:
    """A name, or a name's beginning and `*`."""
    plain = text.removesuffix("*")
    raw = os.fsencode(plain)
    if not _GLOBS.isdisjoint(plain):
        raise error("name", f"{text!r}: the gate knows exact names and those that end in *")
    if len(raw) >= layout.NAME:
        raise error("name", f"{text!r}: names of modules have at most {layout.NAME - 1} bytes")
    return layout.Pattern(text=raw, length=len(raw), prefix=plain != text)


def _coverage(
    there: layout.Rule, rule: Rule, looked_for: frozenset[str], pv_ops: paravirt.Layout, error: Error
) -> None:
    """Which findings a rule covers: kinds and classes of evidence.

    A rule without kinds speaks of all that a scan under this policy looks for. One that can cover nothing here (of
    kinds that only a linear decode gives) keeps its number and gets facts that exclude each other.
    """
    kinds = looked_for & rule.kinds if rule.kinds else looked_for
    classes = 0
    for name, texts in _texts(pv_ops).items():
        covered = {
            rule.covers(kind, text) for kind, text in texts or ((k, "instruction") for k in kinds) if kind in kinds
        }
        if covered == {True}:
            classes |= name
        elif len(covered) > 1:
            raise error("evidence", f"the gate tells {layout.EVIDENCE[name]!r} as a whole; the pattern covers a part")
    if not kinds or not classes:
        there.needs = there.needs_not = layout.FACTS["module"]
    for kind in kinds:
        number = layout.NUMBER[kind]
        there.kinds[number // 64] |= 1 << number % 64
    there.evidence = classes


def _texts(pv_ops: paravirt.Layout) -> dict[int, Sequence[tuple[str, str]]]:
    """What the scanner writes as evidence, with the kinds that go with it, by the gate's class; () for instructions.

    Imports have as many texts as there are choices of them: here are each symbol alone and each pair that counts.
    """
    lists = [[symbol] for symbol in sorted(foreign.EXECUTABLE)]
    lists += [sorted([lookup, mapper]) for lookup in foreign.LOOKUPS for mapper in foreign.MAPPERS]
    lists.append(sorted(foreign.EXECUTABLE | foreign.LOOKUPS | foreign.MAPPERS))
    return {
        layout.INSTRUCTION: (),
        layout.PV_OPS: [(operation.kind, operation.evidence) for operation in pv_ops.entries.values()],
        layout.CR4: [("MOV CR4", f"relocation {paravirt.CR4_WRITER}")],
        layout.IMPORTS: [(layout.FOREIGN, f"imports {', '.join(names)}") for names in lists],
    }


def words(policy: Policy) -> Words:
    """What a policy says in words, which the gate does not keep: it is put into the decisions that are read back."""
    rules = [RuleWords(rule.verdict, rule.reason, why(rule), rule.log, sorted(rule.imports)) for rule in policy.rules]
    return Words(policy.name, rules)
