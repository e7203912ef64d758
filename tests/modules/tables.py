"""What four of Debian's kernels hold, module by module.

Not what splitlock said: each package was unpacked with dpkg-deb (and xz), `objdump -d` was run over every module and
the mnemonics in its listing counted, `readelf -rW` for the relocations in executable sections.
test_tables.py does so again: for the modules in which something is found and a sample of the others, and for all
of them in a slow test.
"""

from __future__ import annotations

from typing import NamedTuple

Counts = dict[str, dict[str, int]]  # kind or operation: {module: how often}


class Table(NamedTuple):
    """One kernel package's."""

    package: str  # NAME_VERSION
    modules: int
    instructions: Counts
    operations: Counts  # through pv_ops, and cr4_update_irqsoff
    reasons: dict[str, int]  # why the policy `refuse` allows them (it allows all), without "nothing found"


AMD64 = Table(
    "linux-image-6.1.0-56-amd64_6.1.192-2",
    4023,
    {
        "VMLAUNCH": {"kvm-intel": 1}, "VMRESUME": {"kvm-intel": 1}, "VMXON": {"kvm-intel": 1},
        "VMXOFF": {"kvm-intel": 2}, "VMPTRLD": {"kvm-intel": 7}, "VMCLEAR": {"kvm-intel": 10},
        "INVEPT": {"kvm-intel": 4}, "INVVPID": {"kvm-intel": 16}, "VMREAD": {"kvm-intel": 275},
        "VMWRITE": {"kvm-intel": 351},
        "VMRUN": {"kvm-amd": 2}, "VMLOAD": {"kvm-amd": 2}, "VMSAVE": {"kvm-amd": 2}, "STGI": {"kvm-amd": 2},
        "CLGI": {"kvm-amd": 1}, "INVLPGA": {"kvm-amd": 1},
        "VMCALL": {"vmwgfx": 12, "psmouse": 10, "ptp_kvm": 3, "ptp_vmw": 1},
        "VMMCALL": {"vmwgfx": 12, "psmouse": 10, "ptp_kvm": 3, "ptp_vmw": 1},
        "MOV CR2": {"kvm-intel": 1}, "LLDT": {"kvm-intel": 1}, "WRMSR": {"kvm-amd": 8, "kvm-intel": 7},
        "RDMSR": {"kvm-amd": 7, "kvm-intel": 2}, "WBINVD": {"kvm": 3, "nettel": 1}, "XSETBV": {"kvm": 2},
        "WRPKRU": {"kvm": 2},
    },
    {
        "cr4_update_irqsoff": {"kvm-intel": 2},
        "set_debugreg": {"kvm": 6, "kvm-intel": 3}, "load_tr_desc": {"kvm-amd": 1, "kvm-intel": 1},
        "wbinvd": {"kvm": 3},
        "read_msr": {
            "kvm-intel": 29, "intel-uncore": 10, "intel_ips": 10, "hv_vmbus": 8, "speedstep-lib": 7, "power": 6,
            "powernow-k8": 5, "acpi-cpufreq": 4, "kvm-amd": 4, "x86_pkg_temp_thermal": 4, "intel-cstate": 3,
            "isst_if_mbox_msr": 3, "kvm": 3, "hwmon-vid": 2, "rapl": 2, "via-rng": 2, "amd64_edac": 1, "mce-inject": 1,
        },
        "write_msr": {
            "intel-uncore": 78, "kvm-intel": 15, "hv_vmbus": 13, "mce-inject": 10, "intel_ips": 8, "kvm-amd": 8,
            "kvm": 6, "x86_pkg_temp_thermal": 4, "acpi-cpufreq": 3, "powernow-k8": 3, "isst_if_mbox_msr": 2,
            "via-rng": 1,
        },
        "read_msr_safe": {
            "kvm": 8, "processor_thermal_device": 5, "fam15h_power": 3, "intel_pmc_core": 3, "kvm-intel": 3,
            "intel_powerclamp": 2, "intel_rapl_common": 2, "isst_if_common": 2, "amd_freq_sensitivity": 1,
            "edac_mce_amd": 1, "intel_rapl_msr": 1, "intel_soc_dts_iosf": 1, "isst_if_mbox_msr": 1, "mce-inject": 1,
            "power": 1, "rapl": 1,
        },
        "write_msr_safe": {
            "kvm": 3, "intel_rapl_common": 2, "intel_rapl_msr": 1, "isst_if_common": 1, "kvm-amd": 1, "mce-inject": 1,
            "processor_thermal_device": 1,
        },
    },
    {
        "nothing this policy forbids": 17, "in-tree": 15, "SLD-aware: imports handle_guest_split_lock": 1,
    },
)  # fmt: skip

