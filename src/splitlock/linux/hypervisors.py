"""What does a hypervisor do with an exception that a split lock raises in its guest? One table, for model and host.

Sources: arch/x86/kvm/vmx/vmx.c (handle_exception_nmi(), vmx_guest_inject_ac()), vmx/nested.c
(nested_vmx_l0_wants_exit()), x86.c (emulator_cmpxchg_emulated()), svm/svm.c; ACRN's lock_instr_emul.c; VirtualBox's
EM.cpp (emR3ExecuteSplitLockInstruction()); "VMX virtualization runs afoul of split-lock detection", LWN, 7 April 2020.
docs/linux.md, "Guests", has them rule by rule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from splitlock.linux.detection import Kernel
from splitlock.linux.versions import KVM_SWITCHES_DEBUGCTL, NESTED_ASKS

#: Those whose answer is known, or supposed. unmarked: the article's, which knows nothing of split locks
Kind = Literal[
    "kvm", "kvm-2020", "kvm-2020-emulator", "kvm-2020-intercept", "tdx", "virtualbox", "virtualbox-2020",
    "virtualbox-kvm", "vmware-2020", "acrn", "unmarked",
]  # fmt: skip
#: svm: one for AMD's processors that is not KVM; unknown: another that nobody here has seen at work
AnyKind = Literal[Kind, "svm", "unknown"]
#: inject: the guest gets the exception; ask: the host's kernel decides (linux/detection.py, place `guest`)
Does = Literal["inject", "ask", "emulate", "unknown"]

#: KVM of the days between the two fixes of April 2020 and before: no released kernel detects and is like these.
UNRELEASED: tuple[Kind, ...] = ("kvm-2020", "kvm-2020-emulator", "kvm-2020-intercept")
_ASKS: tuple[Kind, ...] = ("kvm", "virtualbox-kvm", "kvm-2020-intercept")  #: e6f8b6c12f03: KVM asks its host
_PLAIN: tuple[Kind, ...] = ("kvm", "virtualbox-kvm", "kvm-2020-emulator")  #: 9de6fe3c28d6: the emulator's plain write
#: KVM, of whatever age: those with its instruction emulator, which may touch their guests' memory.
KVM: tuple[Kind, ...] = tuple(dict.fromkeys((*_ASKS, *_PLAIN, "kvm-2020")))


class Case(NamedTuple):
    """An `#AC` in a guest, as far as any hypervisor looks at it. By default: a split lock that the host detects."""

    split_locks: bool = True  #: the kernel it is in uses split-lock detection; one that is itself a guest is shown none
    detecting: bool = True  #: detection is on, and it knows: it is the lowest
    amd: bool = False
    cpus: int = 2  #: the virtual machine's
    asked: bool = False  #: the guest wants alignment checks
    prefixed: bool = False  #: another prefix stands before LOCK
    own: bool = False  #: the guest is shown detection and has turned it on itself (ACRN alone lets it)


class Decision(NamedTuple):
    """What it does, why, and who says so."""

    does: Does
    what: str
    source: str


class Rule(NamedTuple):
    """An entry. Of those that fit, the first one holds."""

    kinds: tuple[AnyKind, ...]
    where: Callable[[Case], bool]
    decision: Decision


def _always(_case: Case) -> bool:
    return True


_ASKED = "the guest asked: CPL 3, CR0.AM and EFLAGS.AC are set"
_INJECT_AC, _ACRN = "vmx_guest_inject_ac()", "lock_instr_emul.c: emulate_lock_instr()"
_WITHOUT = "performs the instruction without a lock, whatever EFLAGS.AC says"

RULES = (
    Rule(KVM, lambda case: case.amd,
         Decision("inject", "no AMD processor has split-lock detection: an alignment check", "ac_interception()")),
    Rule(_ASKS, lambda case: not case.split_locks,
         Decision("inject", "its kernel has no split-lock detection: an alignment check", _INJECT_AC)),
    Rule(_ASKS, lambda case: case.asked, Decision("inject", _ASKED, _INJECT_AC)),
    Rule(_ASKS, _always, Decision("ask", "the guest did not ask: the host decides", "handle_exception_nmi()")),
    Rule(("tdx",), _always,
         Decision("inject", "the TDX module does not intercept #AC: it goes straight into the guest", "tdx.c")),
    Rule(("virtualbox",), lambda case: case.asked, Decision("inject", _ASKED, "hmR0VmxExitXcptAC()")),
    Rule(("virtualbox",), lambda case: case.cpus == 1,
         Decision("emulate", "performs the instruction without its lock", "IEMExecOneIgnoreLock()")),
    Rule(("virtualbox",), _always,
         Decision("emulate", "all virtual CPUs meet, and one performs the instruction without its lock",
                  "emR3ExecuteSplitLockInstruction()")),
    Rule(("acrn",), lambda case: not case.detecting,
         Decision("inject", "detection is off: it does not intercept #AC", _ACRN)),
    Rule(("acrn",), lambda case: case.own,
         Decision("inject", "the guest has turned its own detection on, and gets #AC", _ACRN)),
    Rule(("acrn",), lambda case: case.prefixed,
         Decision("inject", "neither begins with LOCK nor is an xchg: taken for an alignment check", _ACRN)),
    Rule(("acrn",), lambda case: case.cpus == 1, Decision("emulate", _WITHOUT, _ACRN)),
    Rule(("acrn",), _always, Decision("emulate", f"stops the other virtual CPUs and {_WITHOUT}", _ACRN)),
    Rule(("svm", "unknown"), _always,
         Decision("unknown", "what it makes of a guest's #AC is not known", "nobody here has seen it")),
    Rule(("kvm-2020", "kvm-2020-emulator", "virtualbox-2020", "vmware-2020", "unmarked"), _always,
         Decision("inject", "forwards every #AC blindly", "LWN 816918")),
)  # fmt: skip


def alignment_check(kind: AnyKind, case: Case) -> Decision:
    """What it does with `#AC` in a guest."""
    return next(rule.decision for rule in RULES if kind in rule.kinds and rule.where(case))


class Debugctl(NamedTuple):
    """Whose DEBUGCTL holds while a guest runs, and so whether the host's `#DB` for bus locks comes in it."""

    whose: Literal["guest", "host", "unknown"]
    source: str


def debugctl(kind: AnyKind, kernel: Kernel, *, amd: bool) -> Debugctl:
    """VMX loads the guest's own (SDM volume 3, "Loading Guest Control Registers, Debug Registers, and MSRs"); SVM does
    not, so each hypervisor has to."""
    if not amd:
        return Debugctl("guest", "VMX loads a DEBUGCTL of the guest's own")
    if kind in KVM:
        return Debugctl("guest" if kernel.knows(KVM_SWITCHES_DEBUGCTL) else "host", KVM_SWITCHES_DEBUGCTL.source)
    return Debugctl("unknown", "SVM leaves DEBUGCTL as the host has it")


def goes_up(lowest: Kind, kernel: Kernel, decision: Decision) -> Decision:
    """The lowest hypervisor's decision, where another one runs between it and the guest: all here intercept `#AC`.

    KVM asks its host for a guest's guest with NESTED_ASKS only; before, the guest's own hypervisor got the exception.
    VirtualBox hands it to that one as well, unless it is ACRN's or an emulator's own guest.
    """
    if decision.does == "ask" and not kernel.knows(NESTED_ASKS):
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
