"""On which of Intel's processor models does a Linux look for split-lock detection?

Since 6.4 on all: those that announce it in IA32_CORE_CAPABILITIES (bit 5), and three that have it and do not announce
it. Before, on those of a list only; a processor that announces it and is not listed was left alone. Source:
arch/x86/kernel/cpu/intel.c (bus_lock.c since 6.13), split_lock_cpu_ids[] and split_lock_setup(),
cpu_set_core_cap_bits() before 5.13; the numbers: arch/x86/include/asm/intel-family.h. All are of family 6.
"""

from __future__ import annotations

from typing import Literal

from splitlock.linux.versions import ONLY_ANNOUNCED, Change, Release, has

#: Have it and do not announce it: the kernel goes by the model. Ice Lake: servers, Xeon D, mobile.
UNANNOUNCED = {0x6A: "Ice Lake-SP", 0x6C: "Ice Lake-D", 0x7E: "Ice Lake mobile"}

_OLD = Change("LISTED", "", (5, 7), "split_lock_cpu_ids[]")
_ALDER_LAKE_L = Change("ALDER_LAKE_L", "", (5, 12), "split_lock_cpu_ids[]", stable={(5, 10): 17}, fix=True)
_RAPTOR_LAKE = Change("RAPTOR_LAKE", "", (5, 19), "split_lock_cpu_ids[]", lacks={(5, 15): 145, (5, 17): 0}, fix=True)
#: Those of the list that announce it: name, and since when they are on it.
LISTED = {
    0x86: ("Tremont servers: Snow Ridge", _OLD),
    0x96: ("Elkhart Lake", _OLD),
    0x9C: ("Jasper Lake", _OLD),
    0x8C: ("Tiger Lake mobile", _OLD),
    0x8D: ("Tiger Lake-H", _OLD),
    0x8F: ("Sapphire Rapids", _OLD),
    0x97: ("Alder Lake-S", _OLD),
    0x9A: ("Alder Lake-P", _ALDER_LAKE_L),
    0xB7: ("Raptor Lake-S", _RAPTOR_LAKE),
}


def looked_at(release: Release, model: int) -> Literal["yes", "no", "unknown"]:
    """Does this kernel use split-lock detection of a processor of this model (family 6) that has and announces it?"""
    if model in UNANNOUNCED:
        return "yes"
    any_model = has(ONLY_ANNOUNCED, release)
    if any_model == "yes" or model not in LISTED:
        return any_model
    listed = has(LISTED[model][1], release)
    return "unknown" if listed == "no" and any_model == "unknown" else listed
