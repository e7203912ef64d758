"""Which Linux brought what? Each change with its commit, the stable releases that have it, and what shows it.

Ask what a running system shows first (`Change.shown`), and a version number only where nothing else tells:
distributions take changes back to older kernels. docs/linux.md is written from this table, and says how each row was
checked. This file imports typing: what `splitlock run` starts with takes its numbers from linux/delays.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

Version = tuple[int, int]


class Release(NamedTuple):
    """A kernel, as far as its name tells which one it is."""

    series: Version
    patch: int | None  #: of the stable series; None: the name does not tell
    text: str

    @property
    def patched(self) -> bool:
        """Is it a distribution's kernel to which so much was taken back that its number says only what it has?"""
        tag = _TAG.search(self.text)
        return any(mark in self.text for mark in _PATCHED) or (tag is not None and tag[1] not in _STABLE)

    @property
    def steamos(self) -> bool:
        """Is it SteamOS's, which reads its parameter before it looks at the processor? docs/linux.md, "At boot"."""
        return any(mark in self.text for mark in _STEAMOS)


class Change(NamedTuple):
    """One thing that a Linux does and an older one does not."""

    name: str
    what: str
    since: Version  #: mainline's first release with it
    source: str  #: file, function, commit
    shown: str = ""  #: what in a running system or its files shows it; empty: nothing does
    stable: Mapping[Version, int] = {}  #: series: the first patch level that has it
    seen: Mapping[Version, int] = {}  #: series: a patch level that has it; which was the first is not known
    lacks: Mapping[Version, int] = {}  #: series: the last patch level looked at that has it not
    fix: bool = False  #: repairs something: a stable series that is not listed may have it
    needs: Version = (0, 0)  #: no older series can have it: what it builds on is not there

    @property
    def first(self) -> str:
        """The first release with it, in words: 5.13."""
        return f"{self.since[0]}.{self.since[1]}"


_LONGEST = 64  # bytes: __NEW_UTS_LEN
_STEAMOS = ("valve", "neptune")
# RHEL and its kin, SUSE's enterprise kernels, Oracle's, openEuler, Anolis, TencentOS, SteamOS.
_PATCHED = (
    ".el7", ".el8", ".el9", ".el10", "-1500", "-1501", "-1502", "-1503", "-1504", "-1505", "-1506", "-1507",
    "-1600", "uek", ".oe", ".an7", ".an8", ".an23", ".tl2", ".tl3", ".tl4", "tlinux", *_STEAMOS,
)  # fmt: skip
#: The tag of a distribution that an RPM's release ends with: .al8, .ky10, .hce2. Whoever is not known to follow the
#: stable releases may have taken back anything.
_TAG = re.compile(r"\.([a-z]+)\d\w*(?:\.(?:x86_64|i[3-6]86))?$")
_STABLE = ("fc", "amzn", "azl", "cm", "mga", "ph")  # Fedora, Amazon, Azure Linux and before, Mageia, Photon


def release(text: str) -> Release | None:
    """Of `uname -r`; None where it is none.

    A third number of 0 with something behind it (Debian 12's 6.1.0-56-amd64, Ubuntu's 6.8.0-60-generic) stands for
    the whole series: the patch level is not in it.
    """
    number = text = text.strip()
    for end in "-+_ ~":
        number = number.split(end, 1)[0]
    parts = number.split(".")
    if (
        len(text) > _LONGEST
        or len(parts) < 2
        or not all(part.isascii() and part.isdigit() and len(part) < 4 for part in parts[:2])
    ):
        return None
    patch = None
    if len(parts) > 2 and parts[2].isascii() and parts[2].isdigit() and len(parts[2]) < 6:
        patch = int(parts[2])
        if patch == 0 and text != number:
            patch = None
    return Release((int(parts[0]), int(parts[1])), patch, text)


