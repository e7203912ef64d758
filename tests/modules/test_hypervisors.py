"""A hypervisor that runs, and its variants, built for real: what scan and each policy say, and what breaks them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from modules.debian import ROOT, STORE, modules, packages
from modules.hypervisors import NAMES, build
from modules.toys import unpack

from splitlock.modules.exports import load as load_kernel
from splitlock.modules.policy import load
from splitlock.modules.scan import Scan, scan
from splitlock.modules.verdict import judge

REFUSE, DISABLE, ALLOW = "refuse", "disable", "allow"
POLICIES = ("refuse", "disable", "break:handle_guest_split_lock")
# module: verdicts under these
VERDICTS = {
    "blind": (REFUSE, DISABLE, ALLOW),
    "blind_on": (REFUSE, DISABLE, ALLOW),
    "blind_safe": (ALLOW, ALLOW, ALLOW),
    "blind_asks": (ALLOW, DISABLE, REFUSE),
}
ON = {"VMXON", "VMXOFF", "MOV CR4", "LGDT", "LIDT"}
GUEST = ON | {"VMCLEAR", "VMPTRLD", "VMWRITE", "VMREAD", "VMLAUNCH", "VMCALL"}
#: What reads and writes MSRs, or seems to: through pv_ops, of which the layout is known of 6.1 to 6.12.
MSRS = {"RDMSR", "WRMSR"}


def certain(found: Scan) -> set[str]:
    return {each.kind for each in found.findings if each.certainty == "exact"}


def verdicts(path: Path) -> tuple[str, ...]:
    data = path.read_bytes()
    return tuple(judge(scan(data), load(policy), data).verdict for policy in POLICIES)


def test_every_variant_is_judged() -> None:
    assert VERDICTS.keys() == set(NAMES)


@pytest.mark.parametrize("name", VERDICTS)
def test_findings_and_verdicts(hypervisors: dict[str, Path], name: str) -> None:
    found = scan(hypervisors[name].read_bytes())
    assert certain(found) == (ON if name == "blind_on" else GUEST) | MSRS
    assert not [each for each in found.findings if each.certainty != "exact"]
    assert verdicts(hypervisors[name]) == VERDICTS[name]


def test_why(hypervisors: dict[str, Path]) -> None:
    reasons = {name: judge(scan(path.read_bytes()), load("refuse")).reason for name, path in hypervisors.items()}
    assert "a hypervisor, neither sld_safe nor SLD-aware" in reasons["blind"]
    assert "a hypervisor, neither sld_safe nor SLD-aware" in reasons["blind_on"]
    assert reasons["blind_safe"] == "marked sld_safe; its own word: it does not import handle_guest_split_lock"
    assert reasons["blind_asks"] == "SLD-aware: imports handle_guest_split_lock"


def test_kernel_2020(hypervisors: dict[str, Path]) -> None:
    """It took no mark for a write to CR4; and what blind does, it does in .init.text, where nobody looked."""
    answers = {}
    for name, path in hypervisors.items():
        data = path.read_bytes()
        answers[name] = judge(scan(data), load("kernel-2020"), data).verdict
        text = {each.kind for each in scan(data).findings if each.section == ".text"}
        writes, vmx = "MOV CR4" in text, text & {"VMLAUNCH", "VMXON", "VMCALL"}
        refused = writes or (vmx and name != "blind_safe")
        assert answers[name] == ("refuse" if refused else "allow"), (name, text)
    assert answers["blind"] == "refuse"


def test_exports(hypervisors: dict[str, Path], headers: Path) -> None:
    """Who imports the function fails without it; blind asks for it as it runs, which no import tells."""
    paths = [str(path) for path in hypervisors.values()]
    paths += [str(modules("amd64")[name]) for name in ("kvm.ko", "kvm-intel.ko", "irqbypass.ko")]
    kernel = load_kernel(paths, str(headers / "Module.symvers"))
    assert kernel.unresolved == []
    assert set(kernel.without(["handle_guest_split_lock"])) == {"blind_asks", "kvm_intel"}
    assert kernel.without(["cr4_update_irqsoff"]) == ["kvm_intel"]  # the others write CR4 themselves
    assert set(kernel.users["__symbol_get"]) >= {"blind", "blind_safe"}


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The headers of the kernels before and after 6.1."""
    found = {
        kind: unpack(list(packages(f"{kind}-headers").values()), tmp_path_factory.mktemp(kind))
        for kind in ("old", "xz")
    }
    done = subprocess.run([ROOT / "scripts/new-headers.sh", STORE], capture_output=True, text=True, check=True)
    return found | {"new": Path(done.stdout.strip())}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["old", "xz", "new"])
def test_other_kernels(trees: dict[str, Path], kind: str, tmp_path: Path) -> None:
    """The same on 5.10, 6.12 and sid's kernel; there nobody but KVM may import handle_guest_split_lock."""
    names = [name for name in NAMES if (kind, name) != ("new", "blind_asks")]
    for name, path in build(trees[kind], tmp_path, names).items():
        found = scan(path.read_bytes())
        assert certain(found) - MSRS == (ON if name == "blind_on" else GUEST)
        assert {each.kind for each in found.findings} - certain(found) <= MSRS
        assert verdicts(path) == VERDICTS[name]


@pytest.mark.slow
def test_asking_is_for_kvm_alone(trees: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="handle_guest_split_lock from namespace module:kvm"):
        build(trees["new"], tmp_path, ["blind_asks"])
