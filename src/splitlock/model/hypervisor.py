"""What does a hypervisor do with an exception that a split lock raises in its guest?

Sources: arch/x86/kvm/vmx/vmx.c (handle_exception_nmi(), vmx_guest_inject_ac()), vmx/nested.c
(nested_vmx_l0_wants_exit()), x86.c (emulator_cmpxchg_emulated()), svm/svm.c; ACRN's split-lock documentation;
"VMX virtualization runs afoul of split-lock detection", LWN, 7 April 2020.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from splitlock.linux.versions import KVM_ASKS, KVM_SWITCHES_DEBUGCTL
from splitlock.model.cpu import Access, Core, Processor, Trap, raises
from splitlock.model.kernel import Linux

Kind = Literal["kvm", "kvm-before", "vmware", "virtualbox", "unmarked", "acrn"]
Does = Literal["inject", "ask", "emulate"]

TITLES: dict[Kind, str] = {
    "kvm": "KVM",
    "kvm-before": "KVM before 5.8",
    "vmware": "VMware (2020)",
    "virtualbox": "VirtualBox (2020)",
    "unmarked": "any other, with VMLAUNCH",
    "acrn": "ACRN",
}


class Decision(NamedTuple):
    """What it does, why, and who says so."""

    does: Does
    what: str
    source: str


def kind_on(kind: Kind, linux: Linux) -> Kind:
    """KVM is part of its kernel."""
    return "kvm-before" if kind == "kvm" and not linux.knows(KVM_ASKS) else kind


def guest_core(core: Core, kind: Kind, processor: Processor, linux: Linux) -> Core:
    """The switches while a guest runs.

    TEST_CTRL stays as the host has it. VMX loads the guest's own DEBUGCTL (SDM volume 3, "Loading Guest Control
    Registers, Debug Registers, and MSRs"); SVM does not, and KVM did it only from 6.14 on (svm_vcpu_run()).
    """
    leaks = processor.amd and kind == "kvm" and not linux.knows(KVM_SWITCHES_DEBUGCTL)
    return Core(core.test_ctrl, core.debugctl and leaks)


def decide(kind: Kind, shown: Processor, access: Access, guest_shown: bool) -> Decision:
    """On `#AC` in a guest. `shown`: the processor as this hypervisor's kernel knows it; `guest_shown`: the guest is
    shown split-lock detection (ACRN can)."""
    if kind == "kvm":
        source = "vmx_guest_inject_ac()"
        if not shown.split_locks:
            return Decision("inject", "this processor has no split-lock detection: an alignment check", source)
        if access.asked:
            return Decision("inject", "the guest asked: CPL 3, CR0.AM and EFLAGS.AC are set", source)
        return Decision("ask", "the guest did not ask: the host decides", "handle_exception_nmi()")
    if kind == "acrn":
        source = "ACRN: split lock"
        if guest_shown:
            return Decision("inject", "the guest is shown detection, and gets #AC", source)
        if access.asked:
            return Decision("inject", "the guest asked for alignment checks", source)
        return Decision("emulate", "stops the other virtual CPUs and performs the instruction without a lock", source)
    return Decision("inject", "forwards every #AC blindly", "LWN 816918")


def in_guest(processor: Processor, core: Core, kind: Kind, linux: Linux, access: Access) -> Trap | None:
    """What a guest's split lock raises, before the hypervisor has a say."""
    return raises(processor, guest_core(core, kind, processor, linux), access)
