"""`splitlock status`: this machine, and other machines' files: Debian's, a Fedora-like one's, an sosreport, nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jsonschema
import msgspec
import pytest
from modules.debian import unpacked

from splitlock.report.status import Report
from splitlock.report.status_text import render

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "status.schema.json").read_text())
SPLITLOCK = [sys.executable, "-m", "splitlock", "status"]
ICE_LAKE = (
    "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 106\n"
    "model name\t: Xeon\nstepping\t: 6\nflags\t\t: fpu vme de{flags}\n\nprocessor\t: 1\nvendor_id\t: GenuineIntel\n"
)
BOOT = "[    0.000000] Linux version 6.12.9-200.fc41.x86_64 (mockbuild) #1 SMP\n"
WARN = (
    "[    0.000000] x86/split lock detection: #AC: crashing the kernel on kernel split_locks and warning on user-space "
    "split_locks\n"
)
TRAP = "[ 1180.886150] x86/split lock detection: #AC: {who} took a split_lock trap at address: 0x3ff2624d\n"


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SPLITLOCK, *map(str, words)], capture_output=True, text=True, timeout=120, check=False)


def report(*words: object, status: int = 0) -> dict[str, Any]:
    done = run(*words, "--format", "json")
    assert (done.returncode, done.stderr) == (status, "")
    found: dict[str, Any] = json.loads(done.stdout)
    jsonschema.validate(found, SCHEMA)
    for line in render(Report.from_json(done.stdout)).splitlines():
        assert len(line) <= 80 or len(line.split()) == 1, line  # one that no blank breaks, a path, on a line of its own
    return found


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_schema() -> None:
    assert msgspec.json.schema(Report) == SCHEMA, "make schema"


def test_here() -> None:
    """This machine, by its own kernel's and processor's word."""
    found = report("--no-scan", status=run("--no-scan", "-q").returncode)
    flags = Path("/proc/cpuinfo").read_text().split("flags", 1)[1].splitlines()[0].split()
    assert found["kernel"]["release"] == os.uname().release
    assert found["processor"]["count"] == os.sysconf("SC_NPROCESSORS_ONLN")
    assert (found["processor"]["hypervisor"] is not None) == ("hypervisor" in flags)
    for name in ("split_lock", "bus_lock"):
        if f"{name}_detect" in flags:
            assert found["processor"][name]["supported"] == "yes"
        if found["processor"][name]["used"]["known"] == "yes":
            assert found["kernel"]["mode"] != "unknown"
    assert found["scanned"] is None
    modes = found["judgement"]["modes"]
    assert [mode["mode"] for mode in modes] == ["off", "warn", "fatal", "ratelimit:N"]
    assert sum(mode["now"] for mode in modes) <= 1


_CPUID = """
#include <cpuid.h>
#include <stdio.h>
int main(void) {
    unsigned a, b, c, d;
    __cpuid_count(7, 0, a, b, c, d);
    printf("%u %u %u %u", a, b, c, d);
}
"""


def test_cpuid_is_what_a_compiler_makes_of_it(tmp_path: Path) -> None:
    """Leaf 7. A kernel leaves out of /proc/cpuinfo what it does not trust (RDSEED on Zen 5): it alone is no oracle."""
    from splitlock.host import cpuid

    (tmp_path / "cpuid.c").write_text(_CPUID)
    subprocess.run(["gcc", "-O1", "-o", tmp_path / "cpuid", tmp_path / "cpuid.c"], check=True)
    said = subprocess.run([tmp_path / "cpuid"], capture_output=True, text=True, check=True).stdout
    leaf = cpuid.leaf7()
    assert leaf == tuple(map(int, said.split()))
    flags = Path("/proc/cpuinfo").read_text().split("flags", 1)[1].splitlines()[0].split()
    for flag, register, bit in (("bmi1", 1, 3), ("avx2", 1, 5), ("bmi2", 1, 8), ("vaes", 2, 9), ("rdpid", 2, 22)):
        assert leaf[register] >> bit & 1 or flag not in flags, flag


def test_debian() -> None:
    """An unpacked image: no /proc, real modules."""
    found = report("--root", unpacked("amd64"), status=2)  # no log: what was logged cannot be told
    names = {module["name"]: module for module in found["modules"]}
    assert found["scanned"] > 4000
    assert found["unscanned"] == []
    assert found["kernel"]["mode"] == "unknown"
    assert found["kernel"]["installed"] == [path.name for path in (unpacked("amd64") / "lib/modules").iterdir()]
    assert set(names) == {"kvm_intel", "kvm_amd"}
    assert (names["kvm_intel"]["aware"], names["kvm_intel"]["loaded"], names["kvm_intel"]["verdict"]) == (
        True,
        "unknown",
        "allow",
    )
    assert "VMRUN" in names["kvm_amd"]["evidence"]


@pytest.fixture
def fedora(tmp_path: Path) -> Path:
    """A running host as a container sees it: /lib is a link to usr/lib, by an absolute path; modules are .ko.xz."""
    root = tmp_path / "host"
    (tree,) = (unpacked("xz") / "lib" / "modules").iterdir()
    (root / "usr" / "lib" / "modules").mkdir(parents=True)
    (root / "usr" / "lib" / "modules" / tree.name).symlink_to(tree)
    (root / "lib").symlink_to("/usr/lib")
    assert list(tree.rglob("kvm-intel.ko.xz"))
    # the kernel's directory itself has to be below the root: a link out of it is followed nowhere
    (root / "usr" / "lib" / "modules" / tree.name).unlink()
    subprocess.run(["cp", "-r", tree, root / "usr/lib/modules/"], check=True)
    boot = BOOT.replace("6.12.9-200.fc41.x86_64", tree.name)  # a log of another kernel's boot would not count
    return write(
        root,
        {
            "proc/cpuinfo": ICE_LAKE.format(flags=" split_lock_detect"),
            "proc/sys/kernel/osrelease": f"{tree.name}\n",
            "proc/sys/kernel/split_lock_mitigate": "0\n",
            "proc/cmdline": "root=/dev/sda1 split_lock_detect=off split_lock_detect=warn quiet\n",
            "proc/modules": "kvm_intel 430080 4 - Live 0x0\nkvm 1396736 1 kvm_intel, Live 0x0\nvmmon 1 0 - Live 0x0\n",
            "etc/hostname": "web1\n",
            "boot/loader/entries/1.conf": "title x\noptions root=/dev/sda1 split_lock_detect=fatal\n",
            "etc/sysctl.d/90-sld.conf": "# no\nkernel.split_lock_mitigate = 0\n",
            "var/log/messages": boot + WARN + TRAP.format(who="old/1") + boot + WARN
            + TRAP.format(who="CPU 0/KVM/10167") * 2 + TRAP.format(who="steam/5")
            + "split_lock_warn: 35 callbacks suppressed\n",
            "proc/77/comm": "qemu-system-x86\n",
            "proc/77/status": "Name:\tqemu-system-x86\nTgid:\t77\n",
            "proc/77/cmdline": "/usr/bin/qemu-system-x86_64\0-name\0guest=win10,debug-threads=on\0",
            "proc/77/cgroup": "0::/machine.slice/machine-qemu\\x2d1\\x2dwin10.scope\n",
        },
    )  # fmt: skip


def test_fedora(fedora: Path) -> None:
    found = report("--root", fedora, status=1)
    assert found["machine"] == "web1"
    assert (found["processor"]["split_lock"]["supported"], found["processor"]["count"]) == ("yes", 2)
    assert (found["kernel"]["mode"], found["kernel"]["parameter"], found["kernel"]["mitigate"]) == ("warn", "warn", 0)
    settings = [(one["where"], one["text"]) for one in found["kernel"]["settings"] if one["where"] != "proc/cmdline"]
    assert settings == [
        ("boot/loader/entries/1.conf", "split_lock_detect=fatal"),
        ("etc/sysctl.d/90-sld.conf", "kernel.split_lock_mitigate = 0"),
    ]
    assert (found["log"]["source"], found["log"]["lines"], found["log"]["suppressed"]) == ("var/log/messages", 3, 35)
    assert [(task["comm"], task["lines"], task["guest"]) for task in found["log"]["tasks"]] == [
        ("CPU 0/KVM", 2, True), ("steam", 1, False),
    ]  # fmt: skip
    modules = {module["name"]: module for module in found["modules"]}
    assert (modules["kvm_intel"]["loaded"], modules["kvm_intel"]["aware"]) == ("yes", True)
    assert (modules["kvm_amd"]["loaded"], modules["vmmon"]["path"]) == ("no", None)
    assert [(vmm["pid"], vmm["name"], vmm["vm"]) for vmm in found["vmms"]] == [(77, "QEMU", "win10")]
    warn, fatal = found["judgement"]["modes"][1:3]
    assert warn["now"]
    by = {effect["where"] or effect["who"]: effect for effect in warn["effects"]}
    fates = {who: effect["fate"] for who, effect in by.items()}
    assert fates == {"program": "goes-on", "kernel": "oops", "kvm_intel": "goes-on", "vmmon": "not-known"}
    assert "split_lock_mitigate=0" in by["program"]["what"]
    assert sorted(effect["fate"] for effect in fatal["effects"]) == ["killed", "killed", "not-known", "oops"]
    assert (by["program"]["names"], by["kvm_intel"]["names"]) == (["steam"], ["win10"])
    assert any(check.startswith("vmmon: what it makes of a guest's #AC is not known") for check in found["checks"])


def test_sosreport(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/cpuinfo": ICE_LAKE.format(flags=" hypervisor"),
            "sos_commands/kernel/dmesg": BOOT
            + "[    0.1] Hypervisor detected: VMware\n[    0.1] Command line: ro quiet\n",
            "sos_commands/kernel/uname_-a": "Linux db2 5.14.0-162.6.1.el9_1.x86_64 #1 SMP x86_64 GNU/Linux\n",
            "sos_commands/kernel/lsmod": "Module                  Size  Used by\nvboxdrv 1 0\n",
            "sos_commands/kernel/sysctl_-a": "kernel.split_lock_mitigate = 1\n",
            "hostname": "db2\n",
            "ps": "USER PID %CPU %MEM VSZ RSS TTY STAT START TIME COMMAND\n"
            "qemu 4185 9.1 2.0 1 2 ? Sl 10:00 0:01 /usr/libexec/qemu-kvm -name guest=mail,x=y -m 4096\n",
        },
    )
    found = report("--root", root, status=0)
    assert (found["machine"], found["processor"]["hypervisor"]) == ("db2", "VMware")
    assert (found["kernel"]["release"], found["kernel"]["mitigate"]) == ("6.12.9-200.fc41.x86_64", 1)
    assert found["kernel"]["mode"] in ("off", "unknown")
    assert [(vmm["pid"], vmm["vm"]) for vmm in found["vmms"]] == [(4185, "mail")]
    assert [(module["name"], module["loaded"]) for module in found["modules"]] == [("vboxdrv", "yes")]


def test_nothing_there(tmp_path: Path) -> None:
    """No modules, no log, no processor: nothing is made up."""
    found = report("--root", tmp_path, status=2)
    assert (found["scanned"], found["modules"], found["vmms"], found["log"]["source"]) == (0, [], None, None)
    assert {found["processor"][name]["supported"] for name in ("split_lock", "bus_lock")} == {"unknown"}
    assert found["kernel"]["mode"] == "unknown"
    assert not any(mode["now"] for mode in found["judgement"]["modes"])


@pytest.mark.parametrize(
    ("line", "mode", "rate"),
    [
        ("warning about user-space split_locks", "warn", None), ("disabled", "off", None),
        ("#DB: sending SIGBUS on user-space bus_locks", "fatal", None),
        ("#DB: setting system wide bus lock rate limit to 10/sec", "ratelimit", 10),
    ],
)  # fmt: skip
def test_what_the_kernel_said_counts(tmp_path: Path, line: str, mode: str, rate: int | None) -> None:
    """More than the command line."""
    root = write(
        tmp_path,
        {"dmesg": f"{BOOT}[ 0.0] x86/split lock detection: {line}\n", "proc/cmdline": "split_lock_detect=off\n"},
    )
    silent = mode == "fatal"  # by #DB: programs are killed, and no line says so
    found = report("--root", root, status=2 if silent else 0)
    assert (found["kernel"]["mode"], found["kernel"]["rate"]) == (mode, rate)


@pytest.mark.parametrize(
    ("release", "parameter", "mode", "fates"),
    [
        ("4.19.0-1", "fatal", "off", ["nothing", "nothing", "nothing"]),
        ("5.10.0-46", "ratelimit:9", "warn", ["goes-on", "killed", "goes-on"]),
        ("6.1.0-56", "warn", "warn", ["slowed", "killed", "nothing"]),
    ],
)
def test_what_a_kernel_knows(tmp_path: Path, release: str, parameter: str, mode: str, fates: list[str]) -> None:
    """The same processor and words, by version: a program in warn, fatal and ratelimit."""
    shown = " split_lock_detect" if release != "4.19.0-1" else ""
    root = write(
        tmp_path,
        {
            "proc/cpuinfo": ICE_LAKE.format(flags=shown),
            "proc/sys/kernel/osrelease": f"{release}\n",
            "proc/cmdline": f"split_lock_detect={parameter}\n",
        },
    )
    found = report("--root", root, status=0 if not shown else 2)
    assert found["kernel"]["mode"] == mode
    assert [mode["effects"][0]["fate"] for mode in found["judgement"]["modes"][1:]] == fates


def test_errors() -> None:
    for words, said in (
        (["--root", "/none"], "--root /none: no such directory"), (["--measure", "501", "--yes"], "1 to 500"),
        (["--measure", "5"], "not without consent"), (["--measure", "--root", "/tmp"], "leave out --root"),
        (["--yes"], "goes with --measure"), (["--measure", "x"], "--measure"),
    ):  # fmt: skip
        done = subprocess.run(
            [*SPLITLOCK, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert said in done.stderr
    assert run("-o", "/none/x", "--no-scan").returncode == 2


def test_names_forge_no_line(tmp_path: Path) -> None:
    """Host, kernel, virtual machine, settings file: anybody may have named them."""
    forged = "x\nlog         no split or bus lock logged since boot\nguard       up\n"
    write(
        tmp_path,
        {
            "proc/cpuinfo": ICE_LAKE.format(flags=" split_lock_detect"),
            "proc/sys/kernel/hostname": forged,
            "proc/sys/kernel/osrelease": f"6.8.0{forged}",
            "proc/cmdline": "ro",
            "proc/77/status": "Tgid:\t77\n",
            "proc/77/comm": "qemu-kvm\n",
            "proc/77/cmdline": f"qemu-kvm\0-name\0{forged}\0",
            "proc/77/cgroup": "0::/\n",
            f"etc/sysctl.d/{forged.replace('/', '')}.conf": "kernel.split_lock_mitigate = 0\n",
        },
    )
    text = run("--root", tmp_path).stdout
    assert text.count("\\nguard") >= 4
    assert [line for line in text.splitlines() if line.startswith(("log ", "guard"))] == [
        line for line in text.splitlines() if line.startswith(("log         not read", "guard       not known"))
    ]


def test_errors_drive_no_terminal(tmp_path: Path) -> None:
    """One line, whatever is in a file's name."""
    name = tmp_path / "a\x1b]0;owned\x07\nsplitlock: all is well"
    done = run("--root", name)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr[:-1].isprintable()
    assert "\\x1b]0;owned\\x07\\nsplitlock: all is well: no such directory" in done.stderr
    assert run("\x1b[2J\n").stderr[:-1].isprintable()


