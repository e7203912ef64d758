"""`splitlock guest` on real guests: exact counts, with names, from the first instruction to a guest in the guest."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from guard.machine import Kernel
from guest import boots
from guest.conftest import Run


def _sites(report: dict[str, Any], **wanted: object) -> list[dict[str, Any]]:
    return [site for site in report["sites"] if all(site[key] == value for key, value in wanted.items())]


def test_programs_old_and_new_and_nested(guest: Run, qemu: str, debian: Kernel, small: Path) -> None:
    """One boot, all of it: threads, 100 short processes at one address that call execve, 32-bit code, kvm-amd."""
    status, report = guest(
        "--qemu", qemu, "--kernel", debian.image, "--initrd", small, "--append", "console=ttyS0 quiet pti=on"
    )
    assert status == 1
    assert report["watched"]["end"] == "power off"
    assert report["watched"]["kernel"] == debian.release
    assert report["ready"] is False
    assert report["unnamed"] == 0

    (demo,) = _sites(report, comm="demo")
    assert demo["hits"] == 3000
    assert (demo["where"], demo["mode"], demo["image"]) == ("user", 64, "/demo")

    said = re.findall(r"took (\w+) (\d+) (\d+)", report["console"])
    took = {(name, int(pid)): int(count) for name, pid, count in said}
    assert len(took) == 2 * 61  # 40, and 7 times 3; each under two names
    many = _sites(report, image="/many")
    assert {(site["comm"], site["pid"]): site["hits"] for site in many} == took

    narrow = _sites(report, image="/split32")
    assert [site["hits"] for site in narrow] == [200, 200, 200]
    assert {site["mode"] for site in narrow} == {32}
    assert {site["operand_size"] for site in narrow} == {4, 8}

    (nested,) = _sites(report, where="nested")
    assert (nested["hits"], nested["mode"], nested["comm"]) == (20000, 16, "nested")
    assert nested["address"] == "0x1000"
    assert report["hits"] == 3000 + sum(took.values()) + 600 + 20000


def test_module_by_kaslr_bzimage(guest: Run, cloud: Kernel, module: Path, tmp_path: Path) -> None:
    """A bzImage puts itself at a random address."""
    from modules.debian import vmlinuz

    initramfs = boots.initramfs(tmp_path / "initramfs", "insmod /splitmod.ko count=4321", {"splitmod.ko": module})
    status, report = guest("--kernel", vmlinuz("xz"), "--initrd", initramfs, "--fail-on", "kernel")
    assert status == 1
    (site,) = report["sites"]
    assert (site["where"], site["hits"], site["image"]) == ("module", 4321, "splitmod")
    assert site["function"].startswith("splitmod_bump")
    assert site["comm"] is None


def test_fail_on_the_other(guest: Run, cloud: Kernel, built: dict[str, Path], tmp_path: Path) -> None:
    """A program's split locks are none of the kernel's."""
    initramfs = boots.initramfs(tmp_path / "initramfs", "demo 30", {"demo": built["demo"]})
    status, report = guest("--kernel", cloud.image, "--initrd", initramfs, "--fail-on", "kernel", "--smp", 1)
    assert (status, report["hits"]) == (0, 30)


def test_clean(guest: Run, cloud: Kernel, tmp_path: Path) -> None:
    """Nothing is found where nothing is, and what was seen is said."""
    status, report = guest("--kernel", cloud.image, "--initrd", boots.initramfs(tmp_path / "initramfs", "true", {}))
    assert (status, report["hits"], report["sites"], report["ready"]) == (0, 0, [], True)
    assert report["watched"]["kernel"] == cloud.release
    assert report["watched"]["sites"] > 500
    assert report["unwatched"] == []


def test_boot_sector(guest: Run, qemu: str, built: dict[str, Path]) -> None:
    """16- and 32-bit code, with no operating system at all."""
    status, report = guest("--qemu", qemu, "--disk", built["sector"])
    assert status == 1
    assert report["watched"]["end"] == "power off"
    assert [(site["hits"], site["mode"], site["operand_size"]) for site in report["sites"]] == [
        (1000, 16, 2), (700, 32, 4), (500, 16, 4),
    ]  # fmt: skip
    assert {site["where"] for site in report["sites"]} == {"boot loader"}
    assert report["ready"] is None


def test_firmware(guest: Run, built: dict[str, Path]) -> None:
    """From the reset vector on."""
    status, report = guest("--firmware", built["firmware"], "--disk", built["sector"], "--until", "done")
    assert status == 1
    assert report["watched"]["end"] == "until"
    assert [(site["hits"], site["where"], site["mode"]) for site in report["sites"]] == [
        (1000, "firmware", 16), (500, "firmware", 16),
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "hits"), [("OVMF_CODE_4M.fd", 2), ("OVMF_CODE.fd", 0)])
def test_ovmf(guest: Run, built: dict[str, Path], name: str, hits: int) -> None:
    """Debian's 4 MiB build takes two as it wakes a second processor: counters in a packed structure (MpInitLib)."""
    firmware = Path("/usr/share/OVMF") / name
    _, report = guest("--firmware", firmware, "--disk", built["sector"], "--until", "BdsDxe|Shell", "--duration", 40)
    assert report["watched"]["end"] == "until"
    assert [(site["hits"], site["where"], site["image"], site["mode"]) for site in report["sites"]] == (
        [(1, "firmware", "CpuMpPei", 32)] * hits
    )
