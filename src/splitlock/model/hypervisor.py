"""What raises an exception in a guest, and what are the model's hypervisors called?

What each does with the exception is the table's: linux/hypervisors.py.
"""

from __future__ import annotations

from splitlock.linux.hypervisors import Kind, debugctl
from splitlock.model.cpu import Access, Core, Processor, Trap, raises
from splitlock.model.kernel import Linux

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


def guest_core(core: Core, kind: Kind, processor: Processor, linux: Linux) -> Core:
    """The switches while a guest runs. TEST_CTRL stays as the host has it; so does DEBUGCTL, the model takes it, where
    nobody knows."""
    own = debugctl(kind, linux.kernel, amd=processor.amd).whose == "guest"
    return Core(core.test_ctrl, core.debugctl and not own)


def in_guest(processor: Processor, core: Core, kind: Kind, linux: Linux, access: Access) -> Trap | None:
    """What a guest's split lock raises, before the hypervisor has a say."""
    return raises(processor, guest_core(core, kind, processor, linux), access)