STRANGE = ["²", "٣", "1" * 5000, "9" * 20, "-1", "1_0", "", "a\0b", "\ud800", "\x1b[m", "..", "a/../b", "[", "\n\n"]
WHERE = {
    "proc/sys/kernel/split_lock_mitigate": "{}\n",
    "proc/sys/kernel/osrelease": "{}\n",
    "proc/sys/kernel/hostname": "{}\n",
    "proc/version": "Linux version {} (x) y\n",
    "proc/cmdline": "ro split_lock_detect=ratelimit:{}\n",
    "proc/modules": "{} 1 0 - Live 0x0\n",
    "proc/7/status": "Tgid:\t{}\n",
    "proc/bootconfig": "kernel.{} = {}\n",
    "ps": "USER PID\nroot {} 0 0 0 0 ? S 1 0:0 kvm -name {}\n",
    "var/log/kern.log": "[{}] x86/split lock detection: #AC: a/{} took a split_lock trap at address: 0x{}\n",
    "etc/sysctl.d/a.conf": "kernel.split_lock_mitigate = {}\n",
    "boot/grub/grub.cfg": 'set default="{}"\nmenuentry "{}" {{\n linux /vmlinuz {}\n}}\n',
    "boot/loader/entries/a.conf": "version {}\noptions ro {}\n",
    "etc/default/grub": "GRUB_CMDLINE_LINUX={}\n",
}


