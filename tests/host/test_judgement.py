"""The judgement of `status` and `advise`: against what real kernels did (tests/model/data), and on made-up machines."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, get_args

import msgspec
import pytest

from splitlock.commands import main
from splitlock.host.advise import advise, guest
from splitlock.host.root import Root
from splitlock.host.status import status
from splitlock.report.advise import Report
from splitlock.report.advise_text import render
from splitlock.report.guest import SCHEMA as GUEST
from splitlock.report.guest import Report as Watched
from splitlock.report.guest import Site
from splitlock.report.guest import Watched as Means
from splitlock.report.judgement import Fate, Mode, Verdict
from splitlock.report.status import Guard, Module
from splitlock.report.status import Report as Status

DATA = sorted((Path(__file__).parents[1] / "model" / "data").glob("*.json"))
INTEL = "vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\nmodel name\t: Intel(R) Xeon(R) Platinum 8480+\n"
AMD = "vendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 68\nmodel name\t: AMD Ryzen 9 9950X\n"
NO_GUARD = Guard(up="unknown", why="")

KVM = Module(
    name="kvm_intel", path="/lib/kvm-intel.ko", loaded="yes", aware=True, marked=False, intree=True,
    evidence=["VMLAUNCH", "VMXON"], verdict="allow",
)  # fmt: skip
BLIND = Module(
    name="hyp", path="/lib/hyp.ko", loaded="no", aware=False, marked=False, intree=False,
    evidence=["VMLAUNCH"], verdict="refuse",
)  # fmt: skip
SVM = Module(
    name="kvm_amd", path="/lib/kvm-amd.ko", loaded="yes", aware=False, marked=False, intree=True, evidence=["VMRUN"],
    verdict="allow",
)  # fmt: skip
LEFT = Module(
    name="vmmon", path=None, loaded="yes", aware=False, marked=False, intree=False, evidence=["its name"],
    verdict="unknown",
)  # fmt: skip


def machine(
    place: Path, flags: str = "split_lock_detect", *, cpu: str = INTEL, release: str = "6.8.0", words: str = "",
    mitigate: str = "",
) -> Status:  # fmt: skip
    """The report on files below `place`."""
    for name, text in {
        "proc/cpuinfo": f"processor\t: 0\n{cpu}stepping\t: 6\nflags\t\t: fpu vmx {flags}\n\n",
        "proc/sys/kernel/osrelease": release,
        "proc/cmdline": f"root=/dev/sda1 {words}\n",
        **({"proc/sys/kernel/split_lock_mitigate": mitigate} if mitigate else {}),
    }.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return status(Root(str(place)), NO_GUARD, scan=False)


def modes(found: Report | Status) -> dict[str, Mode]:
    return {mode.mode.partition(":")[0]: mode for mode in found.judgement.modes}


def fate(mode: Mode, who: str, where: str = "") -> str:
    (one,) = [effect for effect in mode.effects if effect.who == who and where in effect.where]
    return one.fate


def measured() -> list[Any]:
    """Every boot of every real kernel that was measured."""
    found = []
    for path in DATA:
        matrix = json.loads(path.read_bytes())
        for number, boot in enumerate(matrix["boots"]):
            cells = {cell["kind"]: cell for cell in matrix["cells"] if cell.get("boot") == number}
            if "user" in cells and "module" in cells and "repeat" in cells:
                name = f"{path.stem}-{boot['processor']}-{boot['mode']}"
                found.append(pytest.param(boot, cells, id=name))
    return found


@pytest.mark.parametrize(("boot", "cells"), measured())
def test_real_kernels(tmp_path: Path, boot: dict[str, Any], cells: dict[str, Any]) -> None:
    """What is said of a mode is what a real kernel did in it: a program's split lock, a module's, and many of them."""
    flags = [name for name in ("split_lock_detect", "bus_lock_detect") if boot[name]]
    mode, limited = boot["mode"].partition(":")[0], boot["mode"].startswith("ratelimit")
    value = "warn" if mode == "mitigate=0" else boot["mode"]
    mitigate = "" if boot["split_lock_mitigate"] is None else str(int(mode != "mitigate=0"))
    if boot["processor"] != "db" and not boot["split_lock_detect"]:
        flags.append("")  # 5.12 and older show it only while they use it
    made = machine(
        tmp_path, " ".join(flags), release=boot["kernel"], words=f"split_lock_detect={value}", mitigate=mitigate
    )
    user, module, repeat = cells["user"], cells["module"], cells["repeat"]
    waits = median(repeat["nanoseconds"]) if repeat["nanoseconds"] else 0  # one alone may be a busy host's
    program = (
        "killed" if user["outcome"] == "sigbus" else "nothing" if not user["warnings"] else
        "limited" if "#DB" in user["log"][0] and limited else "slowed" if waits >= 10e6 else "goes-on"
    )  # fmt: skip
    kernel = "oops" if module["outcome"] in ("oops", "panic") else "nothing"
    said = modes(made)["warn" if mode == "mitigate=0" else mode]
    assert (fate(said, "program"), fate(said, "kernel")) == (program, kernel)
    line = next((line for line in boot["log"] if line.startswith("x86/split lock detection: ")), "")
    for words, name in {"disabled": "off", "warning": "warn", "SIGBUS": "fatal", "rate limit": "ratelimit"}.items():
        if words in line:
            assert made.kernel.mode == name


def test_status_and_advise_are_one(tmp_path: Path) -> None:
    found = machine(tmp_path)
    assert advise(found, [], [], "here").judgement == found.judgement


def test_kvm(tmp_path: Path) -> None:
    told = modes(advise(machine(tmp_path), [KVM, SVM], [], "here"))
    assert [fate(told[mode], "guest", "kvm_intel") for mode in told] == ["nothing", "slowed", "killed", "nothing"]
    assert all(effect.where != "kvm_amd" for mode in told.values() for effect in mode.effects)


def test_amd(tmp_path: Path) -> None:
    """6.13.0's KVM hands the host's #DB to guests; which stable release it is not every name tells."""
    right = {"6.13.0": "killed", "6.14.0": "nothing", "6.13.7": "nothing", "6.13.0-9-amd64": "not-known"}
    for release, guests in right.items():
        told = modes(advise(machine(tmp_path, "bus_lock_detect", cpu=AMD, release=release), [SVM], [], "here"))
        assert fate(told["warn"], "guest") == guests, release
        assert fate(told["off"], "guest") == "nothing"


