"""The ten scenarios that tell the article's story, on real modules."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from modules.debian import modules

from splitlock._errors import SplitlockError
from splitlock.model.run import run
from splitlock.model.scenario import load
from splitlock.report.simulate import Report

SCENARIOS = Path(__file__).parents[2] / "docs" / "scenarios"


def play(number: str, find: Callable[[str], bytes] | None = None) -> Report:
    (path,) = SCENARIOS.glob(f"{number}-*.toml")

    def nothing(name: str) -> bytes:
        raise AssertionError(name)

    return run(load(str(path)), path.name, find or nothing)


def fates(report: Report) -> list[str]:
    """What came of each event after the boot."""
    return [f"{event.fate} {event.victim}".strip() for event in report.events[1:]]


#: Stands for vmmon, whose file cannot be had: VMXON and no VMLAUNCH, and not in-tree.
VMMON = """
asm(".section .modinfo, \\"a\\"; .asciz \\"name=vmmon\\"; .asciz \\"license=GPL\\"; .text");
void enter(unsigned long *region) { asm volatile("vmxon %0" :: "m"(*region)); }
"""


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytes]:
    """Debian's KVM, and the stand-in."""
    vmmon = tmp_path_factory.mktemp("vmmon") / "vmmon.ko"
    subprocess.run(["gcc", "-O2", "-x", "c", "-c", "-o", vmmon, "-"], input=VMMON.encode(), check=True)

    def find(name: str) -> bytes:
        return {"kvm_intel": modules("amd64")["kvm-intel.ko"], "vmmon": vmmon}[name].read_bytes()

    return find


def test_there_are_ten() -> None:
    assert len(list(SCENARIOS.glob("*.toml"))) == 10


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        ("01", ["executed"]),
        ("02", ["executed", "sigbus guest program", "oops guest kernel", "livelock guest program"]),
        ("03", ["slowed", "slowed", "slowed", "sigbus guest program", "emulated"]),
        ("04", ["sigbus program", "sigbus virtual machine"]),
        ("09", ["slowed", "sigbus guest program", "emulated"]),
        ("10", ["slowed", "executed", "sigbus guest program"]),
    ],
)
def test_without_modules(number: str, expected: list[str]) -> None:
    assert fates(play(number)) == expected


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        ("05", ["slowed", "disables", "executed", "executed"]),
        ("06", ["loaded", "loaded", "slowed", "sigbus guest program"]),
        ("07", ["loaded", "refused", "slowed", "not-started"]),
    ],
)
def test_with_modules(real: Callable[[str], bytes], number: str, expected: list[str]) -> None:
    assert fates(play(number, real)) == expected


def test_what_the_kernel_says(real: Callable[[str], bytes]) -> None:
    logs = [step.log for event in play("05", real).events for step in event.steps if step.log]
    prefix = "x86/split lock detection: "
    assert logs == [
        f"{prefix}#AC: crashing the kernel on kernel split_locks and warning on user-space split_locks",
        f"{prefix}#AC: game/1000 took a split_lock trap at address: 0x401000",
        f"{prefix}disabled due to VMLAUNCH in module: kvm_intel",
    ]


@pytest.mark.slow
def test_virtualbox(vboxdrv: Path, virtualbox: Path) -> None:
    """Its real driver, built from its source, and its real hypervisor."""
    files = {"vboxdrv": vboxdrv, "VMMR0.r0": virtualbox / "usr/lib/virtualbox/VMMR0.r0"}
    report = play("08", lambda name: files[name].read_bytes())
    assert fates(report) == ["loaded", "sigbus guest program"]
    brought = report.events[1].steps[-1].what
    assert "VMLAUNCH" in brought
    assert "VMXON" in brought


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "missing required field `title`"),
        ("title = 1\nevent = []", "title: Expected `str`"),
        ("title = ''\n[[event]]", "event[0]: give it either `load` or `lock`"),
        ("title = ''\n[[event]]\nlock = 'x'", "event[0].lock: no [[vm]] is named 'x'"),
        ("title = ''\n[[event]]\nlock = 'host'\nnumber = 0", "event[0].number: Expected `int` >= 1"),
        ("title = ''\n[[event]]\nlock = 'host'\naddress = '4'", "event[0].address"),
        ("title = ''\n[[event]]\nlock = 'host'\nevery_ms = inf", "event[0].every_ms: Expected `float` <= "),
        ("title = ''\nevent = []\n[[vm]]\nname = 'host'\nhypervisor = 'kvm'", "vm 'host': this name is the host's"),
        ("title = ''\nevent = []" + "\n[[vm]]\nname = 'a'\nhypervisor = 'kvm'" * 2, "vm 'a': this name is another's"),
        ("title = ''\nevent = []\n[host]\nmode = 'ratelimit:1001'", "none of off, warn, fatal, ratelimit:1"),
        ("title = ''\nevent = []\n[host]\nlinux = 'new'", "'new' is no version of Linux"),
        ("title = ''\nevent = []\n[host]\nmore = 1", "unknown field `more`"),
        ("title = ", "no valid TOML"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(SplitlockError) as caught:
        load(str(path))
    assert str(path) in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