@pytest.mark.parametrize("strange", STRANGE)
def test_nothing_written_there_ends_it(tmp_path: Path, strange: str) -> None:
    """The same in every file that is read, and as processor, family, model, stepping: a report, or one line."""
    from splitlock.host.root import Root
    from splitlock.host.status import status
    from splitlock.report.status import Guard

    keys = ("processor", "vendor_id", "cpu family", "model", "model name", "stepping", "flags")
    cpuinfo = "".join(f"{key}\t: {{}}\n" for key in keys)
    known = {"proc/cpuinfo": ICE_LAKE.format(flags=" split_lock_detect"), "proc/sys/kernel/osrelease": "6.8.0\n"}
    for number, more in enumerate(({"proc/cpuinfo": cpuinfo}, known)):
        root = tmp_path / str(number)
        files = {**WHERE, "proc/7/comm": "kvm\n", "proc/7/cgroup": "0::/\n", **more}
        for file, text in files.items():
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_text(text.replace("{}", strange), errors="surrogatepass")
        if strange.strip("./") and "/" not in strange and "\0" not in strange and len(strange) < 256:
            for place in ("proc", "etc/sysctl.d", "lib/modules", "boot/loader/entries"):
                name = place.encode() + b"/" + strange.encode(errors="surrogatepass")
                (root / os.fsdecode(name)).mkdir(parents=True)
        made = status(Root(str(root)), Guard(up="unknown", why=""))
        jsonschema.validate(json.loads(made.to_json()), SCHEMA)
        assert Report.from_json(made.to_json()).processor.count in (None, 1, 2)
        render(made, verbose=True)