#: What answers as a Linux does, and is none: by its `uname -r`, or by its /proc/version. gVisor's pkg/sentry
#: (LinuxVersion), WSL 1's lxcore.sys (WSL 2 is a Linux, and writes a small m), illumos' LX brand, FreeBSD's linprocfs.
_FOREIGN = (
    ("gVisor", re.compile(r"-gvisor"), re.compile("Sun Jan 10 15:06:54 PST 2016")),
    ("WSL 1", re.compile(r"\d-Microsoft$"), re.compile(r"version \S+-Microsoft ")),
    ("an LX zone of illumos", re.compile("BrandZ"), re.compile("BrandZ virtual linux")),
    ("FreeBSD's Linux layer", re.compile("linuxulator", re.I), re.compile(r"@freebsd\.org\) ", re.I)),
)


def foreign(name: str, version: str) -> str:
    """What answers in Linux's place; empty: a Linux. `name`: as `uname -r` has it; `version`: as /proc/version."""
    found = (who for who, names, versions in _FOREIGN if names.search(name.strip()) or versions.search(version))
    return next(found, "")


def has(change: Change, release: Release) -> Literal["yes", "no", "unknown"]:
    """Has this kernel this change, as far as its name tells?"""
    if release.series >= change.since:
        return "yes"
    if release.patched:
        return "unknown"
    if release.series < change.needs:
        return "no"
    if release.patch == 0:
        return "no"  # mainline's own: what came later cannot be in it
    first, seen, lacks = (table.get(release.series) for table in (change.stable, change.seen, change.lacks))
    if first is None and seen is None and lacks is None:
        return "unknown" if change.fix else "no"
    if release.patch is None:
        return "unknown" if first is not None or seen is not None or change.fix else "no"
    if first is not None:
        return "yes" if release.patch >= first else "no"
    if lacks is not None and release.patch <= lacks:
        return "no"
    if seen is not None and release.patch >= seen:
        return "yes"
    return "unknown" if seen is not None or change.fix else "no"


_INTEL = "arch/x86/kernel/cpu/intel.c"
_BUS = "arch/x86/kernel/cpu/bus_lock.c"
_PROC = "/proc/sys/kernel/split_lock_mitigate"

