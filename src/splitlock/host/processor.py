"""Can the processor detect split locks (`#AC`) and bus locks (`#DB`), and does it now?"""

from __future__ import annotations

import re

from splitlock.host import cpuid
from splitlock.linux.versions import AMD_BUS_LOCKS, BUS_LOCKS, SPLIT_LOCKS
from splitlock.report.status import Detection, Processor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.host.root import Root
    from splitlock.linux.versions import Version
    from splitlock.report.status import Known

TEST_CTRL, CORE_CAPABILITIES, DEBUGCTL = 0x33, 0xCF, 0x1D9  # SDM vol. 4
_DETECT_SPLIT, _HAS_SPLIT, _DETECT_BUS = 1 << 29, 1 << 5, 1 << 2
# Linux knows these to have `#AC` though they do not say so: ICELAKE_X, ICELAKE_D, ICELAKE_L (split_lock_cpu_ids).
_UNANNOUNCED = {0x6A, 0x6C, 0x7E}
_HYPERVISORS = {
    "KVMKVMKVM": "KVM", "Microsoft Hv": "Hyper-V", "VMwareVMware": "VMware", "XenVMMXenVMM": "Xen",
    "TCGTCGTCGTCG": "QEMU (TCG)", "VBoxVBoxVBox": "VirtualBox", "ACRNACRNACRN": "ACRN", "bhyve bhyve ": "bhyve",
    "prl hyperv  ": "Parallels", "IntelTDX    ": "TDX", "Jailhouse": "Jailhouse",
}  # fmt: skip


def processor(root: Root, log: str) -> Processor:
    """What is known of it; `log`: the kernel's log since boot, or empty."""
    info = _cpuinfo(root)
    flags = set(info.get("flags", "").split())
    online = [int(number) for number in re.findall(r"^processor\s*:\s*(\d+)", root.text("proc/cpuinfo") or "", re.M)]
    leaf = cpuid.leaf7() if root.live else None
    family, model = _number(info, "cpu family"), _number(info, "model")
    under = _hypervisor(root, flags, log)
    vendor = info.get("vendor_id")
    return Processor(
        name=info.get("model name"),
        vendor=vendor,
        family=family,
        model=model,
        stepping=_number(info, "stepping"),
        count=len(online) or None,
        split_lock=_split(
            root, leaf, flags, online, vendor == "GenuineIntel" and family == 6 and model in _UNANNOUNCED
        ),
        bus_lock=_bus(root, leaf, flags, online),
        hypervisor=under,
    )


def usable(cpu: Processor, since: Version | None) -> tuple[Known, Known]:
    """Of `#AC` and `#DB`, what a kernel of this version uses (None: any). In a guest not `#AC`: split_lock_setup()."""
    split, bus = cpu.split_lock.supported, cpu.bus_lock.supported
    amd = cpu.vendor in ("AuthenticAMD", "HygonGenuine")
    if amd or cpu.hypervisor or (since and since < SPLIT_LOCKS.since):
        split = "no"
    if since and since < (AMD_BUS_LOCKS if amd else BUS_LOCKS).since:
        bus = "no"
    return split, bus


def _split(root: Root, leaf: tuple[int, ...] | None, flags: set[str], online: list[int], listed: bool) -> Detection:
    says = "/proc/cpuinfo's flag split_lock_detect"
    values = cpuid.msr(TEST_CTRL, online) if root.live else {}
    supported: Known = "unknown"
    if "split_lock_detect" in flags:
        supported, source = "yes", says
    elif leaf is not None and not leaf[3] >> 30 & 1:
        supported, source = (
            ("yes", "its model, which does not announce it") if listed else ("no", "CPUID.7.EDX[30] = 0")
        )
    elif leaf is not None:
        capable = cpuid.msr(CORE_CAPABILITIES, online[:1])
        if capable:
            supported = "yes" if next(iter(capable.values())) & _HAS_SPLIT else "no"
            source = "IA32_CORE_CAPABILITIES[5]"
        else:
            source = "CPUID.7.EDX[30] = 1, and IA32_CORE_CAPABILITIES cannot be read (root, and the module msr)"
    elif listed:
        supported, source = "yes", "its model"
    else:
        source = f"{says} is not there, which it is only while the kernel uses it" if flags else "no /proc/cpuinfo"
    enabled: Known = "no" if supported == "no" else "unknown"
    if values:
        enabled = "yes" if all(value & _DETECT_SPLIT for value in values.values()) else "no"
    return Detection(supported=supported, enabled=enabled, source=source, registers=_registers("TEST_CTRL", values))


def _bus(root: Root, leaf: tuple[int, ...] | None, flags: set[str], online: list[int]) -> Detection:
    values = cpuid.msr(DEBUGCTL, online) if root.live else {}
    supported: Known = "unknown"
    if leaf is not None:
        bit = leaf[2] >> 24 & 1
        supported, source = ("yes" if bit else "no"), f"CPUID.7.ECX[24] = {bit}"
    elif "bus_lock_detect" in flags:
        supported, source = "yes", "/proc/cpuinfo's flag bus_lock_detect"
    else:
        source = "/proc/cpuinfo's flag bus_lock_detect is not there; kernels since 6.10 may hide it" if flags else (
            "no /proc/cpuinfo"
        )  # fmt: skip
    enabled: Known = "no" if supported == "no" else "unknown"
    if values:
        enabled = "yes" if all(value & _DETECT_BUS for value in values.values()) else "no"
    return Detection(supported=supported, enabled=enabled, source=source, registers=_registers("DEBUGCTL", values))


def _registers(name: str, values: dict[int, int]) -> str | None:
    if not values:
        return None
    different = sorted(set(values.values()))
    return f"{name} = {', '.join(f'{value:#x}' for value in different)} on {len(values)} processors"


def _cpuinfo(root: Root) -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo."""
    first = (root.text("proc/cpuinfo") or "").split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, colon, value in pairs if colon}


def _number(info: dict[str, str], key: str) -> int | None:
    value = info.get(key, "")
    return int(value) if value.isascii() and value.isdigit() else None


def _hypervisor(root: Root, flags: set[str], log: str) -> str | None:
    if root.live:
        found = cpuid.hypervisor()
        if found is not None:
            name = _HYPERVISORS.get(found) or next(
                (v for k, v in _HYPERVISORS.items() if found and k.startswith(found)), found
            )
            return name or "a hypervisor that does not say which"
    said = re.search(r"Hypervisor detected: (.+)", log)
    if said:
        return said[1].strip()
    return "a hypervisor (by /proc/cpuinfo)" if "hypervisor" in flags else None
