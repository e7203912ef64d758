"""The scenarios that tell the article's story, on real modules."""

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


#: Stands for vmmon, which is not ours to ship: VMXON and no VMLAUNCH, and not in-tree (docs/scan.md).
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


def test_all_are_played_here() -> None:
    assert len(list(SCENARIOS.glob("*.toml"))) == 12


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        ("01", ["executed"]),
        (
            "02",
            [
                "executed",
                "sigbus guest program",
                "oops guest kernel",
                "livelock guest program",
                "oops host kernel",
                "emulated",
                "sigbus guest program",
                "oops host kernel",
                "executed",
            ],
        ),
        ("03", ["slowed", "slowed", "slowed", "sigbus guest program", "emulated"]),
        ("04", ["sigbus program", "sigbus virtual machine"]),
        ("09", ["slowed", "sigbus guest program", "emulated", "emulated", "sigbus guest program"]),
        ("10", ["slowed", "executed", "sigbus guest program"]),
        ("12", ["livelock guest program", "slowed", "slowed"]),
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
        ("11", ["loaded", "unloaded", "slowed", "resumed", "slowed", "executed"]),
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
    assert fates(report) == ["loaded", "sigbus guest program", "emulated"]
    brought = report.events[1].steps[-1].what
    assert "VMLAUNCH" in brought
    assert "VMXON" in brought