# -- detection ---------------------------------------------------------------------------------------------------
SPLIT_LOCKS = Change(
    "SPLIT_LOCKS", "detects split locks by #AC: off, warn (default), fatal", (5, 7),
    f"{_INTEL}, split_lock_setup(), 6650cdd9a8cc", "split_lock_detect in /proc/cpuinfo's flags",
)  # fmt: skip
LEAVES_OTHERS_ALONE = Change(
    "LEAVES_OTHERS_ALONE", "writes TEST_CTRL on processors with detection only", (5, 8),
    f"{_INTEL}, split_lock_init(), 009bce1df0bb", stable={(5, 7): 8}, fix=True, needs=(5, 7),
)  # fmt: skip
BUS_LOCKS = Change(
    "BUS_LOCKS", "detects bus locks by #DB on Intel's processors", (5, 13),
    f"{_INTEL}, bus_lock_init(), ebb1064e7c2e", "bus_lock_detect in /proc/cpuinfo's flags",
    lacks={(5, 10): 262, (5, 12): 9},
)  # fmt: skip
FLAG_IN_EVERY_MODE = Change(
    "FLAG_IN_EVERY_MODE", "shows split_lock_detect in /proc/cpuinfo in mode off too", (5, 13),
    f"{_INTEL}, __split_lock_setup(), ebb1064e7c2e", lacks={(5, 10): 262, (5, 12): 9},
)  # fmt: skip
RATELIMIT = Change(
    "RATELIMIT", "knows mode ratelimit:N", (5, 14),
    f"{_INTEL}, match_option(), d28397eaf4c2", lacks={(5, 10): 262, (5, 12): 9},
)  # fmt: skip
MISERY = Change(
    "MISERY", "mode warn makes a task sleep 10 ms and wait for its turn, at each trap", (5, 19),
    f"{_INTEL}, split_lock_warn(), b041b525dab9", lacks={(5, 10): 262, (5, 15): 145, (5, 18): 12},
)  # fmt: skip
MITIGATE = Change(
    "MITIGATE", "has kernel.split_lock_mitigate, which takes the misery off", (6, 2),
    f"{_INTEL}, split_lock_warn(), 727209376f49", f"{_PROC} exists",
    stable={(6, 0): 16}, seen={(6, 1): 10}, lacks={(5, 19): 0}, fix=True, needs=(5, 19),
)  # fmt: skip
ONLY_ANNOUNCED = Change(
    "ONLY_ANNOUNCED", "believes CORE_CAPABILITIES on every model; before, on those of a list only", (6, 4),
    f"{_INTEL}, split_lock_setup(), d7ce15e1d416", "split_lock_detect in /proc/cpuinfo's flags",
    lacks={(5, 10): 262, (5, 15): 145, (6, 1): 192, (6, 2): 12, (6, 3): 8},
)  # fmt: skip
AMD_BUS_LOCKS = Change(
    "AMD_BUS_LOCKS", "detects bus locks by #DB on AMD's processors", (6, 13),
    f"{_BUS}, bus_lock_init(), 408eb7417a92", "CONFIG_X86_BUS_LOCK_DETECT in /boot/config-*; the flag and the boot "
    "line are there from 5.13 on, and prove nothing",
    lacks={(5, 10): 262, (6, 1): 192, (6, 12): 118},
)  # fmt: skip
BUS_LOCK_CONFIG = Change(
    "BUS_LOCK_CONFIG", "can be built without all of this: CONFIG_X86_BUS_LOCK_DETECT; before, CONFIG_CPU_SUP_INTEL",
    (6, 13), "arch/x86/Kconfig, 408eb7417a92", "CONFIG_X86_BUS_LOCK_DETECT in /boot/config-* or /proc/config.gz",
    lacks={(5, 10): 262, (6, 1): 192, (6, 12): 118},
)  # fmt: skip
CLEARS_BUS_LOCKS = Change(
    "CLEARS_BUS_LOCKS", "clears DEBUGCTL's bit where bus-lock detection is not to be used; before, what the firmware "
    "left on stayed on", (6, 0), f"{_INTEL}, bus_lock_init(), ffa6482e461f",
    stable={(5, 18): 18, (5, 19): 2}, seen={(5, 15): 145}, lacks={(5, 14): 2}, fix=True, needs=(5, 13),
)  # fmt: skip
REENABLE_PER_CPU = Change(
    "REENABLE_PER_CPU", "with split_lock_mitigate=0 switches detection on again on each processor; before, a second "
    "processor could be left without it", (6, 15), f"{_BUS}, split_lock_warn(), c929d08df8be",
    stable={(6, 1): 135, (6, 13): 11}, lacks={(6, 6): 17, (6, 12): 118, (6, 14): 0}, fix=True, needs=(6, 0),
)  # fmt: skip
DR6_BUS_LOCK = Change(
    "DR6_BUS_LOCK", "starts DR6 with its reset value; before, on a processor with bus-lock detection the first #DB of "
    "any kind on each core counted as a bus lock", (6, 16),
    "arch/x86/kernel/cpu/common.c, initialize_debug_regs(), 5f465c148c61",
    stable={(6, 6): 97, (6, 12): 36, (6, 15): 5}, lacks={(6, 1): 192, (6, 13): 7, (6, 14): 0}, fix=True, needs=(5, 13),
)  # fmt: skip