def test_hypervisors_that_nobody_knows(tmp_path: Path) -> None:
    """Never a green light; it is said how to know."""
    for module in (LEFT, BLIND):
        report = advise(machine(tmp_path), [module], [], "here")
        assert modes(report)["warn"].verdict == "not-known"
        assert any("splitlock probe" in line for line in report.judgement.first)
        assert modes(report)["off"].verdict == "nothing"


@pytest.mark.parametrize("kind", ["VMXON", "VMLAUNCH", "VMRESUME"])
@pytest.mark.parametrize("loaded", ["yes", "no"])
def test_a_hypervisor_whose_other_half_is_elsewhere(tmp_path: Path, kind: str, loaded: str) -> None:
    """Has a module one maker's instructions alone, a program may bring the other's: on either maker it is named."""
    module = msgspec.structs.replace(BLIND, evidence=[kind], loaded=loaded)
    for cpu, flags in ((INTEL, "split_lock_detect"), (AMD, "bus_lock_detect")):
        found = advise(machine(tmp_path, flags, cpu=cpu, release="6.14.0"), [module, SVM], [], "here")
        assert any(effect.where == "hyp" and effect.fate == "not-known" for effect in modes(found)["warn"].effects), cpu


def test_a_sysctl_that_is_not_seen(tmp_path: Path) -> None:
    """Where a file sets it to 0 and nobody sees what it is now, no delay is promised, and none is ruled out."""
    assert fate(modes(machine(tmp_path))["warn"], "program") == "slowed"
    (tmp_path / "etc/sysctl.d").mkdir(parents=True)
    (tmp_path / "etc/sysctl.d/90.conf").write_text("kernel.split_lock_mitigate = 0\n")
    said = modes(machine(tmp_path))["warn"]
    assert (fate(said, "program"), said.verdict) == ("not-known", "slows")
    assert fate(modes(machine(tmp_path, mitigate="1\n"))["warn"], "program") == "slowed"
    assert fate(modes(machine(tmp_path, mitigate="0\n"))["warn"], "program") == "goes-on"


def test_a_processor_that_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    found = status(Root(str(tmp_path)), NO_GUARD, scan=False)
    assert {fate(mode, "program") for mode in found.judgement.modes} == {"nothing", "not-known"}  # off alone is known
    assert found.judgement.recommended == ""
    assert found.vmms is None


def site(where: str, comm: str | None, image: str | None) -> Site:
    return Site(
        where=where, mode=64, hits=3, address="0x1", instruction="lock inc", operand_size=4,  # type: ignore[arg-type]
        operand_address="0x3f", image=image, offset=None, function=None, source=None, comm=comm, pid=1,
    )  # fmt: skip


