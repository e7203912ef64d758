"""What becomes of a policy in the gate's own form, and what the gate says it cannot judge."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest

from splitlock._errors import SplitlockError
from splitlock.guard import judge, layout
from splitlock.guard.config import build, words
from splitlock.modules import foreign
from splitlock.modules.policy import load

HEADER = judge.BUILT / "gate.h"
TABLES = judge.BUILT / "tables.h"
DEBIAN = "6.1.0-56-amd64"


def _policy(tmp_path: Path, text: str) -> layout.Config:
    path = tmp_path / "own.toml"
    path.write_text(text)
    return build(load(str(path)), release=DEBIAN)


def _kinds(rule: layout.Rule) -> set[str]:
    return set(layout.kinds(rule.kinds))


def _symbols(config: layout.Config, bits: int) -> set[str]:
    return {config.symbol[bit].name.decode() for bit in layout.bits(bits)}


def test_structures_are_those_of_the_c_side() -> None:
    library = ctypes.CDLL(judge.built(judge.LIBRARY))
    assert judge.sizes(library) == [ctypes.sizeof(structure) for structure in layout.STRUCTURES]


def test_constants_are_those_of_the_header() -> None:
    text = HEADER.read_text()
    named = dict(re.findall(r"#define (GATE_\w+) (\S+)\s", text))
    magic = re.search(r'GATE_CANARY_MAGIC "([^"]*)"', text)
    assert magic
    assert layout.CANARY.startswith(magic[1].encode().ljust(int(named["GATE_CANARY_SIZE"]), b"\0"))
    assert len(layout.CANARY) >= 64  # what is shorter than an ELF header is turned away before any hook
    assert int(named["GATE_ERRNO_CANARY"]) == layout.CANARY_ERRNO
    for name in ("VERSION", "RULES", "PATTERNS", "NAME", "SYMBOLS", "SYMBOL", "FINDINGS", "SECTION"):
        assert int(named[f"GATE_{name}"]) == getattr(layout, name), name
    doubts = re.search(r"enum gate_doubt \{(.*?)\};", text, re.DOTALL)
    assert doubts
    assert len(re.findall(r"^\s*GATE_", doubts[1], re.MULTILINE)) == len(layout.DOUBTS)


def test_kinds_have_the_numbers_of_the_tables() -> None:
    numbers = dict(re.findall(r"GATE_KIND_(\w+) = (\d+)", TABLES.read_text()))
    numbers = {name: int(number) for name, number in numbers.items() if int(number) < len(layout.KINDS)}
    for kind, number in layout.NUMBER.items():
        assert numbers[re.sub(r"\W", "_", kind.replace("DRn", "DR_ANY"))] == number, kind


def test_refuse() -> None:
    policy = load("refuse")
    config = build(policy, release=DEBIAN)
    assert (config.version, config.rules, config.audit, config.possible) == (layout.VERSION, len(policy.rules), 0, 0)
    assert config.policy == b"refuse"
    kernel, vmx = config.rule[0], config.rule[1]
    assert (kernel.whole, kernel.needs, kernel.verdict) == (1, layout.FACTS["kernel"], layout.ALLOW)
    assert {"VMLAUNCH", "VMXON", "SEAMCALL"} <= _kinds(vmx)
    assert "VMRUN" not in _kinds(vmx)
    assert vmx.unless == layout.FACTS["sld_safe"] | layout.FACTS["sld_aware"]
    assert (vmx.verdict, vmx.whole, vmx.patterns) == (layout.REFUSE, 0, 0)
    (cr4,) = (config.rule[n] for n, rule in enumerate(policy.rules) if rule.evidence)
    assert (cr4.evidence, _kinds(cr4)) == (layout.CR4, {"MOV CR4"})
    assert _symbols(config, config.lookups) == foreign.LOOKUPS
    assert _symbols(config, config.mappers) == foreign.MAPPERS
    assert _symbols(config, config.executable) == foreign.EXECUTABLE
    assert [config.symbol[n].name.decode() for n in range(3)] == list(layout.OWN_SYMBOLS)


def test_pv_ops_are_those_of_the_kernel_that_runs() -> None:
    old, new = (build(load("refuse"), release=release) for release in (DEBIAN, "6.18.44"))
    for config, write_msr in ((old, 24), (new, 23)):
        assert layout.KINDS[config.pv_ops[write_msr] - 1] == "WRMSR"
        assert layout.KINDS[config.pv_ops[5] - 1] == "MOV CR4"
        assert config.pv_ops[0] == 0


def test_break() -> None:
    config = build(load("break:vmap_pfn,handle_guest_split_lock"))
    assert config.rules == 1
    assert config.rule[0].whole == 1
    assert _symbols(config, config.rule[0].imports) == {"vmap_pfn", "handle_guest_split_lock"}


def test_names_facts_and_words(tmp_path: Path) -> None:
    config = _policy(
        tmp_path,
        '[[rule]]\nverdict = "allow"\nname = ["acme-*", "other"]\nintree = false\nsigned = true\n'
        'reason = "ours"\n[[rule]]\nverdict = "disable"\nkinds = ["svm", "EXTRQ"]\nlog = "x {name}"\n',
    )
    assert [(p.text, p.length, p.prefix) for p in config.pattern[:2]] == [(b"acme_", 5, 1), (b"other", 5, 0)]
    rule = config.rule[0]
    assert (rule.pattern, rule.patterns, rule.needs, rule.needs_not) == (0, 2, 8, 1)
    assert _kinds(config.rule[1]) == {"VMRUN", "VMLOAD", "VMSAVE", "STGI", "CLGI", "SKINIT", "INVLPGA"}
    kept = words(load(str(tmp_path / "own.toml")))
    assert [(r.verdict, r.reason, r.log) for r in kept.rules] == [("allow", "ours", ""), ("disable", "", "x {name}")]


def test_rules_without_kinds_speak_of_what_is_looked_for(tmp_path: Path) -> None:
    text = '[[rule]]\nverdict = "refuse"\nevidence = ["instruction", "imports *"]\n'
    rule = _policy(tmp_path, text).rule[0]
    assert rule.evidence == layout.INSTRUCTION | layout.IMPORTS
    assert {"VMXON", "FOREIGN-CODE"} <= _kinds(rule)
    assert "IRET" not in _kinds(rule)  # the scanner does not look for it either, unless a rule names it
    both = _policy(tmp_path, text + '[[rule]]\nverdict = "refuse"\nkinds = ["frequent"]\n')
    assert "IRET" in _kinds(both.rule[0])


def test_a_rule_that_covers_nothing_never_applies(tmp_path: Path) -> None:
    rule = _policy(tmp_path, '[[rule]]\nverdict = "refuse"\nkinds = ["MALFORMED"]\n').rule[0]
    assert rule.needs & rule.needs_not


def test_a_pattern_may_name_all_of_a_class_that_its_kinds_leave(tmp_path: Path) -> None:
    rule = _policy(tmp_path, '[[rule]]\nverdict="refuse"\nkinds=["WBINVD"]\nevidence=["relocation*(wbinvd)"]\n').rule[0]
    assert rule.evidence == layout.PV_OPS


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ('signer = ["Debian*"]', "rule[0].signer: "),
        ('name = ["a*b"]', "rule[0].name: 'a*b': "),
        ('name = ["kvm?"]', "rule[0].name: 'kvm?': "),
        (f'name = ["{"n" * 56}"]', "rule[0].name: "),
        ('evidence = ["relocation pv_ops+0xb8*"]', "rule[0].evidence: "),
        ('evidence = ["imports register_*"]', "rule[0].evidence: "),
        (f'imports = ["{"s" * 64}"]', "rule[0].imports: "),
        (f"imports = {[f's{n}' for n in range(64)]}".replace("'", '"'), "rule[0].imports: the policy has more than"),
        (f"name = {[f'n{n}' for n in range(65)]}".replace("'", '"'), "rule[0].name: the policy has more than"),
    ],
)
def test_what_the_gate_cannot_judge_names_rule_and_key(tmp_path: Path, rule: str, says: str) -> None:
    with pytest.raises(SplitlockError) as caught:
        _policy(tmp_path, f'[[rule]]\nverdict = "refuse"\n{rule}\n')
    assert f"--policy {tmp_path / 'own.toml'}: {says}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_linear_policies_and_too_many_rules(tmp_path: Path) -> None:
    with pytest.raises(SplitlockError, match='--policy kernel-2020: decode = "linear"'):
        build(load("kernel-2020"))
    with pytest.raises(SplitlockError, match="33 rules"):
        _policy(tmp_path, '[[rule]]\nverdict = "allow"\nintree = true\n' * 33)
