"""Which exceptions do a guest's processors raise for split locks, and what is announced of it?"""

from __future__ import annotations

from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    Forward = Literal["once", "always", "asked"]

FORWARDS = ("once", "always", "asked")
# Without SVM QEMU 7.2 has extended CPUID leaves up to 0x80000001 for Intel's processors, though address widths are told
# in 0x80000008 (SDM vol. 2A, CPUID): Linux then takes addresses to have 48 bits,
# even where the boot loader has turned five levels of page tables on, and refuses its own.
_NO_SVM = "-svm,min-xlevel=0x80000008"
# Linux turns its detection on for Intel's processors alone (6.1: arch/x86/kernel/cpu/intel.c), and not in a guest. The
# number is Sapphire Rapids': none of those that it takes to have detection without being told by CORE_CAPABILITIES.
_INTEL = f"-hypervisor,{_NO_SVM},vendor=GenuineIntel,family=6,model=143,stepping=8"
# A local APIC of registers in memory: of MSRs each timer tick would be a stop (QEMU 9 and later).
# CPUID is left to QEMU itself, which announces what TCG does not have only if it must.
_SLOW = ",-x2apic,check=off,x-force-features=on"


class Detection(NamedTuple):
    """What the machine's processors detect.

    `split_locks`: `#AC`, by TEST_CTRL; `bus_locks`: `#DB`, by DEBUGCTL; `forward`: `#AC` that is announced nowhere, for
    every split lock (`always`), for all but the retry that follows at once (`once`), or for who asks for alignment
    checks (`asked`); `vmx`: a processor with VMX (bochs/machine.py).
    """

    split_locks: bool = False
    bus_locks: bool = False
    forward: Forward | None = None
    vmx: bool = False


def plugin_words(detection: Detection) -> str:
    """The plugin's argument `detect`; empty: none."""
    words = ["split-locks"] * detection.split_locks + ["bus-locks"] * detection.bus_locks
    return "+".join([*words, *([detection.forward] if detection.forward else [])])


def processor(detection: Detection, *, slow: bool = False) -> str:
    """What is added to QEMU's `-cpu max`; empty: nothing. `slow`: for detection by QEMU's gdb stub."""
    words = f",{_INTEL}" if detection.split_locks or detection.bus_locks else f",{_NO_SVM}" if slow else ""
    if slow:
        words += _SLOW + ",core-capability=on" * detection.split_locks + ",bus-lock-detect=on" * detection.bus_locks
    return words


def named(detection: Detection) -> str:
    """For people."""
    words = ["split-lock #AC"] * detection.split_locks + ["bus-lock #DB"] * detection.bus_locks
    words += [f"#AC forwarded unasked ({detection.forward})"] if detection.forward else []
    return " and ".join([*["VMX"] * detection.vmx, *words])
