"""VirtualBox's real files, from Debian sid's contrib: a driver without VMX, and the hypervisor that it loads."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from splitlock.modules.scan import Scan, scan

pytestmark = pytest.mark.slow


def counted(result: Scan) -> Counter[str]:
    """Exact instructions by kind, the registers of each class together."""
    exact = [f.kind for f in result.findings if f.certainty == "exact" and f.evidence == "instruction"]
    return Counter(kind[:6] if kind.startswith("MOV ") else kind for kind in exact)


def test_the_hypervisor_is_no_module(virtualbox: Path) -> None:
    result = scan((virtualbox / "usr/lib/virtualbox/VMMR0.r0").read_bytes())
    assert (result.type, result.modinfo, result.signer) == (3, {}, None)
    assert result.imports >= {"SUPR0ChangeCR4", "SUPR0EnableHwvirt"}
    found = counted(result)
    assert all(found[kind] for kind in ("VMXON", "VMLAUNCH", "VMRESUME", "VMREAD", "VMRUN", "MOV CR", "MOV DR", "LTR"))
    if "7.2." in next(virtualbox.glob("virtualbox_*.deb")).name:  # what facts say of it
        expected = {
            "VMLAUNCH": 64, "VMRESUME": 64, "VMXON": 3, "VMREAD": 824, "VMRUN": 32, "MOV CR": 69, "MOV DR": 35,
            "LGDT": 3, "LIDT": 1, "LTR": 3, "WRMSR": 182,
        }  # fmt: skip
        assert {kind: found[kind] for kind in expected} == expected


def test_its_driver_holds_no_vmx_and_is_flagged(vboxdrv: Path) -> None:
    result = scan(vboxdrv.read_bytes())
    assert counted(result).keys() == {"RDMSR", "WRMSR"}
    others = {(f.kind, f.evidence) for f in result.findings if f.evidence != "instruction"}
    assert others == {
        ("FOREIGN-CODE", "imports apply_to_page_range, register_kprobe, vmap"),
        ("MOV CR4", "relocation cr4_update_irqsoff"),
    }
    assert "intree" not in result.modinfo