def watched(
    *sites: Site, more: int = 0, kernel: str | None = "6.1", end: str = "power off", unwatched: tuple[str, ...] = ()
) -> Watched:
    means = Means(
        emulator="QEMU 7.2", api=1, registers=True, cpus=2, sites=9, kernel=kernel, processes=True, seconds=1.0, end=end
    )
    return Watched(
        schema=GUEST, guest="a", hits=3 * len(sites) + more, unnamed=more, sites=list(sites), watched=means,
        ready=None if kernel is None else not sites, unwatched=list(unwatched),
    )  # fmt: skip


def test_guest_reports(tmp_path: Path) -> None:
    clean = guest("clean.json", watched())
    told = modes(advise(machine(tmp_path), [KVM, LEFT], [clean], "here"))
    assert told["warn"].verdict == "slows"  # the host's own programs alone
    dirty = guest("vm.json", watched(site("user", "demo", "/bin/demo"), site("firmware", None, "CpuMpPei")))
    assert dirty.takers == ["user demo", "firmware CpuMpPei"]
    report = advise(machine(tmp_path), [KVM], [clean, dirty], "here")
    (effect,) = [effect for effect in modes(report)["fatal"].effects if effect.who == "guest"]
    assert (effect.fate, effect.names) == ("killed", ["vm.json (user demo, firmware CpuMpPei)"])


#: Reports that do not say that a guest is clean, and what each must make somebody read.
UNCLEAN = {
    "hits that no site names": (watched(more=5), "5 split locks that no site names"),
    "it never ran": (watched(kernel=None, end="qemu: exit status 1"), "qemu: exit status 1"),
    "no Linux": (watched(kernel=None), "no Linux kernel was seen"),
    "it died": (watched(end="qemu: killed by signal 9"), "signal 9"),
    "it hung": (watched(end="livelock"), "livelock"),
    "not all was watched": (watched(unwatched=("something",)), "something"),
}


@pytest.mark.parametrize("why", UNCLEAN)
def test_guest_reports_that_are_not_clean(why: str, tmp_path: Path) -> None:
    """What a report does not rule out is judged as if there were none, also beside a clean one."""
    unclean = guest("vm.json", UNCLEAN[why][0])
    clean = guest("clean.json", watched())
    assert not clean.takers + clean.unwatched
    for guests in ([unclean], [clean, unclean]):
        report = advise(machine(tmp_path), [KVM, LEFT], guests, "here")
        told = modes(report)
        assert [told[mode].verdict for mode in ("off", "warn", "fatal")] == ["nothing", "not-known", "breaks"]
        assert fate(told["fatal"], "guest", "kvm_intel") == "killed"
        said = " ".join([*(name for one in told["fatal"].effects for name in one.names), *report.judgement.unknown])
        assert UNCLEAN[why][1] in said
        assert "no split locks seen" not in render(report).partition("guest vm.json")[2].partition("\n")[0]


RELEASES = ("4.19.0", "5.6.1", "5.7.1", "5.10.0-46-amd64", "5.13.0", "5.14.0", "5.14.0-503.el9.x86_64", "5.19.2",
            "6.1.0-56-amd64", "6.4.0", "6.12.117", "6.13.1", "7.1.0")  # fmt: skip
VALUES = ("", "off", "warn", "fatal", "ratelimit:50", "ratelimit:5000", '"off"')


@pytest.mark.parametrize("release", RELEASES)
def test_every_machine(tmp_path: Path, release: str) -> None:
    """Whatever the machine: what is recommended breaks nothing, and what is in effect is one of the modes."""
    flags = ("", "split_lock_detect", "bus_lock_detect", "split_lock_detect bus_lock_detect", "hypervisor")
    for one, cpu, value, modules in product(flags, (INTEL, AMD), VALUES, ([], [KVM], [LEFT], [SVM])):
        words = f"split_lock_detect={value}" if value else ""
        found = machine(tmp_path, one, cpu=cpu, release=release, words=words)
        report = advise(found, list(modules), [], "here")
        judged = report.judgement
        assert {effect.fate for mode in judged.modes for effect in mode.effects} <= set(get_args(Fate))
        assert {mode.verdict for mode in judged.modes} <= set(get_args(Verdict))
        assert not any(effect.fate != "nothing" for effect in modes(report)["off"].effects)
        assert sum(mode.now for mode in judged.modes) == (found.kernel.mode != "unknown")
        if judged.recommended:
            assert modes(report)[judged.recommended.partition(":")[0]].verdict != "breaks"
        if judged.split_locks.known == judged.bus_locks.known == "no":
            assert not judged.recommended
            assert {mode.verdict for mode in judged.modes} == {"nothing"}
        if cpu == AMD:
            assert judged.split_locks.known == "no"


