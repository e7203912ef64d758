"""What watching a guest costs: QEMU without the plugin, with it, and detecting; booting and at work, in turns.

    benchmarks/guests.py                    a table, in minutes
    benchmarks/guests.py --rounds 9 --markdown docs/benchmarks.md

The guest is Debian's 6.1 with an initramfs; in it gcc compiles, busybox compresses, starts processes and copies through
pipes, and a program counts with aligned locked instructions, where the plugin costs most.
Time is QEMU's own processor time, and the clock's. The last row is 20,000 split locks, which the plugin counts; with
--sld the kernel is what takes time for them. `cpu` is QEMU without the plugin and with the processor of --sld, by which
alone the kernel chooses other ways.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]

from guard.machine import QEMU, kernel  # noqa: E402
from guest import boots  # noqa: E402
from tables import Table, machine, publish, version  # noqa: E402

from splitlock.guest import machine as machines  # noqa: E402
from splitlock.guest.detection import Detection  # noqa: E402

_SCRIPT = """
part() { echo "begins $1"; shift; "$@"; }
cat /bin/busybox /bin/busybox /bin/busybox >/tmp/file
part compile sh -c 'for n in 1 2 3 4; do LD_LIBRARY_PATH=/ /ld.so /cc1 -quiet -O2 /compile.i -o /dev/null; done'
part compression sh -c 'gzip -9 </tmp/file >/dev/null'
part processes sh -c 'i=0; while [ $i -lt 400 ]; do /bin/busybox true; i=$((i+1)); done'
part pipes sh -c 'dd if=/dev/zero bs=4k count=40000 2>/dev/null | cat | dd of=/dev/null bs=4k 2>/dev/null'
part atomics /atomics 30000000
part split /atomics 20000 split
echo "begins nothing"
"""
_PROGRAM = """
#include <stdlib.h>
static _Alignas(64) char memory[128];
int main(int argc, char **argv)
{
    long n = strtol(argv[1], 0, 10);
    void *operand = memory + (argc > 2 ? 62 : 0);
    for (long i = 0; i < n; i++)
        __asm__ volatile("lock incl (%0)" : : "r"(operand) : "memory");
    return 0;
}
"""
_SLD = Detection(split_locks=True)
#: with the plugin or not, and what is detected
_KINDS = {
    "plain": (False, Detection()),
    "watched": (True, Detection()),
    "cpu": (False, _SLD),
    "--sld": (True, _SLD),
}
_PARTS = ("boot", "compile", "compression", "processes", "pipes", "atomics", "split")


def compiler(place: Path) -> dict[str, Path]:
    """What gcc is inside, its libraries, and something to compile: this project's plugin."""
    source = ROOT / "src" / "splitlock" / "guest" / "plugin" / "plugin.c"
    subprocess.run(["gcc", "-E", source, "-o", place / "compile.i"], check=True)
    program = subprocess.check_output(["gcc", "-print-prog-name=cc1"], text=True).strip()
    libraries = re.findall(r"/\S+(?= \(0x)", subprocess.check_output(["ldd", program], text=True))
    files = {"cc1": Path(program), "compile.i": place / "compile.i"}
    return files | {"ld.so" if "/ld-" in path else Path(path).name: Path(path) for path in libraries}


def once(options: machines.Options, qemu: str) -> dict[str, tuple[float, float]]:
    """Seconds of each part: QEMU's processor time, and the clock's."""
    guest = machines.Machine(options, qemu)
    fields = Path(f"/proc/{guest.process.pid}/stat")
    seen: list[tuple[str, float, float]] = []
    text = b"begins boot\n"
    try:
        while True:
            for name in re.findall(rb"begins (\w+)\r?\n", text)[len(seen) :]:
                used = fields.read_text().rpartition(")")[2].split()
                cpu = (int(used[11]) + int(used[12])) / os.sysconf("SC_CLK_TCK")
                seen.append((name.decode(), cpu, time.monotonic()))
            if seen[-1][0] == "nothing":
                break
            ready, _, _ = select.select([guest.console.fileno(), guest.asked.fileno()], [], [], 120)
            if guest.asked.fileno() in ready and guest.asked.recv(4):
                guest.asked.sendall(b"\0")
            if guest.console.fileno() in ready:
                data = guest.console.read()
                if not data:
                    raise SystemExit(f"the guest died: {guest.words()}{text[-2000:].decode(errors='replace')}")
                text += data
    finally:
        guest.end()
        guest.close()
    return {a[0]: (b[1] - a[1], b[2] - a[2]) for a, b in itertools.pairwise(seen)}


def measure(rounds: int, append: str) -> Table:
    """Each kind in turns; of each part the least: what else runs only adds. `append`: to the kernel's command line."""
    qemu = machines.version(QEMU)
    times: dict[str, list[dict[str, tuple[float, float]]]] = {kind: [] for kind in _KINDS}
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "atomics.c").write_text(_PROGRAM)
        program = boots.compiled(place / "atomics.c", place / "atomics")
        initramfs = boots.initramfs(place / "initramfs", _SCRIPT, {"atomics": program, **compiler(place)})
        options = machines.Options(
            kernel=str(kernel("amd64").image), initrd=str(initramfs), append=f"console=ttyS0 quiet {append}", disk=None,
            disk_format=None, cdrom=None, firmware=None, memory=1 << 30, cpus=2, qemu=QEMU, more=[],
        )  # fmt: skip
        for turn in range(rounds):
            for kind, (plugin, detection) in list(_KINDS.items())[:: 1 if turn % 2 else -1]:
                times[kind].append(once(options._replace(plugin=plugin, detection=detection), qemu))
    rows = [["", *(word for what in ("CPU s", "clock s") for word in (what, "watched", "cpu", "--sld", "ratio"))]]
    for part in _PARTS:
        row = [part]
        for clock in (0, 1):
            least = {kind: min(each[part][clock] for each in times[kind]) for kind in _KINDS}
            row += [*(f"{seconds:.2f}" for seconds in least.values()), f"{least['--sld'] / least['cpu']:.2f}"]
        rows.append(row)
    return Table("A guest, by its parts: the least of all rounds; the ratio is --sld to cpu.", rows)


def main() -> None:
    """Measure, print, and keep where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="each kind, in turns (default: 5)")
    parser.add_argument("--append", default="", metavar="TEXT", help="more for the kernel, such as mitigations=off")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="rewrite FILE between guest:begin and guest:end")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    heading = [
        f"{machine()}, load {load:.2f} before",
        f"{version([QEMU, '--version'])}, TCG, 2 CPUs; guest Linux {kernel('amd64').release}",
        f"{arguments.rounds} rounds, plain, watched, with the processor of --sld and with --sld, in turns",
    ]
    publish("guest", heading, [measure(arguments.rounds, arguments.append)], arguments.markdown)


if __name__ == "__main__":
    main()