# The same, but for one VMPTRLD and one write_msr.
RT = Table(
    "linux-image-6.1.0-56-rt-amd64_6.1.192-2",
    4019,
    AMD64.instructions | {"VMPTRLD": {"kvm-intel": 6}},
    AMD64.operations | {"write_msr": AMD64.operations["write_msr"] | {"kvm-amd": 7}},
    AMD64.reasons,
)

# The same with fewer drivers, and without the one write_msr_safe of kvm-amd.
_NOT_IN_THE_CLOUD = {
    "vmwgfx", "psmouse", "nettel", "intel_ips", "isst_if_mbox_msr", "isst_if_common", "hwmon-vid", "via-rng",
    "amd64_edac", "edac_mce_amd", "mce-inject", "fam15h_power", "intel_pmc_core",
}  # fmt: skip


def _in_the_cloud(counts: Counts) -> Counts:
    return {
        what: {name: number for name, number in modules.items() if name not in _NOT_IN_THE_CLOUD}
        for what, modules in counts.items()
    }


_CLOUD_OPERATIONS = _in_the_cloud(AMD64.operations)
del _CLOUD_OPERATIONS["write_msr_safe"]["kvm-amd"]
CLOUD = Table(
    "linux-image-6.1.0-56-cloud-amd64_6.1.192-2",
    1121,
    _in_the_cloud(AMD64.instructions),
    _CLOUD_OPERATIONS,
    AMD64.reasons | {"nothing this policy forbids": 9, "in-tree": 10},
)

XZ = Table(
    "linux-image-6.12.117+deb12-cloud-amd64_6.12.117-1~deb12u1",
    1138,
    {
        "VMLAUNCH": {"kvm-intel": 1}, "VMRESUME": {"kvm-intel": 1}, "VMXON": {"kvm-intel": 1},
        "VMXOFF": {"kvm-intel": 2}, "VMPTRLD": {"kvm-intel": 7}, "VMCLEAR": {"kvm-intel": 10},
        "INVEPT": {"kvm-intel": 3}, "INVVPID": {"kvm-intel": 16}, "VMREAD": {"kvm-intel": 283},
        "VMWRITE": {"kvm-intel": 353},
        "VMRUN": {"kvm-amd": 1}, "VMLOAD": {"kvm-amd": 2}, "VMSAVE": {"kvm-amd": 2}, "STGI": {"kvm-amd": 3},
        "CLGI": {"kvm-amd": 1}, "INVLPGA": {"kvm-amd": 1},
        "VMCALL": {"ptp_kvm": 1, "ptp_vmw": 1},
        "VMMCALL": {"pci-hyperv": 3, "hv_vmbus": 2, "hv_balloon": 1, "ptp_kvm": 1, "ptp_vmw": 1},
        "MOV CR2": {"kvm-intel": 1}, "LLDT": {"kvm-intel": 1}, "WRMSR": {"kvm-intel": 7, "kvm-amd": 6},
        "RDMSR": {"kvm-amd": 6, "kvm-intel": 2}, "WBINVD": {"kvm": 2}, "XSETBV": {"kvm": 2}, "WRPKRU": {"kvm": 2},
    },
    {
        "cr4_update_irqsoff": {"kvm-intel": 2},
        "set_debugreg": {"kvm": 6, "kvm-intel": 3}, "load_tr_desc": {"kvm-intel": 1}, "wbinvd": {"kvm": 2},
        "read_msr": {
            "kvm-intel": 31, "intel-uncore": 10, "speedstep-lib": 7, "power": 6, "acpi-cpufreq": 5, "intel-cstate": 5,
            "kvm-amd": 5, "powernow-k8": 5, "kvm": 3, "x86_pkg_temp_thermal": 3, "rapl": 2, "mce-inject": 1,
        },
        "write_msr": {
            "intel-uncore": 78, "kvm-intel": 14, "kvm-amd": 13, "mce-inject": 10, "kvm": 8, "acpi-cpufreq": 4,
            "powernow-k8": 3, "x86_pkg_temp_thermal": 3,
        },
        "read_msr_safe": {
            "kvm": 8, "kvm-intel": 3, "intel_powerclamp": 2, "intel_rapl_common": 2, "amd_freq_sensitivity": 1,
            "intel_rapl_msr": 1, "mce-inject": 1, "power": 1, "processor_thermal_device": 1, "rapl": 1,
        },
        "write_msr_safe": {"kvm": 3, "intel_rapl_common": 2, "mce-inject": 2, "intel_rapl_msr": 1},
    },
    {
        "nothing this policy forbids": 12, "in-tree": 9, "SLD-aware: imports handle_guest_split_lock": 1,
    },
)  # fmt: skip

TABLES = {"amd64": AMD64, "cloud-amd64": CLOUD, "rt-amd64": RT, "xz": XZ}
