"""How long does `splitlock matrix --vmx` take: from power-on to one kernel's table, mode by mode?

    benchmarks/vmx.py                             Debian's 6.1 cloud kernel, four modes, KVM's small guests and Linux
    benchmarks/vmx.py --kernel FILE --markdown docs/benchmarks.md

Time is the emulator's own processor time, and the clock's. It takes one core; on a busy machine the clock's time says
how busy that was. Headers beside the kernel's package add the cells of blind.ko.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]

from modules.debian import packages  # noqa: E402
from tables import Table, machine, publish  # noqa: E402

from splitlock.guest.matrix.vmx import Wanted, measure  # noqa: E402
from splitlock.report.matrix_vmx import Mode, Report  # noqa: E402

_GUESTS = {
    "small": ["real", "kernel", "kernel_idt", "user_idt", "am_idt", "ac_idt", "asked", "asked_idt", "wrmsr_idt"],
    "Linux": ["linux_user", "linux_module"],
}
_MODES: tuple[Mode, ...] = ("off", "warn", "fatal", "unaware")
_ALL = ["kvm", "forward", "through", "off", "handle"]


def measured(kernel: str, mode: Mode, guests: list[str]) -> tuple[Report, float, float]:
    """A mode's report, seconds of processor time, and of the clock's."""
    began, used = time.monotonic(), _used()
    wanted = Wanted([kernel], None, [mode], _ALL, guests, 120.0)
    report = measure(wanted, lambda _: None, lambda _: None)
    return report, _used() - used, time.monotonic() - began


def _used() -> float:
    of = resource.getrusage(resource.RUSAGE_CHILDREN)
    return of.ru_utime + of.ru_stime


def main() -> None:
    """Measure, and print or write a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel")
    parser.add_argument("--only", choices=_GUESTS, help="without the other guests, which take most of the time")
    parser.add_argument("--markdown", type=Path)
    args = parser.parse_args()
    kernel = args.kernel or str(packages("cloud-amd64")["cloud-amd64"])
    load = os.getloadavg()[0]
    rows = [["guests", "mode", "cells", "processor, s", "clock, s"]]
    release, total = "", 0.0
    for name, guests in _GUESTS.items():
        if args.only not in (None, name):
            continue
        for mode in _MODES:
            report, used, clock = measured(kernel, mode, guests)
            release = report.kernels[0].release
            cells = sum(cell.outcome not in ("impossible", "not-tried") for cell in report.cells)
            rows.append([name, mode, str(cells), f"{used:.1f}", f"{clock:.1f}"])
            if name == "small":
                total += used
    heading = [
        f"{machine()}, load {load:.2f} before",
        f"Bochs {report.emulator}, 1 CPU; Linux {release}, unpacking its package and building modules for it included",
    ]
    caption = f"From power-on to a mode's table; four modes of the small guests: {total:.0f} s of processor time."
    publish("vmx", heading, [Table(caption, rows)], args.markdown)


if __name__ == "__main__":
    main()
