"""Toy modules built for real against Debian's headers: what is hidden in them is found, decoys are not."""

from __future__ import annotations

from pathlib import Path

import pytest
from modules.toys import NAMES

from splitlock.modules.scan import Scan, scan

# name: (kind, certainty, section, evidence) of each finding
EXPECTED: dict[str, list[tuple[str, str, str | None, str]]] = {
    "launch": [("VMLAUNCH", "exact", ".text", "instruction")],
    "launch_init": [("VMLAUNCH", "exact", ".init.text", "instruction")],
    "launch_safe": [("VMLAUNCH", "exact", ".text", "instruction")],
    "launch_cold": [("VMLAUNCH", "exact", ".text.unlikely", "instruction")],
    "on": [("VMXON", "exact", ".text", "instruction")],
    "cr4": [("MOV CR4", "exact", ".text", "instruction")],
    "cr4_accessor": [("MOV CR4", "exact", ".text", "relocation cr4_update_irqsoff")],
    "paravirt": [
        ("WRMSR", "exact", ".text", "relocation pv_ops+0xc0 (write_msr)"),
        ("MOV DRn", "exact", ".text", "relocation pv_ops+0x10 (set_debugreg)"),
        ("WBINVD", "exact", ".text", "relocation pv_ops+0xa8 (wbinvd)"),
        # what the last one becomes where the kernel is no Xen PV guest
        ("WBINVD", "exact", ".altinstr_replacement", "instruction"),
    ],
    "decoy": [],
    "data_before": [("VMLAUNCH", "exact", ".text", "instruction")],
    "jump_over": [("VMLAUNCH", "possible", ".text", "instruction")],
    "blob": [],
    "vmalloc": [],
    "foreign": [("FOREIGN-CODE", "possible", None, "imports register_kprobe, vmap")],
    "guest_call": [("VMCALL", "exact", ".text", "instruction")],
    "clean": [],
}


def scanned(toys: dict[str, Path], name: str) -> Scan:
    return scan(toys[name].read_bytes())


def test_every_toy_is_expected_to_be_something() -> None:
    assert EXPECTED.keys() == set(NAMES)


@pytest.mark.parametrize("name", EXPECTED)
def test_findings(toys: dict[str, Path], name: str) -> None:
    found = scanned(toys, name)
    said = [(f.kind, f.certainty, f.section, f.evidence) for f in found.findings]
    assert sorted(said, key=str) == sorted(EXPECTED[name], key=str)
    assert all(f.function == "toy_enter" for f in found.findings if f.section in (".text", ".text.unlikely"))
    assert (found.name, found.type, found.signer) == (name, 1, None)
    assert "intree" not in found.modinfo


def test_what_toys_say_of_themselves(toys: dict[str, Path]) -> None:
    assert scanned(toys, "launch_safe").modinfo["sld_safe"] == ["Y"]
    assert "sld_safe" not in scanned(toys, "launch").modinfo
    assert "__vmalloc" in scanned(toys, "vmalloc").imports
    assert "cr4_update_irqsoff" in scanned(toys, "cr4_accessor").imports


def test_text_that_a_sweep_can_decode(toys: dict[str, Path]) -> None:
    for name in NAMES:
        assert scan(toys[name].read_bytes(), text=True).malformed is None