# -- exit statuses -----------------------------------------------------------------------------------------------

_RUNS = {"proc/sys/kernel/osrelease": "6.8.0-60-generic\n"}
_CPU = {"proc/cpuinfo": f"processor\t: 0\n{INTEL}flags\t\t: fpu vmx split_lock_detect\n\n"}
_TOLD = {"proc/cmdline": "root=/dev/sda1 ro\n"}
_BROKEN = {"lib/modules/6.8.0-60-generic/kernel/vmx86.ko": "\x7fELFgarbage"}
#: Files, whether it is known what the mode in effect does, and what the reason must say of the mode.
EXITS: list[tuple[dict[str, str], int, str]] = [
    ({**_CPU, **_RUNS, **_TOLD}, 0, "the default"),  # no log at all: the mode is known
    ({**_CPU, **_RUNS}, 2, "proc/cmdline"),
    ({**_CPU}, 2, "no kernel is known to run"),
    ({**_CPU, **_RUNS, **_TOLD, **_BROKEN}, 2, "the default"),
    ({**_RUNS, **_TOLD}, 2, "whether this kernel can use"),
]


@pytest.mark.parametrize(("files", "right", "why"), EXITS)
def test_exit(files: dict[str, str], right: int, why: str, tmp_path: Path) -> None:
    """No 0 where it is not known which mode is in effect, or what it does; a mode's reason is the true one."""
    place = tmp_path / "root"
    for name, text in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    output = tmp_path / "advise.json"
    assert main(["advise", "--root", str(place), "--format", "json", "-o", str(output)]) == right
    told = json.loads(output.read_bytes())
    assert (told["mode"] == "unknown") == (why != "the default")
    found = status(Root(str(place)), NO_GUARD, scan=False).kernel
    assert why in found.why
    if files.keys() & _RUNS.keys():
        assert "not run" not in found.why


# -- what the kernel was told ------------------------------------------------------------------------------------

ICE_LAKE = "vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 106\nmodel name\t: Intel(R) Xeon(R) 8358\n"
_BOOT = (
    "[    0.000000] Linux version 5.10.0-28-amd64 (d@d) (gcc-10) #1 SMP Debian 5.10.209-2 (2024-01-31)\n"
    "[    0.000000] Command line: BOOT_IMAGE=/vmlinuz root=/dev/sda1 ro {}\n{}[ 3600.000000] eth0: link up\n"
)
_SAID = "[    0.000000] x86/split lock detection: "
_OFF = "split_lock_detect=off"
#: Linux 5.10 shows its flag only while it detects: /proc/cmdline, the log of the boot, and what it comes to.
#: split_lock_setup() of 5.10 says `disabled` where it has it, and was told `off`.
TOLD: list[tuple[str | None, str | None, str, str]] = [
    (None, _BOOT.format(_OFF, _SAID + "disabled\n"), "yes", "off"),
    (None, _BOOT.format(_OFF, ""), "yes", "off"),  # a log of some levels
    (None, "[    0.000000] Command line: ro split_lock_detect=off\n", "yes", "off"),
    (None, _SAID + "disabled\n", "yes", "off"),
    (None, None, "unknown", "unknown"),  # whether it was told so nobody knows
    ("ro split_lock_detect=off", None, "yes", "off"),
    ("ro", None, "no", "off"),  # it would show the flag
    (None, "[    0.000000] Command line: ro quiet\n", "no", "off"),
]