# -- what it says ------------------------------------------------------------------------------------------------
OOPS_PREFIX = Change(
    "OOPS_PREFIX", "an oops begins with `Oops: `", (6, 10),
    "arch/x86/kernel/dumpstack.c, __die_header(), f9f62a877da1", lacks={(5, 10): 262, (6, 1): 192, (6, 9): 0},
)  # fmt: skip
TRAPS_OFFSET = Change(
    "TRAPS_OFFSET", "`traps: ... in FILE[OFFSET,START+SIZE]`: the offset in the file stands first", (6, 10),
    "mm/memory.c, print_vma_addr()", lacks={(5, 10): 262, (6, 1): 192, (6, 9): 0},
)  # fmt: skip
OFF_SAYS_NOTHING = Change(
    "OFF_SAYS_NOTHING", "mode off prints no line at boot; before, `disabled`", (7, 1),
    f"{_BUS}, sld_state_show(), 04e43ec9f002", lacks={(5, 10): 262, (6, 1): 192, (6, 12): 118, (7, 0): 0},
)  # fmt: skip
NON_WB_WORDS_GONE = Change(
    "NON_WB_WORDS_GONE", "the words ` from non-WB`, which no kernel could print, are gone from the source", (7, 1),
    f"{_BUS}, sld_state_show(), 6823f10dcc84", lacks={(6, 1): 192, (6, 12): 118, (7, 0): 0},
)  # fmt: skip
UNKNOWN_PARAMETERS = Change(
    "UNKNOWN_PARAMETERS", "names at boot the parameters that nobody registered; `split_lock_detect=` is among them "
    "though it counts", (5, 14), "init/main.c, print_unknown_bootoptions(), 86d191923274", lacks={(5, 10): 262},
)  # fmt: skip
PARAMETER_IS_KNOWN = Change(
    "PARAMETER_IS_KNOWN", "no longer calls `split_lock_detect=` unknown", (7, 1),
    f"{_BUS}, setup_split_lock_detect(), fbe80bd6993a", lacks={(6, 1): 192, (6, 12): 118, (7, 0): 0},
)  # fmt: skip

# -- settings ----------------------------------------------------------------------------------------------------
SYSCTL_ON_COMMAND_LINE = Change(
    "SYSCTL_ON_COMMAND_LINE", "takes `sysctl.kernel.NAME=VALUE` from its command line", (5, 8),
    "fs/proc/proc_sysctl.c, process_sysctl_arg(), 3db978d480e2",
)  # fmt: skip

BUILT_IN_COMMAND_LINE = Change(
    "BUILT_IN_COMMAND_LINE", "finds split_lock_detect= in CONFIG_CMDLINE too; before, the words of the boot loader "
    "alone counted", (6, 10), "arch/x86/kernel/setup.c, setup_arch(), 4faa0e5d6d79",
    lacks={(5, 10): 262, (6, 1): 192, (6, 9): 0}, fix=True,
)  # fmt: skip
BOOTCONFIG_COMMAND_LINE = Change(
    "BOOTCONFIG_COMMAND_LINE", "can be built (CONFIG_CMDLINE_FROM_BOOTCONFIG) to find split_lock_detect= in its "
    "embedded bootconfig; in any other bootconfig it has no effect", (7, 3), "arch/x86/kernel/setup.c, setup_arch()",
    "CONFIG_CMDLINE_FROM_BOOTCONFIG in /boot/config-*", lacks={(7, 2): 13},
)  # fmt: skip

