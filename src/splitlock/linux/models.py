"""On which of Intel's processor models does a Linux look for split-lock detection?

Since 6.4 on all: those that announce it in IA32_CORE_CAPABILITIES (bit 5), and three that have it and do not announce
it. Before, on those of a list only; a processor that announces it and is not listed was left alone. Source:
arch/x86/kernel/cpu/intel.c (bus_lock.c since 6.13), split_lock_cpu_ids[] and split_lock_setup(),
cpu_set_core_cap_bits() before 5.13; the numbers: arch/x86/include/asm/intel-family.h. All are of family 6.
"""

from __future__ import annotations

from typing import Literal

from splitlock.linux.versions import ONLY_ANNOUNCED, Change, Release, Version, has


def _added(since: Version, stable: dict[Version, int] | None = None) -> Change:
    return Change("on the list", "", since, "split_lock_cpu_ids[]", stable=stable or {})


#: Have it and do not announce it: the kernel goes by the model. The name, and since when Linux knows it.
UNANNOUNCED = {
    0x6A: ("Ice Lake-SP", _added((5, 7))),
    0x7E: ("Ice Lake mobile", _added((5, 7))),
    0x6C: ("Ice Lake-D", _added((5, 8))),
}
#: Those of the list that announce it.
LISTED = {
    0x86: ("Snow Ridge, Jacobsville", _added((5, 7))),
    0x96: ("Elkhart Lake", _added((5, 7))),
    0x9C: ("Jasper Lake", _added((5, 7))),
    0x8C: ("Tiger Lake mobile", _added((5, 8))),
    0x8D: ("Tiger Lake-H", _added((5, 8))),
    0x8F: ("Sapphire Rapids", _added((5, 9))),
    0x97: ("Alder Lake-S", _added((5, 9))),
    0x9A: ("Alder Lake-P", _added((5, 11), {(5, 10): 17})),
    0xB7: ("Raptor Lake-S", _added((5, 19))),
}


def looked_at(release: Release, model: int) -> Literal["yes", "no", "unknown"]:
    """Does this kernel use split-lock detection of a processor of this model (family 6) that has it?

    A model that is not of UNANNOUNCED must announce it besides.
    """
    if model in UNANNOUNCED:
        return has(UNANNOUNCED[model][1], release)
    any_model = has(ONLY_ANNOUNCED, release)
    if any_model == "yes" or model not in LISTED:
        return any_model
    listed = has(LISTED[model][1], release)
    return "unknown" if listed == "no" and any_model == "unknown" else listed