@pytest.mark.parametrize(("words", "log", "used", "mode"), TOLD)
def test_told_off(words: str | None, log: str | None, used: str, mode: str, tmp_path: Path) -> None:
    """A command line that is not there is none that says nothing; the log has it too."""
    files = {
        "proc/cpuinfo": f"processor\t: 0\n{ICE_LAKE}flags\t\t: fpu vmx\n\n",
        "proc/sys/kernel/osrelease": "5.10.0-28-amd64\n",
        **({"proc/cmdline": words + "\n"} if words is not None else {}),
        **({"dmesg": log} if log is not None else {}),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = status(Root(str(tmp_path)), NO_GUARD, scan=False)
    assert (found.processor.split_lock.used.known, found.kernel.mode) == (used, mode)
    assert bool(found.judgement.recommended) == (used == "yes")
    if _OFF in f"{words}{log}":
        assert [one.text for one in found.kernel.settings if one.counts == "yes"] == [_OFF]
        assert found.kernel.parameter == "off"


#: Nothing is armed on AMD before 6.13; DR6's first value was mended in 6.16, 6.6.97, 6.12.36 and 6.15.5
#: (5f465c148c61): kernel, flag of /proc/cpuinfo, and whether `fatal` may kill who takes another #DB.
FALSE = [
    ("5.12.9", "bus_lock_detect", False),  # it has no handle_bus_lock()
    ("5.15.100", "bus_lock_detect", True),
    ("6.1.0-25-amd64", "bus_lock_detect", True),
    ("6.6.50", "bus_lock_detect", True),
    ("6.6.97", "bus_lock_detect", False),
    ("6.8.0-60-generic", "bus_lock_detect", True),
    ("6.12.35", "bus_lock_detect", True),
    ("6.12.36", "bus_lock_detect", False),
    ("6.8.0-60-generic", "", False),
]


@pytest.mark.parametrize(("release", "flag", "may"), FALSE)
def test_false_signals(release: str, flag: str, may: bool, tmp_path: Path) -> None:
    """`fatal` where nothing is armed: no bus lock is found, and another #DB may be taken for one."""
    found = machine(tmp_path, flag, cpu=AMD, release=release, words="split_lock_detect=fatal")
    assert (found.kernel.mode, found.judgement.recommended) == ("off", "")
    fatal = modes(found)["fatal"]
    assert fate(fatal, "program") == "nothing"
    assert ("SIGBUS" in fatal.what) == may
    assert any("SIGBUS" in line for line in found.judgement.first) == may
    assert not any("SIGBUS" in modes(found)[mode].what for mode in ("off", "warn", "ratelimit"))
    built = tmp_path / f"boot/config-{release}"
    built.parent.mkdir()
    built.write_text("# CONFIG_CPU_SUP_INTEL is not set\n")
    bare = machine(tmp_path, flag, cpu=AMD, release=release, words="split_lock_detect=fatal")
    assert "SIGBUS" not in modes(bare)["fatal"].what


# -- whom the log would name -------------------------------------------------------------------------------------

_V = "[    0.000000] Linux version {} (x) (gcc) #1 SMP x\n"
_AC = _SAID + "#AC: crashing the kernel on kernel split_locks and {} on user-space split_locks\n"
_DB = _SAID + "#DB: {} on user-space bus_locks\n"
_WARNING, _KILLING = "warning", "sending SIGBUS"
#: Flags, mode, the line of the boot, and whether a whole log without a name says that no program takes any:
#: handle_bus_lock() kills without a line, show_signal() says `traps:`.
NAMED = [
    ("split_lock_detect", "warn", _AC.format(_WARNING), True),
    ("split_lock_detect", "fatal", _AC.format(_KILLING), True),
    ("bus_lock_detect", "warn", _DB.format(_WARNING), True),
    ("bus_lock_detect", "fatal", _DB.format(_KILLING), False),
    ("split_lock_detect", "off", _SAID + "disabled\n", False),
]


@pytest.mark.parametrize(("flags", "mode", "line", "named"), NAMED)
def test_programs_that_nobody_names(flags: str, mode: str, line: str, named: bool, tmp_path: Path) -> None:
    """Who kills without a word leaves open which programs take split locks."""
    (tmp_path / "dmesg").write_text(_V.format("6.8.0") + line + "[ 3600.000000] eth0: link up\n")
    found = machine(tmp_path, flags, words=f"split_lock_detect={mode}")
    assert (found.log.whole, found.kernel.mode) == (True, mode)
    unknown = [line for line in found.judgement.unknown if line.startswith("which of this host's programs")]
    assert bool(unknown) != named
    assert all("splitlock run" in line for line in unknown)


@pytest.mark.parametrize("value", ["0", "1"])
@pytest.mark.parametrize(("where", "text"), [
    ("proc/sys/debug/exception-trace", "{}\n"), ("sos_commands/kernel/sysctl_-a", "debug.exception-trace = {}\n"),
])  # fmt: skip
def test_killed_without_a_line(where: str, text: str, value: str, tmp_path: Path) -> None:
    """show_signal() says nothing where debug.exception-trace is 0."""
    (tmp_path / where).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / where).write_text(text.format(value))
    line = _AC.format(_KILLING)
    (tmp_path / "dmesg").write_text(_V.format("6.8.0") + line + "[ 3600.000000] eth0: link up\n")
    found = machine(tmp_path, words="split_lock_detect=fatal")
    assert any(line.startswith("which of this host's programs") for line in found.judgement.unknown) == (value == "0")


