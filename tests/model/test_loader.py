"""The module loader's answers: on every kind of described module, on real ones, and beside what the guard refused."""

from __future__ import annotations

import re
from itertools import chain, combinations, product
from pathlib import Path

import pytest
from modules.debian import modules

from splitlock.model.loader import NONE, Admission, Module, admit, described, read
from splitlock.model.matrix import HYPERVISORS, POLICIES

ROOT = Path(__file__).parents[2]
KINDS = ("VMLAUNCH", "VMXON", "VMREAD", "VMRUN", "WRMSR", "MOV CR4", "FOREIGN-CODE")
VMX = {"VMLAUNCH", "VMXON", "VMREAD"}
AWARE = ("handle_guest_split_lock",)
SUBSETS = list(chain.from_iterable(combinations(KINDS, count) for count in range(len(KINDS) + 1)))
MARKS = list(product((False, True), repeat=4))  # in .text, intree, sld_safe, aware


def every(policy: str, detecting: bool) -> list[tuple[set[str], tuple[bool, ...], Admission]]:
    found = []
    for kinds, marks in product(SUBSETS, MARKS):
        text, intree, sld_safe, aware = marks
        module = described("m", kinds, text=text, imports=AWARE * aware, intree=intree, sld_safe=sld_safe)
        found.append((set(kinds), marks, admit(module, policy, detecting)))
    return found


@pytest.mark.parametrize("detecting", [False, True])
def test_refuse_lets_no_unmarked_vmx_in(detecting: bool) -> None:
    """As the guard has it: wherever the instruction is, in-tree or not, whatever the mode."""
    for kinds, (_, _, sld_safe, aware), found in every("refuse", detecting):
        if kinds & VMX and not sld_safe and not aware:
            assert found.outcome == "refused"
        assert found.outcome != "disables"


def test_kernel_2020_lets_no_unmarked_vmx_in_but_in_tree() -> None:
    for kinds, (text, intree, sld_safe, _), found in every("kernel-2020", detecting=True):
        vmx = bool(kinds & VMX) and text and not sld_safe
        registers = "MOV CR4" in kinds and text
        assert (found.outcome == "refused") == ((vmx or registers) and not intree)


def test_kernel_2020_with_detection_off() -> None:
    """A write to a control register is refused whatever the flags, VMX is not."""
    for kinds, (text, intree, *_), found in every("kernel-2020", detecting=False):
        assert (found.outcome == "refused") == ("MOV CR4" in kinds and text and not intree)


@pytest.mark.parametrize("detecting", [False, True])
def test_disable(detecting: bool) -> None:
    for kinds, (_, _, sld_safe, _), found in every("disable", detecting):
        enters = bool(kinds & {"VMLAUNCH", "VMXON"}) and not sld_safe
        assert found.outcome == ("disables" if enters and detecting else "loaded")
        if found.outcome == "disables":
            assert re.fullmatch(r"x86/split lock detection: disabled due to VM\w+ in module: m", found.log)


def test_none_lets_everything_in() -> None:
    assert {found.outcome for _, _, found in every(NONE, detecting=True)} == {"loaded"}


#: The exports that a sketch of 6 April 2020 took away, and the series of 8 April after it (LKML
#: 20200408115926.1467567-1-hch@lst.de).
SKETCH = {"__get_vm_area", "map_vm_area", "unmap_kernel_range", "unmap_kernel_range_noflush"}
SERIES = SKETCH | {"__vmalloc_node_range", "vmalloc_user_node_flags"}


@pytest.mark.parametrize(("name", "symbols"), [("unexport-2020", SKETCH), ("sanitize-vmalloc-api", SERIES)])
def test_export_sets(name: str, symbols: set[str]) -> None:
    """Who imports one of them no longer links, and nobody else."""
    for symbol in (*sorted(SERIES), "__vmalloc", "vmap", "handle_guest_split_lock"):
        found = admit(described("m", (), imports=(symbol,)), f"break:{name}", True)
        assert found.outcome == ("refused" if symbol in symbols else "loaded")
        both = admit(described("m", (), imports=(symbol,)), f"break:vmap,{name}", True)
        assert both.outcome == ("refused" if symbol in symbols | {"vmap"} else "loaded")


@pytest.mark.parametrize("policy", POLICIES)
def test_the_matrix_describes_kvm_as_it_is(policy: str) -> None:
    """Debian's real module, by the real scanner, gets the answer that the matrix gives."""
    data = modules("amd64")["kvm-intel.ko"].read_bytes()
    real = read("kvm_intel", data, policy)
    (one,) = (hypervisor for hypervisor in HYPERVISORS if hypervisor.layers == ("kvm",))
    assert one.module is not None
    for detecting in (False, True):
        assert admit(real, policy, detecting).outcome == admit(one.module, policy, detecting).outcome


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_the_matrix_describes_virtualbox_as_it_is(vboxdrv: Path, policy: str) -> None:
    real = read("vboxdrv", vboxdrv.read_bytes(), policy)
    (one,) = (hypervisor for hypervisor in HYPERVISORS if hypervisor.layers == ("virtualbox",))
    assert one.module is not None
    assert admit(real, policy, True).outcome == admit(one.module, policy, True).outcome


#: Ways of docs/guard-ways.md whose module can be described, as the real gate in a real kernel was tried with them.
WAYS: dict[str, Module] = {
    "VMLAUNCH in .text.unlikely": described("way", ("VMLAUNCH",), text=False),
    "VMLAUNCH in .noinstr.text": described("way", ("VMLAUNCH",), text=False),
    "VMRESUME and VMXON, no VMLAUNCH": described("way", ("VMRESUME", "VMXON")),
    "MOV CR4": described("way", ("MOV CR4",)),
    "WRMSR": described("way", ("WRMSR",)),
    "LIDT": described("way", ("LIDT",)),
    "VMRUN, out of tree": described("way", ("VMRUN",)),
    "imports what runs foreign code (kprobes and vmap)": described("way", ("FOREIGN-CODE",)),
    "VMLAUNCH, and a forged intree=Y": described("way", ("VMLAUNCH",), intree=True),
    "VMRUN, and a forged intree=Y (the policy takes its word)": described("way", ("VMRUN",), intree=True),
    "VMLAUNCH, and its own sld_safe=Y (the policy takes its word)": described("way", ("VMLAUNCH",), sld_safe=True),
}


@pytest.mark.parametrize("way", WAYS)
def test_as_the_gate_did(way: str) -> None:
    text = (ROOT / "docs" / "guard-ways.md").read_text()
    (measured,) = re.findall(rf"^\| {re.escape(way)} \| in \| (\w+) \|$", text, re.M)
    assert admit(WAYS[way], NONE, True).outcome == "loaded"
    assert admit(WAYS[way], "refuse", True).outcome == {"in": "loaded", "refused": "refused"}[measured]
