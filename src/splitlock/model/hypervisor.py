"""What does a hypervisor do with an exception that a split lock raises in its guest?

Sources: arch/x86/kvm/vmx/vmx.c (handle_exception_nmi(), vmx_guest_inject_ac()), vmx/nested.c
(nested_vmx_l0_wants_exit()), x86.c (emulator_cmpxchg_emulated()), svm/svm.c; ACRN's lock_instr_emul.c; VirtualBox's
EM.cpp (emR3ExecuteSplitLockInstruction()); "VMX virtualization runs afoul of split-lock detection", LWN, 7 April 2020.
docs/linux.md, "Guests", has them rule by rule.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from splitlock.linux.versions import KVM_SWITCHES_DEBUGCTL, NESTED_ASKS
from splitlock.model.cpu import Access, Core, Processor, Trap, raises
from splitlock.model.kernel import Linux

Kind = Literal[
    "kvm", "kvm-2020", "kvm-2020-emulator", "kvm-2020-intercept", "tdx", "virtualbox", "virtualbox-2020",
    "virtualbox-kvm", "vmware-2020", "acrn", "unmarked",
]  # fmt: skip
Does = Literal["inject", "ask", "emulate"]

TITLES: dict[Kind, str] = {
    "kvm": "KVM",
    "kvm-2020": "KVM as posted in April 2020",
    "kvm-2020-emulator": "KVM, April 2020, emulator fix",
    "kvm-2020-intercept": "KVM, April 2020, #AC fix",
    "tdx": "KVM, a TDX guest",
    "virtualbox": "VirtualBox 7",
    "virtualbox-2020": "VirtualBox (2020)",
    "virtualbox-kvm": "VirtualBox 7 on KVM",
    "vmware-2020": "VMware (2020)",
    "acrn": "ACRN",
    "unmarked": "any other",
}
#: KVM of the days between the two fixes of April 2020 and before: no released kernel detects and is like these.
UNRELEASED: tuple[Kind, ...] = ("kvm-2020", "kvm-2020-emulator", "kvm-2020-intercept")
_ASKS: tuple[Kind, ...] = ("kvm", "virtualbox-kvm", "kvm-2020-intercept")  #: e6f8b6c12f03: KVM asks its host
_PLAIN: tuple[Kind, ...] = ("kvm", "virtualbox-kvm", "kvm-2020-emulator")  #: 9de6fe3c28d6: the emulator's plain write
#: Those with KVM's instruction emulator, which may touch their guests' memory.
EMULATES: tuple[Kind, ...] = tuple(dict.fromkeys((*_ASKS, *_PLAIN, "kvm-2020")))


class Decision(NamedTuple):
    """What it does, why, and who says so."""

    does: Does
    what: str
    source: str


class Sees(NamedTuple):
    """What a hypervisor has to go by."""

    split_locks: (
        bool  #: the kernel it is in uses split-lock detection; a hypervisor that is itself a guest is shown none
    )
    detecting: bool  #: detection is on, and it knows: it is the lowest
    amd: bool
    cpus: int  #: the virtual machine's


def guest_core(core: Core, kind: Kind, processor: Processor, linux: Linux) -> Core:
    """The switches while a guest runs.

    TEST_CTRL stays as the host has it. VMX loads the guest's own DEBUGCTL (SDM volume 3, "Loading Guest Control
    Registers, Debug Registers, and MSRs"); SVM does not, so each hypervisor has to. KVM does from 6.14 on
    (svm_vcpu_run()); of the others it is not known, and they are taken not to.
    """
    own = not processor.amd or (kind in EMULATES and linux.knows(KVM_SWITCHES_DEBUGCTL))
    return Core(core.test_ctrl, core.debugctl and not own)


def decide(kind: Kind, sees: Sees, access: Access, *, own: bool) -> Decision:
    """On `#AC` in a guest. `own`: the guest is shown detection and has turned it on itself (ACRN alone lets it)."""
    if sees.amd and kind in EMULATES:
        return Decision("inject", "no AMD processor has split-lock detection: an alignment check", "ac_interception()")
    if kind in _ASKS:
        source = "vmx_guest_inject_ac()"
        if not sees.split_locks:
            return Decision("inject", "its kernel has no split-lock detection: an alignment check", source)
        if access.asked:
            return Decision("inject", "the guest asked: CPL 3, CR0.AM and EFLAGS.AC are set", source)
        return Decision("ask", "the guest did not ask: the host decides", "handle_exception_nmi()")
    if kind == "tdx":
        return Decision("inject", "the TDX module does not intercept #AC: it goes straight into the guest", "tdx.c")
    if kind == "virtualbox":
        return _virtualbox(sees, access)
    if kind == "acrn":
        return _acrn(sees, access, own)
    return Decision("inject", "forwards every #AC blindly", "LWN 816918")


def _virtualbox(sees: Sees, access: Access) -> Decision:
    if access.asked:
        return Decision("inject", "the guest asked: CPL 3, CR0.AM and EFLAGS.AC are set", "hmR0VmxExitXcptAC()")
    if sees.cpus == 1:
        return Decision("emulate", "performs the instruction without its lock", "IEMExecOneIgnoreLock()")
    what = "all virtual CPUs meet, and one performs the instruction without its lock"
    return Decision("emulate", what, "emR3ExecuteSplitLockInstruction()")


def _acrn(sees: Sees, access: Access, own: bool) -> Decision:
    source = "lock_instr_emul.c: emulate_lock_instr()"
    if not sees.detecting:
        return Decision("inject", "detection is off: it does not intercept #AC", source)
    if own:
        return Decision("inject", "the guest has turned its own detection on, and gets #AC", source)
    if access.prefixed:
        return Decision("inject", "neither begins with LOCK nor is an xchg: taken for an alignment check", source)
    alone = "stops the other virtual CPUs and " if sees.cpus > 1 else ""
    return Decision("emulate", f"{alone}performs the instruction without a lock, whatever EFLAGS.AC says", source)


def goes_up(lowest: Kind, linux: Linux, decision: Decision) -> Decision:
    """The lowest hypervisor's decision, where another one runs between it and the guest: all here intercept `#AC`.

    KVM asks its host for a guest's guest with NESTED_ASKS only; before, the guest's own hypervisor got the exception.
    VirtualBox hands it to that one as well, unless it is ACRN's or an emulator's own guest.
    """
    if decision.does == "ask" and not linux.knows(NESTED_ASKS):
        what = f"a guest's guest: its own hypervisor intercepts #AC and gets it (before {NESTED_ASKS.first})"
        return Decision("inject", what, "nested_vmx_l1_wants_exit()")
    if decision.does == "emulate" and lowest == "virtualbox":
        return Decision("inject", "a guest's guest: its own hypervisor intercepts #AC and gets it", "vmxHCExitXcpt()")
    return decision


def writes_plainly(kind: Kind, flagged: bool) -> bool:
    """Does KVM's instruction emulator write a split locked access without a lock? (emulator_cmpxchg_emulated())

    `flagged`: the host's kernel has set the flag split_lock_detect.
    """
    return kind in _PLAIN and flagged


def in_guest(processor: Processor, core: Core, kind: Kind, linux: Linux, access: Access) -> Trap | None:
    """What a guest's split lock raises, before the hypervisor has a say."""
    return raises(processor, guest_core(core, kind, processor, linux), access)
