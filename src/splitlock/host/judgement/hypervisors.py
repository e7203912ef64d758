"""With what can this machine run guests, and how does each treat a guest's `#AC`? docs/linux.md, "Guests"."""

from __future__ import annotations

from splitlock.host.tasks import vmm_by_name
from splitlock.linux import versions
from splitlock.linux.detection import AMD
from splitlock.linux.text import number
from splitlock.report.judgement import Hypervisor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from splitlock.report.judgement import Kind
    from splitlock.report.status import Module, Report

_ENTERS = {"VMLAUNCH", "VMRESUME", "VMXON"}  #: on Intel
_ON_KVM = ("QEMU", "Firecracker", "crosvm", "cloud-hypervisor")
_EMULATES = 7  #: VirtualBox's first number: emR3ExecuteSplitLockInstruction() was read in 7.x


def hypervisors(modules: Iterable[Module], vendor: str | None, running: bool = False) -> list[Hypervisor]:
    """Those among modules that run guests on such a processor. `running`: KVM's guests are seen, by whatever sign."""
    found = []
    for module in modules:
        kind = _amd(module) if vendor in AMD else _intel(module)
        if kind is None:
            continue
        found.append(
            Hypervisor(name=module.name, path=module.path, kind=kind[0], loaded=module.loaded, why=kind[1],
                       refused=module.verdict == "refuse")
        )  # fmt: skip
    if running and not any(one.kind == "kvm" for one in found):
        found.append(
            Hypervisor(name="KVM", path=None, kind="kvm", loaded="yes", why="its guests are seen", refused=False)
        )
    return found


def kvm_runs(status: Report) -> bool:
    """Do virtual machines of KVM's run there, by the list of processes or by the log?"""
    named = any(task.guest and vmm_by_name(task.comm) == "QEMU" for task in status.log.tasks)
    return named or any(vmm.name in _ON_KVM for vmm in status.vmms or [])


def _intel(module: Module) -> tuple[Kind, str] | None:
    enters = _ENTERS & set(module.evidence)
    if module.name == "kvm_intel" and (module.path is None or module.builtin or module.intree):
        return "kvm", f"Linux's own, which asks its host since {versions.KVM_ASKS.first}"
    if enters and module.aware:
        return "kvm", "imports handle_guest_split_lock: it asks the host"
    if module.name == "vboxdrv":
        return _virtualbox(module)
    if enters or (module.path is None and not module.name.startswith("kvm")):
        why = "does not import handle_guest_split_lock" if enters else "its file was not seen"
        return "unknown", f"{why}: what it makes of a guest's #AC is not known"
    if "FOREIGN-CODE" in module.evidence and module.verdict == "refuse":
        return "unknown", "can bring a hypervisor that no module loader sees"
    return None


def _amd(module: Module) -> tuple[Kind, str] | None:
    if module.name == "kvm_amd" and (module.path is None or module.builtin or module.intree):
        return "kvm", "Linux's own"
    if module.name == "vboxdrv":
        return "svm", "VirtualBox: whether it gives guests a DEBUGCTL of their own is not known"
    # VMware's vmmon has the VMX half alone: its monitor, which a program brings along, has VMRUN
    other = bool(_ENTERS & set(module.evidence)) or module.path is None
    if "VMRUN" in module.evidence or (other and not module.name.startswith("kvm")):
        return "svm", "not Linux's own: whether it gives guests a DEBUGCTL of their own is not known"
    return None


def _virtualbox(module: Module) -> tuple[Kind, str]:
    """Its own VMM; the backend that runs on KVM is KVM."""
    first = (module.version or "").partition(".")[0]
    if (number(first) or 0) >= _EMULATES:
        return (
            "virtualbox",
            f"VirtualBox {(module.version or '').split()[0]}: it executes the instruction without its lock",
        )
    if first:
        return "unknown", f"VirtualBox {(module.version or '').split()[0]}: those of 2020 forward #AC blindly"
    return "unknown", "VirtualBox of unknown version: 7 and later emulate, those of 2020 forward #AC blindly"