EVENT = "title = ''\n[[event]]\n"
NONE = "title = ''\nevent = []\n"
VM = "[[vm]]\nname = 'a'\nhypervisor = "


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("", 1, '`title` is missing, a text in quotes ("...")'),
        ("title = 1\nevent = []", 1, "title: 1 is not a text in quotes"),
        ("\n\n[hots]", 3, "hots: there is no such key; there are event, host, tells, title, vm"),
        ("event = 3\ntitle = ''", 1, "event: 3 is not a list of tables"),
        ("title = ", 1, "no valid TOML"),
        ("title = ''\nx =\n", 2, "no valid TOML"),
        # numbered as people count, on the line of the key
        (EVENT, 2, "[[event]] 1: give an event exactly one of load, unload, resume, online, step, lock; it has none"),
        (EVENT + "load = 'x'\nlock = 'host'", 4, "[[event]] 1: lock: give an event exactly one of"),
        (EVENT + "lock = 'x'", 3, '[[event]] 1: lock: no [[vm]] is named "x"; there are "host"'),
        (EVENT + "lock = 'host'\n\n[[event]]\nlock = 'host'\nnumber = 0", 7,
         "[[event]] 2: number: 0 is not a whole number from 1 to 100,000"),
        (EVENT + "lock = 'host'\nevery_ms = inf", 4, "inf is not a number from 0 to 86,400,000"),
        (EVENT + "lock = 'host'\nwhere = 'ring0'", 4, '"ring0" is not one of "interrupt", "kernel", "user"'),
        (EVENT + "lock = 'host'\naddress = '4'", 4, "\"4\" is not a hexadecimal address"),
        (EVENT + "resume = 'ram'", 3, '"ram" is not one of "disk", "idle", "memory"'),
        (NONE + "[host]\nmore = 1", 4, "[host]: more: there is no such key; there are hz, linux, mitigate, mode"),
        (NONE + "[host]\nlinux = 'new'", 4, '[host]: linux: "new" is no version of Linux'),
        (NONE + "[host]\nprocessor = ['#AC',\n '#XX']", 4, '"#XX" is not one of "#AC", "#DB"'),
        (NONE + "[host]\nmitigate = 'no'", 4, '[host]: mitigate: "no" is not true or false'),
        (NONE + "[[vm]]\nhypervisor = 'kvm'", 3, "[[vm]] 1: `name` is missing"),
        (NONE + VM + "'xen'", 5, '"xen" is not one of "acrn", "kvm"'),
        (NONE + VM + "[]", 5, "[[vm]] 1: hypervisor: the list is empty; name at least one of kvm"),
        (NONE + VM.replace("'a'", "'host'") + "'kvm'", 4, "\"host\" is the host's name"),
        (NONE + (VM + "'kvm'\n") * 2, 7, "[[vm]] 2: name: \"a\" is another's name"),
        (NONE + VM + "'kvm'\nlinux = '1'", 6, '[[vm]] 1: linux: "1" is no version of Linux'),
        # not told apart by what a text or an inline table looks like
        ("title = ''\ntells = \"\"\"\n[host]\nmode = 1\n\"\"\"\n[[event]]\nlock = 'x'", 7, "[[event]] 1: lock"),
        ("title = ''\nevent = [\n {lock = 'host', number = 'x'}]", 2, "[[event]] 1: number"),
        ("title = ''\r\n[[event]]\r\nlock = 'x'", 3, "[[event]] 1: lock"),
        ("title = '' # [host]\n[ host ]\n'linux' = 'new'\n[[event]]\nlock='host'", 3, "[host]: linux"),
        # what cannot be
        (EVENT + "lock = 'host'\nemulated = true", 4, "only a guest's code is run by KVM's instruction emulator"),
        (EVENT + "lock = 'host'\nbits = 16", 4, "no program or kernel of a Linux host runs in 16-bit real mode"),
        (EVENT + "lock = 'host'\nasks = true\nwhere = 'kernel'", 4, "alignment checks are for programs"),
        (NONE.replace("event = []", "") + VM + "'vmware-2020'\n[[event]]\nlock = 'a'\nemulated = true", 8,
         "only KVM's instruction emulator is known here, and this guest runs in VMware"),
        (NONE + "[host]\nvendor = 'amd'\nprocessor = ['#DB', '#AC']", 5, "no AMD processor has"),
        (NONE + "[host]\nlinux = '6.12'\n" + VM + "'kvm-2020'", 7, "was never released; give the host linux = \"5.7\""),
        (NONE + VM + "'tdx'", 5, "KVM runs TDX guests from Linux 6.16 on"),
        (NONE + "[host]\nvendor = 'amd'\n" + VM + "'acrn'", 7, "ACRN runs on Intel's processors only"),
        (NONE + VM + "'kvm'\nshown = ['#AC']", 6, 'only ACRN shows a guest "#AC"'),
        (NONE + VM + "'kvm'\nshown = ['#DB']", 6, "the host's processor has no \"#DB\""),
        (NONE + VM + "'kvm'\nbus_lock_ratelimit = 5", 6, 'must detect bus locks ("#DB")'),
        (NONE + "[host]\nprocessor = ['#DB']\nlinux = '5.11'\n" + VM + "'kvm'\nbus_lock_ratelimit = 5", 9,
         "from Linux 5.12 on"),
        (NONE + "[host]\nprocessor = ['#DB']\nlinux = '5.12'\n" + VM + "'kvm'\nshown = ['#DB']", 9,
         'KVM shows guests "#DB" from Linux 5.13 on'),
        (EVENT + "lock = 'host'\ncpu = 'sibling'\n[host]\nthreads = 1", 4, "no CPU of this host has a sibling"),
    ],
)  # fmt: skip
def test_mistakes(tmp_path: Path, text: str, line: int, said: str) -> None:
    """Each names the file, the line, the key, and what may be there."""
    path = tmp_path / "x.toml"
    path.write_text(text, newline="")
    with pytest.raises(SplitlockError) as caught:
        load(str(path))
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "host",
    [
        "vendor = 'amd'",
        "vendor = 'amd'\nprocessor = []",
        "linux = '5.13'\nmode = 'ratelimit:10'",
        "mode = 'ratelimit:1001'",
        "mode = ''",
        "mode = 'no such mode'",
    ],
)
def test_what_the_kernel_makes_something_of(tmp_path: Path, host: str) -> None:
    """None of these is a mistake of the scenario."""
    path = tmp_path / "x.toml"
    path.write_text(f"{EVENT}lock = 'host'\n[host]\n{host}\n")
    report = run(load(str(path)), "x", lambda name: b"")
    assert len(report.events) == 2