# -- reports that somebody edited --------------------------------------------------------------------------------


def _edited(report: dict[str, Any], **kernel: Any) -> dict[str, Any]:
    return {**report, "kernel": {**report["kernel"], **kernel}}


def test_edited_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What no machine can be is refused; what is judged is judged by its facts, not by the judgement in the file."""
    none = json.loads(machine(tmp_path / "none", "", cpu=AMD).to_json())
    plain = json.loads(machine(tmp_path / "plain").to_json())
    log = {**plain["log"], "source": "x"}
    refused = {
        "mode fatal": _edited(none, mode="fatal"),
        "mode warn": _edited(none, mode="warn"),
        "rate of -1": _edited(plain, mode="ratelimit", rate=-1),
        "rate of 5000": _edited(plain, mode="ratelimit", rate=5000),
        "rate of 10": _edited(plain, mode="warn", rate=10),
        "less than no lines": {**plain, "log": {**log, "lines": -1}},
        "more lines of its tasks": {
            **plain, "log": {**log, "tasks": [{"comm": "a", "exception": "#AC", "lines": 2, "guest": False}]},
        },
    }  # fmt: skip
    file = tmp_path / "status.json"
    for why, report in refused.items():
        file.write_text(json.dumps(report))
        assert main(["advise", "--status", str(file)]) == 2
        told = capsys.readouterr()
        assert why in told.err
        assert "anew" in told.err
        assert not told.out
    for report, right in ((none, 0), (plain, 0), (_edited(plain, mode="unknown"), 2)):
        file.write_text(json.dumps({**report, "judgement": {**report["judgement"], "modes": []}}))
        assert main(["advise", "--status", str(file)]) == right


#: The first lines of /proc/cpuinfo on other architectures, as their show_cpuinfo() writes them.
ELSEWHERE = {
    "s390x": "vendor_id       : IBM/S390\n# processors    : 2\nbogomips per cpu: 3033.00\nfacilities      : 0 1 2 3\n",
    "loongarch64": "system type\t\t: generic-loongson-machine\n\nprocessor\t\t: 0\nCPU Family\t\t: Loongson-64bit\n",
    "mips": "system type\t\t: MIPS Malta\nmachine\t\t\t: mti,malta\nprocessor\t\t: 0\ncpu model\t\t: MIPS 24Kc\n",
    "riscv64": "processor\t: 0\nhart\t\t: 2\nisa\t\t: rv64imafdc\nmmu\t\t: sv39\n",
    "ppc64le": "processor\t: 0\ncpu\t\t: POWER9, altivec supported\nclock\t\t: 2200MHz\n",
    "arm": "processor\t: 0\nmodel name\t: ARMv7 Processor rev 4\nFeatures\t: half thumb\nCPU implementer\t: 0x41\n",
    "parisc": "processor\t: 0\ncpu family\t: PA-RISC 2.0\ncpu\t\t: PA8700 (PCX-W2)\n",
    "ia64": "processor  : 0\nvendor     : GenuineIntel\narch       : IA-64\nfamily     : 31\n",
}


@pytest.mark.parametrize("arch", ELSEWHERE)
def test_other_architectures(arch: str, tmp_path: Path) -> None:
    """All of this is arch/x86: elsewhere nothing is detected, and that is known."""
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/cpuinfo").write_text(ELSEWHERE[arch])
    (tmp_path / "proc/sys/kernel/osrelease").write_text("6.12.6\n")
    found = status(Root(str(tmp_path)), NO_GUARD, scan=False)
    assert {found.processor.split_lock.used.known, found.processor.bus_lock.used.known} == {"no"}
    assert "no x86 processor" in found.kernel.why


@pytest.mark.parametrize("text", ["", "processor\t: 0\n", f"processor\t: 0\n{AMD}", "cpu MHz : 1\ncpu cores : 2\n"])
def test_x86_or_not_known(text: str, tmp_path: Path) -> None:
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/cpuinfo").write_text(text)
    (tmp_path / "proc/sys/kernel/osrelease").write_text("6.14.6\n")
    found = status(Root(str(tmp_path)), NO_GUARD, scan=False)
    assert found.processor.bus_lock.used.known == "unknown"
