"""Can this be at all? What no machine is, and what no program can do, each with the reason in a sentence.

A value that the kernel does not know is not among these: it makes something of it (linux/parameter.py), and so does
the model.
"""

from __future__ import annotations

from typing import NamedTuple

from splitlock.linux import versions
from splitlock.linux.hypervisors import KVM, UNRELEASED
from splitlock.model.hypervisor import TITLES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.linux.hypervisors import Kind
    from splitlock.model.cpu import Access
    from splitlock.model.machine import VM, Host


class Reason(NamedTuple):
    """Why not: the key of a scenario that says so, and a sentence."""

    key: str
    why: str


def processor(vendor: str, detects: list[str]) -> Reason | None:
    """Is there such a processor?"""
    if vendor == "amd" and "#AC" in detects:
        return Reason("processor", 'no AMD processor has "#AC" for split locks; give it "#DB" or nothing')
    return None


def access(one: Access, lowest: Kind | None) -> Reason | None:
    """Can this be done there? `lowest`: the hypervisor that is next to the host; None: on the host itself."""
    if one.emulated and lowest is None:
        return Reason("emulated", "only a guest's code is run by KVM's instruction emulator, never the host's")
    if one.bits == 16 and lowest is None:
        return Reason("bits", "no program or kernel of a Linux host runs in 16-bit real mode; a guest's firmware does")
    if one.ac and one.bits == 16:
        return Reason("asks", "there are no alignment checks in real mode (16 bits)")
    if one.ac and one.where != "user":
        return Reason("asks", 'alignment checks are for programs; give it where = "user"')
    if lowest is None:
        return None
    if one.emulated and lowest not in KVM:
        why = f"only KVM's instruction emulator is known here, and this guest runs in {TITLES[lowest]}"
        return Reason("emulated", why)
    if one.bits == 16 and lowest == "tdx":
        return Reason("bits", "a TDX guest never runs in real mode")
    return None


def machine(host: Host, vm: VM) -> Reason | None:
    """Is there such a virtual machine on such a host?"""
    for kind in vm.layers:
        if found := _layer(kind, host, vm):
            return Reason("hypervisor", found)
    return _shown(host, vm) or _exits(host, vm)


def _layer(kind: Kind, host: Host, vm: VM) -> str:
    if kind in UNRELEASED and host.linux.release.series != (5, 7):
        return (
            f'{kind} is KVM as it was while Linux 5.7 was made, and was never released; give the host linux = "5.7", '
            'or the virtual machine hypervisor = "kvm"'
        )
    if kind == "acrn" and host.processor.amd:
        return "ACRN runs on Intel's processors only"
    if kind == "tdx":
        return _tdx(host, vm)
    return ""


def _tdx(host: Host, vm: VM) -> str:
    if host.processor.amd:
        return "TDX is Intel's"
    if len(vm.layers) > 1:
        return "a TDX guest runs no guests, and in none"
    if not host.linux.knows(versions.TDX_HOST):
        return f"KVM runs TDX guests from Linux {versions.TDX_HOST.first} on"
    if vm.guest.linux is not None and not vm.guest.linux.knows(versions.TDX_GUEST):
        return f"Linux can be a TDX guest from {versions.TDX_GUEST.first} on"
    return ""


def _shown(host: Host, vm: VM) -> Reason | None:
    lowest = vm.layers[0]
    if vm.guest.split_locks and vm.layers != ("acrn",):
        return Reason("shown", 'only ACRN shows a guest "#AC"; KVM and the others show no guest split-lock detection')
    if not vm.guest.bus_locks:
        return None
    if vm.layers not in (("kvm",), ("tdx",)):
        return Reason("shown", 'only KVM is known to show a guest "#DB", and to one that it runs itself')
    if host.processor.amd:
        return Reason("shown", 'KVM on AMD does not virtualize bus-lock detection: no guest has "#DB" of its own there')
    if not host.processor.bus_locks:
        return Reason("shown", 'the host\'s processor has no "#DB" that a guest could be shown')
    if lowest == "kvm" and not host.linux.knows(versions.KVM_SHOWS_BUS_LOCKS):
        return Reason("shown", f'KVM shows guests "#DB" from Linux {versions.KVM_SHOWS_BUS_LOCKS.first} on')
    return None


def _exits(host: Host, vm: VM) -> Reason | None:
    key, lowest, linux = "bus_lock_ratelimit", vm.layers[0], host.linux
    if not vm.bus_lock_ratelimit:
        return None
    if lowest not in ("kvm", "tdx"):
        return Reason(key, f"it is QEMU's, of KVM; this guest runs in {TITLES[lowest]}")
    if not host.processor.bus_locks:
        return Reason(key, 'the processor must detect bus locks ("#DB") for KVM to leave the guest at each')
    change, who = versions.KVM_BUS_LOCK_EXIT, "KVM can leave a guest"
    if lowest == "tdx":
        change, who = versions.TDX_BUS_LOCK_EXIT, "KVM can leave a TDX guest"
    elif host.processor.amd:
        change, who = versions.KVM_AMD_BUS_LOCK_EXIT, "KVM on AMD can leave a guest"
    if not linux.knows(change):
        return Reason(key, f"{who} at a bus lock from Linux {change.first} on")
    return None
