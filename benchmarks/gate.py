#!/usr/bin/env python3
"""What the gate adds to loading a module: a normal boot set, in a real Debian kernel in QEMU (TCG).

    benchmarks/gate.py                                  some 3 minutes, 1 GB of memory
    benchmarks/gate.py --rounds 9 --markdown docs/benchmarks.md

Each module is loaded and taken out again, in rounds without the gate and with it in turns: the time of finit_module.
Beside it, what the gate itself says each decision took. Needs what `make setup` installs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from guard.guests import decisions, gate_payload, start
from guard.machine import QEMU, Machine, boot_order, kernel
from modules.debian import unpacked
from tables import Table, machine, number, publish, spread, version

# what Debian 12 has loaded on a desktop, a server and a virtual machine, as far as a guest without hardware loads it
BOOT_SET = (
    "ext4", "xfs", "btrfs", "vfat", "isofs", "fuse", "overlay", "loop", "dm_crypt", "raid1", "efivarfs",
    "virtio_net", "virtio_scsi", "e1000e", "igb", "r8169", "iwlwifi", "bluetooth", "ahci", "nvme", "usb_storage",
    "xhci_pci", "usbhid", "snd_hda_intel", "drm", "i915", "amdgpu", "nouveau", "kvm_amd", "aesni_intel", "cryptd",
    "nf_tables", "ip_tables", "bridge", "veth", "tun", "evdev", "psmouse", "i2c_piix4", "acpi_cpufreq", "sr_mod",
)  # fmt: skip


def measure(rounds: int, loads: int) -> tuple[list[Table], dict[str, Any]]:
    """The tables, and all the numbers."""
    with tempfile.TemporaryDirectory() as directory:
        payload = gate_payload(Path(directory), "amd64", with_ways=False)
        with Machine(kernel("amd64"), payload, memory=2048) as guest:
            return _measure(guest, payload, rounds, loads)


def _measure(guest: Machine, payload: Path, rounds: int, loads: int) -> tuple[list[Table], dict[str, Any]]:
    release = guest.kernel.release
    guest.run(f"cp /lib/modules/{release}/modules.dep /tmp/").ok()
    local = Path(tempfile.mkdtemp())
    (local / "modules.dep").write_text(guest.run("cat /tmp/modules.dep").ok().out)
    paths = [f"/lib/modules/{release}/{path.relative_to(local)}" for path in boot_order(local, BOOT_SET)]
    without: dict[str, list[float]] = {}
    with_gate: dict[str, list[float]] = {}
    nanoseconds: dict[str, list[int]] = {}

    def once(into: dict[str, list[float]]) -> None:
        done = guest.run(["python3", "/payload/ways/timed.py", str(loads)], input="\n".join(paths), timeout=600).ok()
        for line in done.lines():
            into.setdefault(line["path"], []).extend(second * 1e3 for second in line["seconds"])

    once({})  # warm: files in memory, code translated
    for _ in range(rounds):
        once(without)
        start(guest)
        once(with_gate)
        for decision in decisions(guest):
            nanoseconds.setdefault(decision["name"], []).append(decision["nanoseconds"])
        guest.run("rm -f /var/log/splitlock/guard.jsonl")
        guest.splitlock("guard", "stop").ok()
    return _tables(without, with_gate, nanoseconds), {"without": without, "with": with_gate, "ns": nanoseconds}


def _tables(
    without: dict[str, list[float]], with_gate: dict[str, list[float]], nanoseconds: dict[str, list[int]]
) -> list[Table]:
    rows: list[tuple[str, int, float, float, float]] = []
    sizes = {path.name: path.stat().st_size for path in unpacked("amd64").rglob("*.ko")}
    for path, before in without.items():
        file = path.rsplit("/", 1)[1]
        name = file.split(".")[0].replace("-", "_")
        if path in with_gate and name in nanoseconds:
            took = statistics.median(nanoseconds[name]) / 1e6
            rows.append((name, sizes[file], statistics.median(before), statistics.median(with_gate[path]), took))
    rows.sort(key=lambda row: row[1])
    header = ["module", "kB", "load, ms", "with the gate", "the gate's own", "of the load"]

    def row(each: tuple[str, int, float, float, float]) -> list[str]:
        name, size, before, after, took = each
        return [name, f"{size // 1024:,}", number(before), number(after), number(took), f"{took / before:.2%}"]

    own = [each[4] for each in rows]
    total = (
        "all",
        sum(each[1] for each in rows),
        sum(each[2] for each in rows),
        sum(each[3] for each in rows),
        sum(own),
    )
    return [
        Table(
            f"{len(rows)} of a boot set, by size; medians. The gate's own time is what it says a decision took.",
            [header, *map(row, rows), row(total)],
        ),
        Table(
            "A decision, in milliseconds: median, least and greatest module.",
            [["", "ms"], ["decision", spread(own)]],
        ),
    ]


def main() -> None:
    """Measure, print, and keep where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="with and without, in turns (default: 5)")
    parser.add_argument("--loads", type=int, default=2, metavar="N", help="of each module in a round (default: 2)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="rewrite FILE between guard:begin and guard:end")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    tables, _ = measure(arguments.rounds, arguments.loads)
    heading = [
        f"{machine()}, load {load:.2f} before",
        f"{version([QEMU, '--version'])}, TCG, 2 CPUs; guest Linux {kernel('amd64').release}",
        f"{arguments.rounds} rounds of {arguments.loads} loads, without and with the gate in turns",
    ]
    publish("guard", heading, tables, arguments.markdown)


if __name__ == "__main__":
    main()