# -- hypervisors -------------------------------------------------------------------------------------------------
KVM_ASKS = Change(
    "KVM_ASKS", "KVM intercepts a guest's #AC and asks the host; its emulator makes a split lock a plain write", (5, 7),
    "arch/x86/kvm/vmx/vmx.c, handle_exception_nmi(), e6f8b6c12f03; x86.c, emulator_cmpxchg_emulated(), 9de6fe3c28d6",
    "kvm-intel imports handle_guest_split_lock",
)  # fmt: skip
NESTED_ASKS = Change(
    "NESTED_ASKS", "KVM asks the host for a guest's guest too; before, the guest's own hypervisor got that #AC",
    (5, 14),
    "arch/x86/kvm/vmx/nested.c, nested_vmx_l0_wants_exit(), b33bb78a1fad",
    stable={(5, 10): 50, (5, 12): 17}, fix=True, needs=(5, 7),
)  # fmt: skip
KVM_BUS_LOCK_EXIT = Change(
    "KVM_BUS_LOCK_EXIT", "KVM on Intel can leave to the VMM after each bus lock of a guest", (5, 12),
    "arch/x86/kvm/vmx/vmx.c, handle_bus_lock_vmexit(), fe6b6bc802b4", "KVM_CHECK_EXTENSION(KVM_CAP_X86_BUS_LOCK_EXIT)",
    lacks={(5, 10): 262, (5, 11): 4},
)  # fmt: skip
KVM_SHOWS_BUS_LOCKS = Change(
    "KVM_SHOWS_BUS_LOCKS", "KVM on Intel shows bus-lock detection to guests", (5, 13),
    "arch/x86/kvm/vmx/vmx.c, vcpu_supported_debugctl(), 76ea438b4afc", lacks={(5, 10): 262},
)  # fmt: skip
VM_ENABLE_AT_LOAD = Change(
    "VM_ENABLE_AT_LOAD", "KVM takes the processor's virtualization for itself when it is loaded", (6, 12),
    "virt/kvm/kvm_main.c, kvm_init_virtualization()", "/sys/module/kvm/parameters/enable_virt_at_load",
    lacks={(5, 10): 262, (6, 1): 192},
)  # fmt: skip
KVM_HIDES_BUS_LOCKS_ON_AMD = Change(
    "KVM_HIDES_BUS_LOCKS_ON_AMD", "KVM on AMD hides bus-lock detection from guests; before, Zen 5's flag was shown to "
    "them though KVM does not virtualize it", (6, 11),
    "arch/x86/kvm/svm/svm.c, svm_set_cpu_caps(), 54950bfe2b69", stable={(6, 1): 110, (6, 10): 10},
    lacks={(6, 6): 17}, fix=True, needs=(5, 13),
)  # fmt: skip
KVM_SWITCHES_DEBUGCTL = Change(
    "KVM_SWITCHES_DEBUGCTL", "KVM on AMD gives its guests a DEBUGCTL of their own; before, the host's bus-lock "
    "detection held in guests", (6, 14), "arch/x86/kvm/svm/svm.c, svm_vcpu_run(), 433265870ab3",
    stable={(6, 12): 19, (6, 13): 7}, lacks={(5, 10): 262, (6, 1): 192}, fix=True,
)  # fmt: skip
KVM_AMD_BUS_LOCK_EXIT = Change(
    "KVM_AMD_BUS_LOCK_EXIT", "KVM on AMD can leave to the VMM before each bus lock of a guest", (6, 16),
    "arch/x86/kvm/svm/svm.c, bus_lock_exit(), 89f9edf4c69d", "KVM_CHECK_EXTENSION(KVM_CAP_X86_BUS_LOCK_EXIT)",
    lacks={(5, 10): 262, (6, 1): 192, (6, 12): 118, (6, 14): 0},
)  # fmt: skip
EXPORTS_FOR_KVM = Change(
    "EXPORTS_FOR_KVM", "exports handle_guest_split_lock and its kin to KVM's modules alone", (6, 19),
    "include/linux/kvm_types.h, EXPORT_SYMBOL_FOR_KVM, 6276c67f2bc4", "the namespace in Module.symvers",
    lacks={(6, 1): 192, (6, 12): 118, (6, 18): 2},
)  # fmt: skip
VMX_IN_VMLINUX = Change(
    "VMX_IN_VMLINUX", "VMXON and EFER.SVME are vmlinux's, no longer kvm-intel's and kvm-amd's", (7, 1),
    "arch/x86/virt/hw.c, 920da4f75519", lacks={(6, 12): 118, (6, 19): 9, (7, 0): 0},
)  # fmt: skip
TDX_GUEST = Change(
    "TDX_GUEST", "can be a TDX guest", (5, 19), "arch/x86/coco/tdx/tdx.c, tdx_early_init()",
    "tdx_guest in /proc/cpuinfo's flags", lacks={(5, 10): 262},
)  # fmt: skip
TDX_HOST = Change(
    "TDX_HOST", "KVM runs TDX guests", (6, 16), "arch/x86/kvm/vmx/tdx.c, tdx_hardware_setup()",
    "/sys/module/kvm_intel/parameters/tdx", lacks={(6, 1): 192, (6, 12): 118},
)  # fmt: skip
TDX_BUS_LOCK_EXIT = Change(
    "TDX_BUS_LOCK_EXIT", "KVM can leave to the VMM after each bus lock of a TDX guest", (7, 4),
    "arch/x86/kvm/vmx/tdx.c, tdx_handle_exit()", stable={(7, 3): 2}, lacks={(7, 2): 13}, fix=True, needs=(6, 16),
)  # fmt: skip

CHANGES = tuple(value for value in list(globals().values()) if isinstance(value, Change))
