"""What is the processor, can it detect split locks (`#AC`) and bus locks (`#DB`), does this kernel make use of it?"""

from __future__ import annotations

import re

from splitlock.host import cpuid
from splitlock.host.config import config, lacks_sysctl
from splitlock.host.judgement import uses
from splitlock.host.judgement.uses import Facts
from splitlock.host.settings.command_lines import given
from splitlock.linux import versions
from splitlock.linux.detection import AMD, INTEL
from splitlock.linux.models import UNANNOUNCED
from splitlock.linux.text import number
from splitlock.report.status import Detection, Processor
from splitlock.x86.msr import (
    CORE_CAPABILITIES,
    DEBUGCTL,
    DETECT_BUS_LOCKS,
    DETECT_SPLIT_LOCKS,
    HAS_SPLIT_LOCKS,
    TEST_CTRL,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.host.log.heard import Heard
    from splitlock.host.root import Root
    from splitlock.linux.versions import Release
    from splitlock.report.judgement import Known, Use

_HYPERVISORS = {
    "KVMKVMKVM": "KVM", "Microsoft Hv": "Hyper-V", "VMwareVMware": "VMware", "XenVMMXenVMM": "Xen",
    "TCGTCGTCGTCG": "QEMU (TCG)", "VBoxVBoxVBox": "VirtualBox", "ACRNACRNACRN": "ACRN", "bhyve bhyve ": "bhyve",
    "prl hyperv  ": "Parallels", "IntelTDX    ": "TDX", "Jailhouse": "Jailhouse",
}  # fmt: skip
#: Of /proc/cpuinfo elsewhere (each arch/*/kernel, show_cpuinfo()): Arm, RISC-V, POWER, SPARC, Alpha; MIPS and
#: LoongArch; s390; PA-RISC; Itanium; m68k.
_OTHERS = re.compile(
    r"^(?:(?:CPU implementer|CPU architecture|isa|hart|cpu|system type|ISA|cpu number|arch|CPU)\s*:"
    r"|vendor_id\s*: IBM/S390|cpu family\s*: PA-RISC)",
    re.M,
)


def processor(root: Root, heard: Heard, release: Release | None, foreign: str = "") -> Processor:
    """What is known of it. `release`: of the kernel that runs, None: unknown; `foreign`: what answers in its place."""
    info = _cpuinfo(root)
    text = root.text("proc/cpuinfo") or ""
    facts = _facts(root, heard, release, foreign, info)
    online = [n for n in map(number, re.findall(r"^processor\s*:\s*(\d{1,9})\b", text, re.M)) if n is not None]
    leaf = cpuid.leaf7() if root.live else None
    return Processor(
        name=info.get("model name"),
        vendor=facts.vendor,
        family=facts.family,
        model=facts.model,
        stepping=number(info.get("stepping", "")),
        count=len(online) or None,
        split_lock=_split(root, leaf, facts, online),
        bus_lock=_bus(root, leaf, facts, online),
        hypervisor=facts.hypervisor,
    )


def _facts(root: Root, heard: Heard, release: Release | None, foreign: str, info: dict[str, str]) -> Facts:
    flags = frozenset(info["flags"].split()) if "flags" in info else None
    text = root.text("proc/cpuinfo") or ""
    return Facts(
        vendor=info.get("vendor_id"),
        family=number(info.get("cpu family", "")),
        model=number(info.get("model", "")),
        flags=flags,
        x86=flags is not None or not _OTHERS.search(text),
        hypervisor=_hypervisor(root, flags or frozenset(), heard.boot),
        foreign=foreign,
        release=release,
        command_line=given(root, heard.boot),
        said=heard.said,
        booted=heard.booted,
        config=config(root, release),
        no_sysctl=lacks_sysctl(root),
    )


def _split(root: Root, leaf: tuple[int, ...] | None, facts: Facts, online: list[int]) -> Detection:
    used = uses.split_locks(facts)
    values = cpuid.msr(TEST_CTRL, online) if root.live else {}
    supported, source = _has_split(leaf, facts, used, online)
    return Detection(
        supported=supported, used=used, enabled=_enabled(supported, values, DETECT_SPLIT_LOCKS), source=source,
        registers=_registers("TEST_CTRL", values),
    )  # fmt: skip


def _has_split(leaf: tuple[int, ...] | None, facts: Facts, used: Use, online: list[int]) -> tuple[Known, str]:
    """The processor, whatever its kernel makes of it."""
    listed = facts.vendor == INTEL and facts.family == 6 and facts.model in UNANNOUNCED
    if used.known == "yes" or facts.vendor in AMD or not facts.x86:
        return ("yes" if used.known == "yes" else "no"), used.why
    if leaf is not None and not leaf[3] >> 30 & 1:
        return (
            ("yes", "its model, which does not announce it")
            if listed
            else ("no", "the processor does not announce it: CPUID.7.EDX[30] = 0")
        )
    if leaf is not None and (capable := cpuid.msr(CORE_CAPABILITIES, online[:1])):
        return ("yes" if next(iter(capable.values())) & HAS_SPLIT_LOCKS else "no"), "IA32_CORE_CAPABILITIES[5]"
    if listed:
        return "yes", "its model"
    if facts.said_off_by_steamos:
        return "yes", "the kernel's log: it turned it off"
    if facts.release and facts.release.steamos and facts.flags is not None:
        return "unknown", "SteamOS's kernel shows it only where it uses it"
    all_models = (
        facts.known(versions.ONLY_ANNOUNCED) == "yes"
        and not facts.foreign
        and not facts.hypervisor
        and facts.flags is not None
    )
    if all_models and not any(line.kind == "mode" for line in facts.said):
        return "no", used.why
    if leaf is not None:
        return "unknown", "CPUID.7.EDX[30] = 1, and IA32_CORE_CAPABILITIES cannot be read (root, and the module msr)"
    return "unknown", "this kernel does not look for it here" if used.known == "no" else used.why


def _bus(root: Root, leaf: tuple[int, ...] | None, facts: Facts, online: list[int]) -> Detection:
    used = uses.bus_locks(facts)
    values = cpuid.msr(DEBUGCTL, online) if root.live else {}
    supported: Known
    if leaf is not None:
        bit = leaf[2] >> 24 & 1
        supported, source = (
            ("yes" if bit else "no"),
            f"the processor {'announces' if bit else 'does not announce'} it: CPUID.7.ECX[24] = {bit}",
        )
    elif facts.flags is not None and "bus_lock_detect" in facts.flags:
        supported, source = "yes", "/proc/cpuinfo's flag bus_lock_detect"
    elif used.known != "unknown" and (used.known == "yes" or facts.known(versions.BUS_LOCKS) == "yes" or not facts.x86):
        supported, source = used.known, used.why
    else:
        supported, source = "unknown", used.why
    return Detection(
        supported=supported, used=used, enabled=_enabled(supported, values, DETECT_BUS_LOCKS), source=source,
        registers=_registers("DEBUGCTL", values),
    )  # fmt: skip


def _enabled(supported: Known, values: dict[int, int], bit: int) -> Known:
    if values:
        return "yes" if all(value & bit for value in values.values()) else "no"
    return "no" if supported == "no" else "unknown"


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


def _hypervisor(root: Root, flags: frozenset[str], log: str) -> str | None:
    if "tdx_guest" in flags or "tdx: Guest detected" in log:
        return "TDX"
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
