"""Is it the processor of Intel's manual? A fault before the operation, per CPU, for every form; each counted once."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from guest.conftest import Run
from guest.detection.conftest import Boot, sites

_FORMS = ["add", "btc", "cmpxchg", "cmpxchg8b", "inc", "neg", "xadd", "xchg"]
_COUNT = 6250  # times eight forms times two CPUs: 100,000
_BOTH = pytest.mark.parametrize("qemu", ["7.2", pytest.param("10.0", marks=pytest.mark.slow)], indirect=True)
_KVM = "for each in ccp irqbypass kvm kvm-amd; do insmod /$each.ko; done # ccp.ko irqbypass.ko kvm.ko kvm-amd.ko\n"


def _right(report: dict[str, Any], told: str = r"right\r?\n") -> None:
    """Each form on each CPU."""
    found = re.findall(rf"form (\w+) on CPU (\d): {told}", report["console"])
    assert sorted(found) == sorted((form, cpu) for form in _FORMS for cpu in "01"), report["console"][-3000:]


@_BOTH
@pytest.mark.parametrize("count", [125, pytest.param(_COUNT, marks=pytest.mark.slow)])
def test_user_signals(boot: Boot, qemu: str, count: int, tmp_path: Path) -> None:
    """`fatal`: up to 100,000 faults, each before anything was done, with SIGBUS for a handler that passes over it."""
    traps = tmp_path / "traps"
    script = f"forms {count} skip\nfaults\ninsmod /msr.ko\nprocessor"
    report = boot(script, "--sld", "--qemu", qemu, "--traps", traps, append="split_lock_detect=fatal quiet")
    _right(report)
    found = sites(report, "forms")
    assert [(site["traps"], site["hits"], site["answers"]) for site in found] == [(2 * count, 0, ["sigbus"])] * 8

    console = report["console"]
    for cpu in (0, 1):
        assert f"CPU {cpu}: EDX[30] 1 ECX[24] 0 CORE_CAPABILITIES 0x20 TEST_CTRL 0x20000000" in console
    assert "CORE_CAPABILITIES refused, TEST_CTRL bit 0 refused, off on CPU 1 written" in console
    assert re.search(r"CPU 0: SIGBUS\s+CPU 1: executed", console)

    _page_faults_first(console, newest=qemu != "qemu-system-x86_64")
    assert "case copied: signal 7 code 1" in console
    assert re.search(r"child has 0\s+parent has 0", console)

    lines = [json.loads(line) for line in traps.read_text().splitlines()]
    assert len(lines) == report["detection"]["traps"]
    assert lines[0]["trap"] == "#AC"
    assert {line["cpl"] for line in lines} == {3}


def _page_faults_first(console: str, *, newest: bool) -> None:
    assert "case second page unmapped: signal 11 code 1" in console
    assert "case second page read-only: signal 11 code 2" in console
    assert "case first page read-only: signal 11 code 2" in console
    # by a general protection fault; QEMU 7.2's has none, as its own is wrong
    assert f"case cmpxchg16b: signal {'11 code 128' if newest else '4 code 2'}" in console


@pytest.mark.slow
def test_warn(boot: Boot, qemu: str) -> None:
    """`warn`: the same in the kernel, by its own notifiers; programs go on, and become what they would have become."""
    script = (
        f"insmod /formsmod.ko count={_COUNT} announced=1\n"
        f"echo 0 >/proc/sys/kernel/split_lock_mitigate\nforms {_COUNT}\ntaskset 1 faults"
    )
    report = boot(script, "--sld", "--qemu", qemu, append="quiet")
    _right(report, rf"right, {_COUNT} faults")
    _right(report)
    module = [site for site in report["sites"] if site["where"] == "module"]
    assert [(site["traps"], site["hits"]) for site in module] == [(2 * _COUNT, 2 * _COUNT)] * 8
    programs = sites(report, "forms")
    assert [site["hits"] for site in programs] == [2 * _COUNT] * 8
    assert sum(site["traps"] for site in programs) > 0
    _page_faults_first(report["console"], newest=qemu != "qemu-system-x86_64")
    assert "case copied: executed" in report["console"]
    assert re.search(r"child has 1\s+parent has 0", report["console"])
    assert "case EFLAGS.AC: signal 7 code 1" in report["console"]  # it asked for it


def test_forwarded_once(boot: Boot, qemu: str) -> None:
    """100,000 user and 100,000 kernel executions are as many faults; so is a nested guest's, which kvm-amd hands on."""
    script = (
        f"echo 0 >/proc/sys/kernel/split_lock_mitigate\nforms {_COUNT}\ninsmod /formsmod.ko count={_COUNT}\n"
        f"{_KVM}taskset 1 nested 20000\nnested 1 unready"
    )
    report = boot(script, "--forward-ac=once", "--qemu", qemu, append="quiet")
    _right(report)
    _right(report, rf"right, {_COUNT} faults")
    programs = sites(report, "forms")
    assert [(site["traps"], site["hits"]) for site in programs] == [(2 * _COUNT, 2 * _COUNT)] * 8
    module = [site for site in report["sites"] if site["where"] == "module"]
    assert [(site["traps"], site["hits"]) for site in module] == [(2 * _COUNT, 2 * _COUNT)] * 8

    console = report["console"]
    assert "nested guest: exit reason 5, counter 20000, #AC 20000" in console  # KVM_EXIT_HLT
    assert "nested guest: exit reason 8, counter 0, #AC 0" in console  # KVM_EXIT_SHUTDOWN
    nested = {site["hits"]: site["traps"] for site in report["sites"] if site["where"] == "nested"}
    assert nested == {20000: 20000, 0: 1}


@pytest.mark.slow
def test_before_a_kernel(guest: Run, built: dict[str, Path]) -> None:
    """In real mode a BIOS takes #AC for the call that has its number, answers it, and the retry executes."""
    _, report = guest("--disk", built["sector"], "--forward-ac=asked", "--until", "done")
    assert [(site["hits"], site["traps"]) for site in report["sites"]] == [(1000, 0), (700, 0), (500, 0)]
    _, report = guest("--disk", built["sector"], "--forward-ac=once", "--duration", 8)
    first = report["sites"][0]
    assert (first["mode"], first["where"]) == (16, "boot loader")
    assert first["traps"] == first["hits"]
    assert report["detection"]["resets"] > 0  # 32-bit code of it has no handlers: a triple fault
