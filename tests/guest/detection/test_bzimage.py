"""A kernel as distributions ship it, on processors with detection: its decompressor uses all that CPUID announces."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from guest import boots
from guest.conftest import SHARED, Run
from modules.debian import vmlinuz

_SCRIPT = """readlink /proc/self/exe; echo maps $(grep -c busybox /proc/self/maps)
grep -m1 'address sizes' /proc/cpuinfo; demo 3"""


@pytest.fixture(scope="session")
def initramfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs that look at themselves; glibc's loader does, too, and aborts where it cannot."""
    place = tmp_path_factory.mktemp("bzimage")
    demo = boots.compiled(SHARED / "demo.c", place / "demo")
    return boots.initramfs(place / "initramfs", _SCRIPT, {"demo": demo})


_FAST = [("7.2", "amd64", "--sld")]
_ALL = product(("7.2", "10.0"), ("amd64", "xz", "new"), ("--sld", "--bus-lock"))


@pytest.mark.parametrize(
    ("qemu", "kind", "option"),
    [pytest.param(*each, marks=[] if each in _FAST else pytest.mark.slow) for each in _ALL],
    indirect=["qemu"],
)
def test_programs_find_themselves(guest: Run, initramfs: Path, qemu: str, kind: str, option: str) -> None:
    """Names of files are read, and five levels of page tables are on."""
    words = ["--kernel", vmlinuz(kind), "--initrd", initramfs, "--append", "console=ttyS0"]
    _, report = guest(*words, option, "--qemu", qemu, timeout=300)
    console = report["console"]
    assert "\n/bin/busybox\r" in console
    assert "maps 0" not in console
    assert "57 bits virtual" in console
    assert "requests served: 3" in console
    (site,) = [site for site in report["sites"] if site["comm"] == "demo"]
    assert (site["image"], site["hits"]) == ("/demo", 3)
