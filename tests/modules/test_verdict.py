"""Policies and what they say, on scans made by hand: each rule of the shipped policies, and users' own."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from splitlock._errors import SplitlockError
from splitlock.image.module import ET_REL
from splitlock.modules.policy import SHIPPED, expand, load
from splitlock.modules.scan import SLD_AWARE, Finding, Scan
from splitlock.modules.verdict import facts, judge

VMX_LOG = "module: Module has VMX instructions and is not marked 'sld_safe', boot with: 'split_lock_detect=off': toy"


def made(*kinds: str, **fields: Any) -> Scan:
    """A scan that found these kinds, `?` before one that is only possible; `modinfo` as keys."""
    findings = [
        Finding(
            kind.lstrip("?"),
            "possible" if kind.startswith("?") else "exact",
            ".text",
            16 * number,
            "f",
            kind.lstrip("?").lower(),
            "instruction",
        )
        for number, kind in enumerate(kinds)
    ]
    whole: dict[str, Any] = {
        "name": "toy",
        "modinfo": {key: ["Y"] for key in ("name", *fields.pop("modinfo", ()))},
        "imports": frozenset(fields.pop("imports", ())),
        "exports": frozenset(),
        "findings": findings,
        "signer": None,
        "sha256": None,
        "malformed": None,
        "type": ET_REL,
        **fields,
    }
    return Scan(**whole)


INTREE = ["intree"]
SAFE = ["sld_safe"]
AWARE = [SLD_AWARE]


@pytest.mark.parametrize(
    ("scan", "verdict", "reason"),
    [
        (made(), "allow", "nothing found"),
        (made("VMLAUNCH"), "refuse", "VMLAUNCH: a hypervisor, neither sld_safe nor SLD-aware"),
        (made("VMXON", "VMREAD"), "refuse", "VMXON and VMREAD: "),
        (made("VMXON", "VMREAD", "VMWRITE"), "refuse", " and 2 more kinds: "),
        (made("VMLAUNCH", modinfo=INTREE), "refuse", "VMLAUNCH: "),  # in-tree is a key that anyone can write
        (made("VMLAUNCH", modinfo=SAFE), "allow", "its own word: it does not import handle_guest_split_lock"),
        (made("VMLAUNCH", imports=AWARE), "allow", "SLD-aware: imports handle_guest_split_lock"),
        (made("VMLAUNCH", imports=AWARE, modinfo=SAFE), "allow", "SLD-aware"),
        (made("VMLAUNCH", "MOV CR2", "LLDT", "WRMSR", imports=AWARE, modinfo=INTREE), "allow", "SLD-aware"),  # KVM
        (made("VMRUN", "WRMSR", modinfo=INTREE), "allow", "in-tree"),
        (made("VMRUN"), "refuse", "a hypervisor, out of tree"),
        (made("FOREIGN-CODE", "WRMSR"), "refuse", "FOREIGN-CODE: can run ring-0 code"),
        (made("VMCALL", "VMMCALL"), "allow", "nothing this policy forbids"),
        (made("MOV CR4"), "refuse", "MOV CR4: writes control or debug registers"),
        (made("VMXON", "MOV CR4", "LGDT", "LIDT", modinfo=SAFE), "allow", "marked sld_safe"),  # what none does without
        (made("MOV CR2", "MOV CR4", "MOV DR0", "MOV DRn", "XSETBV", "LTR", imports=AWARE), "allow", "SLD-aware"),
        (made("MOV CR0", "MOV CR4", modinfo=SAFE), "refuse", "MOV CR0: writes control registers, out of tree"),
        (made("VMLAUNCH", "MOV CR3", imports=AWARE), "refuse", "MOV CR3: "),
        (made("MOV DRn"), "refuse", "MOV DRn: "),
        (made("MOV CR4", modinfo=INTREE), "allow", "in-tree"),
        (made("WRMSR"), "refuse", "writes MSRs, out of tree"),
        (made("VMXON", "WRMSR", modinfo=SAFE), "allow", "marked sld_safe"),
        (made("LGDT"), "refuse", "loads descriptor tables"),
        (made("RDMSR", "WBINVD", "INVLPG"), "allow", "nothing this policy forbids"),
        (made("?VMLAUNCH"), "allow", "possible findings only"),
    ],
)
def test_refuse(scan: Scan, verdict: str, reason: str) -> None:
    answer = judge(scan, load("refuse"))
    assert answer.verdict == verdict
    assert reason in answer.reason


def test_the_kernel_itself_is_no_module() -> None:
    kernel = made("VMXON", "MOV CR4", type=2, exports=frozenset(["printk"]))._replace(modinfo={}, name=None)
    assert "kernel" in facts(kernel)
    for policy in SHIPPED[:2]:
        assert judge(kernel, load(policy)).verdict == "allow"
    program = kernel._replace(exports=frozenset())
    assert judge(program, load("refuse")).verdict == "refuse"  # VMMR0.r0 is neither


def test_log_lines_are_the_kernels() -> None:
    assert judge(made("VMLAUNCH"), load("refuse")).log == VMX_LOG
    assert judge(made("MOV CR4"), load("refuse")).log.endswith(
        "Module writes to CRn or DRn, please use the proper accessors: toy"
    )
    disabled = "x86/split lock detection: disabled due to VMLAUNCH in module: toy"
    assert judge(made("VMXON", "VMLAUNCH"), load("disable")).log == disabled
    assert judge(made("VMLAUNCH", modinfo=SAFE), load("disable")).log == ""


@pytest.mark.parametrize(
    ("scan", "verdict"),
    [
        (made("VMLAUNCH"), "disable"),
        (made("VMXON"), "disable"),
        (made("VMRESUME", modinfo=INTREE), "disable"),
        (made("VMLAUNCH", modinfo=SAFE), "allow"),
        (made("VMLAUNCH", imports=AWARE), "disable"),  # that answer knew of sld_safe only
        (made("VMREAD", "VMRUN", "MOV CR4", "FOREIGN-CODE"), "allow"),
    ],
)
def test_disable(scan: Scan, verdict: str) -> None:
    answer = judge(scan, load("disable"))
    assert answer.verdict == verdict
    if verdict == "disable":
        assert "detection would be off for the whole host" in answer.reason
        assert ("though it imports" in answer.reason) == bool(scan.imports)


def test_break() -> None:
    policy = load("break:vmap,__vmalloc")
    answer = judge(made(imports=["__vmalloc", "printk"]), policy)
    assert answer.verdict == "refuse"
    assert answer.reason == "imports __vmalloc: would no longer link"
    assert answer.log == "toy: Unknown symbol __vmalloc (err -2)"
    assert judge(made("VMLAUNCH", imports=["vmalloc"]), policy).verdict == "allow"


def test_users_policy(tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    file.write_text(
        """
        description = "ours"
        certainty = "possible"

        [[rule]]
        verdict = "allow"
        signer = ["Our CA*"]

        [[rule]]
        verdict = "refuse"
        name = ["vbox*", "vm-mon"]

        [[rule]]
        verdict = "allow"
        kinds = ["WBINVD", "mov cr8"]

        [[rule]]
        verdict = "refuse"
        kinds = ["cache", "MOV CR*", "VMXON"]
        unless = ["intree"]
        log = "{name}: {kind}"

        [[rule]]
        verdict = "refuse"
        intree = false
        signed = false
        reason = "unsigned"
        """
    )
    policy = load(str(file))
    assert judge(made("MOV CR0", signer="Our CA 2"), policy).verdict == "allow"
    assert judge(made(name="vboxdrv", modinfo=INTREE), policy).reason == "its name"
    assert judge(made(name="vm_mon", modinfo=INTREE), policy).verdict == "refuse"  # as file names have it
    assert judge(made("WBINVD", "MOV CR8", signer="X"), policy).verdict == "allow"  # these findings, not the module
    answer = judge(made("WBINVD", "INVD", signer="X"), policy)
    assert (answer.verdict, answer.log) == ("refuse", "toy: INVD")
    assert judge(made("?MOV CR4", signer="X"), policy).verdict == "refuse"
    assert judge(made(), policy).reason == "unsigned"
    assert judge(made("VMXON", modinfo=INTREE), policy).verdict == "allow"
    assert pickle.loads(pickle.dumps(policy)).rules[1].name == ["vbox*", "vm_mon"]


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('[[rule]]\nverdict = "deny"', "rule[0].verdict: "),
        ('[[rule]]\nverdict = "refuse"\n[[rule]]\nkinds = ["vmx"]', "rule[1]: "),
        ('[[rule]]\nverdict = "refuse"\nkinds = ["vmx", "VMFOO"]', "rule[0].kinds[1]: 'VMFOO'"),
        ('[[rule]]\nverdict = "refuse"\nintree = "yes"', "rule[0].intree: "),
        ('[[rule]]\nverdict = "refuse"\nunless = ["trusted"]', "rule[0].unless[0]: "),
        ('[[rule]]\nverdict = "refuse"\nkind = ["vmx"]', "rule[0]: Object contains unknown field `kind`"),
        ('rules = []\n[[rule]]\nverdict = "allow"', "top level: "),
        ("[[rule]", "no valid TOML"),
        ("", "top level: "),
    ],
)
def test_errors_name_file_and_key(tmp_path: Path, text: str, where: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(SplitlockError) as failure:
        load(str(file))
    assert str(failure.value).startswith(f"--policy {file}: ")
    assert where in str(failure.value)
    assert "\n" not in str(failure.value)
    assert failure.value.exit_code == 2


@pytest.mark.parametrize("name", ["nothing", "break:", "./none.toml", "none.toml"])
def test_unknown_policies(name: str) -> None:
    with pytest.raises(SplitlockError, match="^--policy " + name) as failure:
        load(name)
    assert failure.value.exit_code == 2


def test_groups_and_patterns() -> None:
    assert "VMXON" in expand("vmx")
    assert {"MOV CR0", "MOV CR8"} <= expand("MOV CR*")
    assert expand("mov drn") == {"MOV DRn"}
    assert not expand("VMFOO")
