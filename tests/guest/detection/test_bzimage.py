"""A kernel as distributions ship it, on processors with detection: its decompressor uses all that CPUID announces."""

from __future__ import annotations

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


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        ("amd64", "--sld"),
        pytest.param("amd64", "--bus-lock", marks=pytest.mark.slow),
        pytest.param("xz", "--sld", marks=pytest.mark.slow),
        pytest.param("new", "--sld", marks=pytest.mark.slow),
        pytest.param("new", "--bus-lock", marks=pytest.mark.slow),
    ],
)
def test_programs_find_themselves(guest: Run, initramfs: Path, kind: str, option: str) -> None:
    """On QEMU 7.2, whose widths of addresses were wrong: names of files are read, five levels of page tables are on."""
    words = ["--kernel", vmlinuz(kind), "--initrd", initramfs, "--append", "console=ttyS0"]
    _, report = guest(*words, option, timeout=200)
    console = report["console"]
    assert "\n/bin/busybox\r" in console
    assert "maps 0" not in console
    assert "57 bits virtual" in console
    assert "requests served: 3" in console
    (site,) = [site for site in report["sites"] if site["comm"] == "demo"]
    assert (site["image"], site["hits"]) == ("/demo", 3)