def test_names_that_are_no_text(tmp_path: Path) -> None:
    """Every byte but those that no name has: as JSON and as text, escapes alike."""
    root = write(tmp_path / "a", {"proc/cmdline": "ro\n"})
    for byte in sorted(set(range(1, 256)) - {ord("/")}):
        name = os.fsencode(root) + b"/etc/sysctl.d/" + bytes([byte]) + b"x.conf"
        os.makedirs(os.path.dirname(name), exist_ok=True)
        with open(name, "w") as file:
            file.write("kernel.split_lock_mitigate = 0\n")
    found = report("--root", root, status=2)
    assert len(found["kernel"]["settings"]) >= 254
    assert any(setting["where"] == "etc/sysctl.d/\\udcffx.conf" for setting in found["kernel"]["settings"])
    assert "etc/sysctl.d/\\udcffx.conf" in run("--root", root).stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="to be somebody else takes root")
@pytest.mark.parametrize(
    "hidden", ["proc/modules", "lib/modules", "lib/modules/6.8.0/kernel", "lib/modules/6.8.0/kernel/a.ko"]
)
def test_what_cannot_be_read_is_not_empty(hidden: str) -> None:
    """Modules that are not seen are not none: as somebody who may not read them."""
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    files = {
        "proc/cpuinfo": ICE_LAKE.format(flags=" split_lock_detect"),
        "proc/sys/kernel/osrelease": "6.8.0\n",
        "proc/cmdline": "ro\n",
        "proc/modules": "vmmon 1 0 - Live 0x0\n",
        "lib/modules/6.8.0/kernel/a.ko": "\x7fELF",
    }
    with TemporaryDirectory() as place:  # pytest's own are for their owner alone
        root = write(Path(place), files)
        root.chmod(0o755)
        (root / hidden).chmod(0)
        for verb in ("status", "advise"):
            words = [*nobody, *SPLITLOCK[:-1], verb, "--root", root]
            done = subprocess.run([*words, "--format", "json"], capture_output=True, text=True, check=False, cwd="/")
            assert (done.returncode, done.stderr) == (2, "")
            unscanned = json.loads(done.stdout)["unscanned"]
            assert any(line.startswith(f"/{hidden}: ") for line in unscanned), unscanned
            done = subprocess.run(words, capture_output=True, text=True, check=False, cwd="/")
            assert "none are there" not in done.stdout
            assert "could not be looked into" in done.stdout, done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="to be somebody else takes root")
def test_remedies_are_this_command_s() -> None:
    """No log file can be named here, nor in advise."""
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    for verb in (["status", "--no-scan"], ["advise"]):
        words = [*nobody, *SPLITLOCK[:-1], *verb]
        assert (
            "name a log file" not in subprocess.run(words, capture_output=True, text=True, check=False, cwd="/").stdout
        )


def test_what_is_too_large_has_a_remedy(tmp_path: Path) -> None:
    write(tmp_path, {"proc/cpuinfo": ""})
    os.truncate(tmp_path / "proc/cpuinfo", 10 << 30)
    done = run("--root", tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"proc/cpuinfo: larger than 64 MiB: not what this file should be; move it out of {tmp_path}" in done.stderr
