"""Bus locks on the processor of `--vmx`: what Linux makes of its programs' #DB, and KVM of a bus-lock VM exit."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from guest import boots
from guest.conftest import PROGRAMS, SHARED, Run
from modules.debian import unpacked, vmlinuz

_KERNEL = "cloud-amd64"
_KVM = ("irqbypass.ko", "kvm.ko", "kvm-intel.ko")
_EXIT_HLT, _EXIT_BUS_LOCK, _RUN_BUS_LOCK = 5, 33, 2  # linux/kvm.h


@pytest.mark.slow
@pytest.mark.usefixtures("emulator")
def test_linux(guest: Run, tmp_path: Path) -> None:
    """The rate limit waits for each, and says so; a VMM that has asked is told of each lock of its guest."""
    modules = {path.name: path for path in unpacked(_KERNEL).rglob("*.ko") if path.name in _KVM}
    files = {"demo": boots.compiled(SHARED / "demo.c", tmp_path / "demo"),
             "buslock": boots.compiled(PROGRAMS / "buslock.c", tmp_path / "buslock"), **modules}  # fmt: skip
    script = "demo 30\n" + "\n".join(f"insmod /{name}" for name in _KVM) + "\nbuslock\nusleep 100000"
    initrd = boots.initramfs(tmp_path / "initrd", script, files)
    words = ["--kernel", vmlinuz(_KERNEL), "--initrd", initrd, "--append",
             "console=ttyS0 split_lock_detect=ratelimit:10 ignore_loglevel"]  # fmt: skip
    status, report = guest("--vmx", "--bus-lock", *words, "--duration", 300, timeout=400)
    console = report["console"].replace("\r", "")
    assert status == 1
    assert "#DB: setting system wide bus lock rate limit to 10/sec" in console
    times = [float(at) for at in re.findall(r"^\[ *([0-9.]+)\] .*#DB: demo/\d+ took a bus_lock trap", console, re.M)]
    assert len(times) > 2
    assert all(0.09 < after - before < 0.2 for before, after in pairwise(times))
    (demo,) = [site for site in report["sites"] if site["comm"] == "demo"]
    assert (demo["hits"], demo["traps"], demo["processor"]["delivered"]) == (30, 30, 30)

    assert "capability 3" in console  # off, or exit
    exits = [tuple(map(int, found)) for found in re.findall(r"^exit (\d+) flags (\d+) memory (\d+)$", console, re.M)]
    assert exits == [(_EXIT_BUS_LOCK, _RUN_BUS_LOCK, 1), (_EXIT_BUS_LOCK, _RUN_BUS_LOCK, 2), (_EXIT_HLT, 0, 2)]
    (first, second) = [site for site in report["sites"] if site["comm"] == "buslock"]
    for site in (first, second):
        assert (site["hits"], site["traps"], site["processor"]["exits"]) == (1, 1, 1)
        assert (site["processor"]["place"], site["processor"]["injected"]) == ("guest", 0)
