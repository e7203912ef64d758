"""What comes of every mode, policy, hypervisor and guest?"""

from __future__ import annotations

from typing import NamedTuple

from splitlock.linux.hypervisors import Kind
from splitlock.linux.parameter import MODES, Mode
from splitlock.model import possible
from splitlock.model.cpu import Access, Processor
from splitlock.model.guest import Guest
from splitlock.model.hypervisor import TITLES
from splitlock.model.kernel import VALUES, Linux, Locks
from splitlock.model.loader import NONE, Module, Outcome, admit, described
from splitlock.model.machine import VM, Host, Result, inside, native
from splitlock.report.simulate import MATRIX_SCHEMA, Admission, Cell, Matrix

_KVM = ("VMXON", "VMXOFF", "VMLAUNCH", "VMRESUME", "VMREAD", "VMWRITE", "VMPTRLD", "VMCLEAR", "MOV CR2", "WRMSR")
POLICIES = (NONE, "disable", "kernel-2020", "refuse", "break:unexport-2020")


class Hypervisor(NamedTuple):
    """A way to run a guest: the hypervisors from the host up, and the module that the first one needs."""

    title: str
    layers: tuple[Kind, ...]
    module: Module | None


# What the modules hold: KVM's, VirtualBox's and VMware's (15.5.7) as scanned (docs/policies.md, docs/scan.md). VMware's
# is one of the article's known holes: VMXON and no VMLAUNCH. VirtualBox of 2020 took memory for code by __get_vm_area
# and map_vm_area (its alloc-r0drv-linux.c).
_FIXED = described("kvm_intel", _KVM, text=False, imports=("handle_guest_split_lock",), intree=True)
_BEFORE = described("kvm_intel", _KVM, text=False, imports=("__vmalloc",), intree=True)
_FOREIGN = ("WRMSR", "RDMSR", "FOREIGN-CODE")
_VMMON = ("VMXON", "VMXOFF", "VMPTRLD", "VMPTRST", "VMCLEAR", "MOV CR0", "MOV CR4", "LGDT", "LIDT", "WRMSR", "RDMSR")
_MODULES: dict[Kind, Module | None] = {
    "kvm": _FIXED,
    "kvm-2020": _BEFORE,
    "kvm-2020-emulator": _BEFORE,
    "kvm-2020-intercept": _FIXED,
    "tdx": _FIXED,
    "virtualbox": described("vboxdrv", _FOREIGN, imports=("apply_to_page_range", "register_kprobe", "vmap")),
    "virtualbox-2020": described("vboxdrv", _FOREIGN, imports=("__get_vm_area", "map_vm_area", "register_kprobe")),
    "virtualbox-kvm": _FIXED,
    "vmware-2020": described("vmmon", _VMMON, imports=("apply_to_page_range", "vmap")),
    "acrn": None,
    "unmarked": described("hypervisor", ("VMXON", "VMLAUNCH", "VMRESUME")),
}
HYPERVISORS = [
    *(Hypervisor(TITLES[kind], (kind,), module) for kind, module in _MODULES.items()),
    Hypervisor("KVM in KVM", ("kvm", "kvm"), _MODULES["kvm"]),
    Hypervisor("VMware (2020) in KVM", ("kvm", "vmware-2020"), _MODULES["kvm"]),
    Hypervisor("KVM in VMware (2020)", ("vmware-2020", "kvm"), _MODULES["vmware-2020"]),
]
GUESTS = {
    "Linux 6.1": Guest(Linux.of("6.1")),
    "Linux 4.19": Guest(Linux.of("4.19")),
    "another": Guest(None),
}
ACCESSES = {
    "user": Access(),
    "user, 32-bit": Access(bits=32),
    "user that asks": Access(ac=True),
    "kernel": Access("kernel"),
    "real mode": Access("kernel", bits=16),
    "emulated": Access(emulated=True),
}


def there(host: Host, hypervisor: Hypervisor) -> bool:
    """Can there be such a hypervisor on such a host at all?"""
    return possible.machine(host, VM(hypervisor.layers, Guest(None))) is None


def admitted(hypervisor: Hypervisor, policy: str, detecting: bool) -> tuple[Outcome, str]:
    """What the policy says to its module, and why."""
    if hypervisor.module is None:
        return "loaded", "no module: it runs below Linux"
    found = admit(hypervisor.module, policy, detecting)
    return found.outcome, found.reason


def result(host: Host, hypervisor: Hypervisor | None, policy: str, guest: Guest, access: Access) -> Result:
    """One cell; no hypervisor: on the host itself."""
    if hypervisor is None:
        return native(host, access, Locks())
    outcome, _ = admitted(hypervisor, policy, host.core.test_ctrl)
    if outcome == "refused":
        return Result("not-started", "", [])
    return inside(host._replace(disabled=outcome == "disables"), VM(hypervisor.layers, guest), access, Locks())


def matrix(processor: Processor, linux: Linux) -> Matrix:
    """All of them."""
    report = Matrix(
        schema=MATRIX_SCHEMA,
        processor=["#AC"] * processor.split_locks + ["#DB"] * processor.bus_locks,
        linux=linux.release.text, admissions=[], cells=[],
    )  # fmt: skip
    warns = Host(processor, linux._replace(value="warn"))
    for policy in POLICIES:
        for hypervisor in HYPERVISORS:
            if not there(warns, hypervisor):
                continue
            outcome, why = admitted(hypervisor, policy, warns.core.test_ctrl)
            report.admissions.append(Admission(policy=policy, hypervisor=hypervisor.title, outcome=outcome, reason=why))
        for mode, value in zip(MODES, VALUES, strict=True):
            report.cells += _cells(Host(processor, linux._replace(value=value)), mode, policy)
    return report


def _cells(host: Host, mode: Mode, policy: str) -> list[Cell]:
    """What can be at all, and no more."""
    cells = []
    for title, access in ACCESSES.items():
        if policy == NONE and not possible.access(access, None):
            found = result(host, None, policy, Guest(None), access)
            cells.append(_cell(mode, policy, "none", "none", title, found))
        for hypervisor in HYPERVISORS:
            if possible.access(access, hypervisor.layers[0]):
                continue
            for name, guest in GUESTS.items():
                if not possible.machine(host, VM(hypervisor.layers, guest)):
                    found = result(host, hypervisor, policy, guest, access)
                    cells.append(_cell(mode, policy, hypervisor.title, name, title, found))
    return cells


def _cell(mode: Mode, policy: str, hypervisor: str, guest: str, access: str, found: Result) -> Cell:
    why = f"{found.steps[-1].who}: {found.steps[-1].what}" if found.steps else "its module is refused"
    return Cell(
        mode=mode, policy=policy, hypervisor=hypervisor, guest=guest, access=access, fate=found.fate,
        victim=found.victim, why=why,
    )  # fmt: skip
