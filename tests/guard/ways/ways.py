"""Runs inside a guest: tries every way to get a refused module in, one JSON line each.

    python3 ways.py [WAY...]      from /payload/ways, as root

A line says what was tried, what came of it (`loaded`: the modules that are in now, `armed`: those whose refused
instruction is really there, read from the live kernel) and what the tool said. The same run without a gate is the
control: what does not load there proves nothing. Needs only Python's own library.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path("/payload/ways")
BAD = HERE / "way_bad.ko"
RELEASE = os.uname().release
TREE = Path("/payload/lib/modules") / RELEASE
SECONDS = os.environ.get("WAY_SECONDS", "2")  # of a race
libc = ctypes.CDLL(None, use_errno=True)
DELETE_MODULE, NONBLOCK = 176, 0o4000


@dataclass
class Way:
    """One way in. `expect`: "refused", "clean" (a module without the instruction may load), else why it is let in."""

    name: str
    group: str
    title: str
    run: Callable[[], str]
    expect: str = "refused"
    kernel: str = ""  # what the kernel itself says to it, where it never loads


WAYS: list[Way] = []


def way(
    group: str, title: str, expect: str = "refused", kernel: str = ""
) -> Callable[[Callable[[], str]], Callable[[], str]]:
    """Register a way; its name is the function's."""

    def register(function: Callable[[], str]) -> Callable[[], str]:
        WAYS.append(Way(function.__name__.replace("_", "-"), group, title, function, expect, kernel))
        return function

    return register


def sh(script: str, timeout: float = 60) -> str:
    """Run a script: its exit status and what it said."""
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=timeout, check=False)
    words = " ".join((done.stdout + done.stderr).split())
    return f"{done.returncode} {words}".strip()[:300]


def loader(*words: str | Path) -> str:
    """Run loader.c."""
    done = subprocess.run([HERE / "loader", *words], capture_output=True, text=True, timeout=60, check=False)
    return (done.stdout + done.stderr).strip()[:300]


def scratch(path: Path = BAD, name: str = "way_bad.ko", directory: str | Path | None = None) -> Path:
    """A copy of a module in a directory of its own."""
    place = Path(tempfile.mkdtemp(dir=directory))
    shutil.copy(path, place / name)
    return place / name


# System calls

for _name, _title in {
    "finit": "finit_module of the file",
    "init": "init_module from memory",
    "init-mapped": "init_module from a mapping of the file",
    "init-twice": "init_module, 8 MB of zeros behind it",
    "memfd": "finit_module of a memfd",
    "memfd-sealed": "finit_module of a sealed memfd",
    "procfd": "reopened through /proc/self/fd",
    "opath": "an O_PATH descriptor, reopened",
    "passed": "a descriptor that another process opened and sent (SCM_RIGHTS)",
    "pidfd": "a descriptor taken from another process (pidfd_getfd)",
    "thread": "from a child called systemd-modules",
    "i386": "finit_module by the 32-bit system call table",
    "i386-init": "init_module by the 32-bit system call table",
}.items():
    WAYS.append(Way(_name, "system calls", _title, lambda name=_name: loader(name, BAD)))  # type: ignore[misc]
for _flags, _title in {
    1: "IGNORE_MODVERSIONS",
    2: "IGNORE_VERMAGIC",
    3: "IGNORE_MODVERSIONS and _VERMAGIC",
}.items():
    WAYS.append(
        Way(f"flags-{_flags}", "system calls", f"finit_module with MODULE_INIT_{_title}",
            lambda flags=str(_flags): loader("finit", BAD, flags))  # type: ignore[misc]
    )  # fmt: skip


@way("system calls", "opened, unlinked, then finit_module")
def unlinked() -> str:
    return loader("unlinked", scratch())


@way("system calls", "a file that never had a name (O_TMPFILE)")
def tmpfile() -> str:
    return loader("tmpfile", BAD, "/tmp")


@way("system calls", "the file's bytes on a block device", kernel="EINVAL: no regular file")
def block_device() -> str:
    make = f"modprobe loop; cp {BAD} /tmp/block; truncate -s 1M /tmp/block; losetup -f --show /tmp/block"
    name = sh(make).split()[-1]
    said = loader("finit", name)
    sh(f"losetup -d {name}; rm /tmp/block")
    return said


# Tools


@way("tools", "insmod")
def insmod() -> str:
    return sh(f"insmod {BAD}")


@way("tools", "insmod -f (kmod: ignores version magic)")
def insmod_force() -> str:
    return sh(f"insmod -f {BAD}")


@way("tools", "busybox insmod")
def busybox() -> str:
    return sh(f"busybox insmod {BAD}")


@way("tools", "modprobe by name")
def modprobe() -> str:
    return sh("modprobe way_bad")


@way("tools", "modprobe by path", kernel="kmod 30 takes no path")
def modprobe_path() -> str:
    return sh(f"modprobe {BAD}")


@way("tools", "modprobe by alias")
def modprobe_alias() -> str:
    return sh("modprobe wayalias")


@way("tools", "modprobe --force")
def modprobe_force() -> str:
    return sh("modprobe --force way_bad")


@way("tools", "busybox modprobe")
def busybox_modprobe() -> str:
    return sh("busybox modprobe way_bad")


@way("tools", "modprobe of a clean module that depends on it")
def dependency() -> str:
    return sh("modprobe way_needs")


@way("tools", "modprobe although it is on the blacklist")
def blacklist() -> str:
    conf = Path("/etc/modprobe.d/way.conf")
    conf.write_text("blacklist way_bad\n")
    said = sh("modprobe way_bad")
    conf.unlink()
    return said


@way("tools", "an `install` line of modprobe.d")
def install_line() -> str:
    conf = Path("/etc/modprobe.d/way.conf")
    conf.write_text(f"install way_good /sbin/insmod {BAD}\n")
    said = sh("modprobe way_good")
    conf.unlink()
    return said


@way("tools", "a `softdep` line of modprobe.d")
def softdep() -> str:
    conf = Path("/etc/modprobe.d/way.conf")
    conf.write_text("softdep way_good pre: way_bad\n")
    said = sh("modprobe way_good")
    conf.unlink()
    return said


@way("tools", "systemd-modules-load")
def modules_load() -> str:
    if not Path("/lib/systemd/systemd-modules-load").exists():
        return "skipped: no systemd here"
    conf = Path("/run/modules-load.d/way.conf")
    conf.parent.mkdir(exist_ok=True)
    conf.write_text("way_bad\n")
    said = sh("/lib/systemd/systemd-modules-load")
    conf.unlink()
    return said


@way("tools", "udev's own loader (udevadm test-builtin kmod)")
def udev() -> str:
    return sh("udevadm test-builtin 'kmod load way_bad' /sys/class/mem/null 2>&1 | tail -n 2")


# Compressed

for _form in ("xz", "gz", "zst"):
    WAYS.append(Way(f"insmod-{_form}", "compressed", f"insmod of .ko.{_form}: kmod decompresses",
                    lambda form=_form: sh(f"insmod {BAD}.{form}"),  # type: ignore[misc]
                    kernel="ENOEXEC: Debian's kmod has no gzip" if _form == "gz" else ""))  # fmt: skip
for _form in ("xz", "gz"):
    WAYS.append(Way(f"busybox-{_form}", "compressed", f"busybox insmod of .ko.{_form}",
                    lambda form=_form: sh(f"busybox insmod {BAD}.{form}")))  # type: ignore[misc]  # fmt: skip


@way("compressed", "finit_module with MODULE_INIT_COMPRESSED_FILE: the kernel decompresses",
     kernel="EOPNOTSUPP: Debian's 6.1 does not decompress" if RELEASE.startswith("6.1.") else "")  # fmt: skip
def in_kernel() -> str:
    return loader("finit", f"{BAD}.xz", "4")


# Names and places


@way("places", "called notes.txt, on tmpfs")
def other_name() -> str:
    return loader("finit", scratch(name="notes.txt"))


@way("places", "a hard link")
def hard_link() -> str:
    path = scratch(directory="/var/tmp")
    os.link(path, path.with_name("link"))
    return loader("finit", path.with_name("link"))


@way("places", "a symbolic link")
def symbolic_link() -> str:
    path = scratch()
    path.with_name("link.ko").symlink_to(path)
    return loader("finit", path.with_name("link.ko"))


@way("places", "copied to devtmpfs")
def devtmpfs() -> str:
    path = scratch(directory="/dev")
    return loader("finit", path)


def _mounted(command: str) -> str:
    place = tempfile.mkdtemp()
    said = sh(f"{command} {place} && cp {BAD} {place}/way_bad.ko")
    if not said.startswith("0"):
        return f"skipped: {said}"
    said = loader("finit", f"{place}/way_bad.ko")
    sh(f"umount {place}")
    return said


@way("places", "on a fresh ramfs")
def ramfs() -> str:
    return _mounted("mount -t ramfs ramfs")


@way("places", "on a tmpfs mounted noexec,nosuid,nodev")
def noexec() -> str:
    return _mounted("mount -t tmpfs -o noexec,nosuid,nodev tmpfs")


@way("places", "on an ext4 image through a loop device")
def loop_ext4() -> str:
    sh("modprobe -a loop ext4; mkfs.ext4 -q -F /tmp/loop.img 8M")
    return _mounted("mount -o loop /tmp/loop.img")


@way("places", "on overlayfs")
def overlay() -> str:
    sh("modprobe overlay; mkdir -p /run/lower /run/upper /run/work")
    return _mounted("mount -t overlay -o lowerdir=/run/lower,upperdir=/run/upper,workdir=/run/work overlay")


@way("places", "through a bind mount over a good module")
def bind() -> str:
    good = scratch(HERE / "way_good.ko")
    sh(f"mount --bind {BAD} {good}")
    said = loader("finit", good)
    sh(f"umount {good}")
    return said


@way("places", "in a chroot, from a mount, PID, network, IPC and UTS namespace of its own (a privileged container)")
def container() -> str:
    root = tempfile.mkdtemp()
    shutil.copy(BAD, root)
    shutil.copy("/bin/busybox", root)
    return sh(f"unshare --mount --pid --net --ipc --uts --fork chroot {root} /busybox insmod /way_bad.ko")


@way("places", "from a user namespace", kernel="EPERM: no CAP_SYS_MODULE there")
def user_namespace() -> str:
    return sh(f"unshare --user --map-root-user insmod {BAD}")


# The kernel asks for it


@way("autoload", "mount of an unknown file system type (fs-*)")
def mount_type() -> str:
    return sh("mount -t wayfs none /mnt")


@way("autoload", "socket of an unknown family (net-pf-*)")
def socket_family() -> str:
    return _said(lambda: socket.socket(28, socket.SOCK_STREAM))


@way("autoload", "an unknown TCP congestion control (tcp_*)")
def congestion() -> str:
    return _said(lambda: Path("/proc/sys/net/ipv4/tcp_congestion_control").write_text("wayin"))


@way("autoload", "opening a character device nobody serves (char-major-*)")
def character_device() -> str:
    path = "/dev/way240"
    if not os.path.exists(path):
        os.mknod(path, 0o20600, os.makedev(240, 0))
    return _said(lambda: os.open(path, os.O_RDWR))


@way("autoload", "running a file of unknown format (binfmt-*)")
def binary_format() -> str:
    path = Path(tempfile.mkdtemp()) / "program"
    path.write_bytes(b"\xff\xfe\xf0\xf1" + bytes(60))
    path.chmod(0o755)
    return _said(lambda: subprocess.run([path], check=False))


@way("autoload", "asking for an unknown network device (netdev-*)")
def network_device() -> str:
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        return _said(lambda: fcntl.ioctl(control, 0x8933, b"waynet0".ljust(40, b"\0")))


@way("autoload", "a clean module whose start asks the kernel for it (request_module)")
def asked_by_module() -> str:
    return sh("modprobe way_asks")


@way("autoload", "/proc/sys/kernel/modprobe pointed at a script that loads it")
def modprobe_helper() -> str:
    helper, setting = Path(tempfile.mkdtemp()) / "helper", Path("/proc/sys/kernel/modprobe")
    helper.write_text(f"#!/bin/sh\nexec /sbin/insmod {BAD}\n")
    helper.chmod(0o755)
    before = setting.read_text()
    setting.write_text(str(helper))
    said = _said(lambda: socket.socket(27, socket.SOCK_STREAM))
    setting.write_text(before)
    return said


@way("autoload", "core_pattern's helper: a crash loads it")
def core_helper() -> str:
    helper, setting = Path(tempfile.mkdtemp()) / "helper", Path("/proc/sys/kernel/core_pattern")
    helper.write_text(f"#!/bin/sh\n/sbin/insmod {BAD} 2>/run/core_said\ntouch /run/core_done\n")
    helper.chmod(0o755)
    before = setting.read_text()
    setting.write_text(f"|{helper}")
    Path("/run/core_done").unlink(missing_ok=True)
    sh("ulimit -c unlimited; sleep 60 & kill -SEGV $!; wait $!")
    for _ in range(100):
        if Path("/run/core_done").exists():
            break
        time.sleep(0.1)
    setting.write_text(before)
    return Path("/run/core_said").read_text().strip() if Path("/run/core_said").exists() else "the helper did not run"


def _said(action: Callable[[], object]) -> str:
    try:
        return f"returned {action()}"
    except OSError as error:
        return str(error)


# Files that are not what they seem

for _name, _title, _kernel in (
    ("padded", "100 kB of zeros behind the module", ""),
    ("junk", "random bytes behind the module", ""),
    ("marker", "the mark of a signature, and no signature", ""),
    ("compressed_flag", "its .text flagged SHF_COMPRESSED (the kernel does not care)", ""),
    ("odd_type", "its .text of an unknown section type", ""),
    ("note_type", "its .text called a note", ""),
    ("renamed", "its .text named .data", ""),
    ("no_functions", "no symbol is a function", ""),
    ("moved", "its .text three megabytes behind the section headers", ""),
    ("truncated", "the last third cut off", "ENOEXEC"),
    ("os_abi", "another OS ABI in the ELF header", ""),
):
    WAYS.append(
        Way(_name.replace("_", "-"), "forged files", _title,
            lambda name=_name: loader("finit", HERE / f"way_bad_{name}.ko"), kernel=_kernel)  # type: ignore[misc]
    )  # fmt: skip
WAYS.append(
    Way("no-execute", "forged files", "VMLAUNCH in a section without SHF_EXECINSTR: mapped so that it cannot run",
        lambda: loader("finit", HERE / "way_section_data.ko"), "let in: not executable, so no instruction")
)  # fmt: skip


@way("forged files", "a good module, and it behind that", expect="clean")
def good_first() -> str:
    path = scratch()
    path.write_bytes((HERE / "way_good.ko").read_bytes() + BAD.read_bytes())
    return loader("finit", path)


@way("forged files", "it, and a good module behind that")
def bad_first() -> str:
    path = scratch()
    path.write_bytes(BAD.read_bytes() + (HERE / "way_good.ko").read_bytes())
    return loader("finit", path)


# Code that hides

_OWN_WORD = "let in: the policy takes its word"
for _name, _title, _expect in (
    ("cold", "VMLAUNCH in .text.unlikely", "refused"),
    ("noinstr", "VMLAUNCH in .noinstr.text", "refused"),
    ("section", "VMLAUNCH in an executable section of its own", "refused"),
    ("altinstr", "VMLAUNCH in .altinstr_replacement", "refused"),
    ("prefix", "VMLAUNCH behind a REX prefix", "refused"),
    ("rex", "VMXON behind two segment prefixes", "refused"),
    ("resume", "VMRESUME and VMXON, no VMLAUNCH", "refused"),
    ("before", "data before the function swallows VMLAUNCH in a sweep", "refused"),
    ("bare", "the same where no symbol says that a function starts", "possible"),
    ("jump", "a jump into the middle of an instruction", "possible"),
    ("reloc", "zeros in the file: a relocation writes VMLAUNCH", "refused"),
    ("alternative", "the kernel's alternatives join VMLAUNCH from two halves", "refused"),
    ("cr4", "MOV CR4", "refused"),
    ("wrmsr", "WRMSR", "refused"),
    ("lidt", "LIDT", "refused"),
    ("svm", "VMRUN, out of tree", "refused"),
    ("pv", "WRMSR through pv_ops", "refused"),
    ("foreign", "imports what runs foreign code (kprobes and vmap)", "refused"),
    ("intree", "VMLAUNCH, and a forged intree=Y", "refused"),
    ("safe_like", "VMLAUNCH, and texts that only look like sld_safe=Y", "refused"),
    ("svm_intree", "VMRUN, and a forged intree=Y", _OWN_WORD),
    ("safe", "VMLAUNCH, and its own sld_safe=Y", _OWN_WORD),
    ("safe_no", "VMLAUNCH, and its own sld_safe=N: only the key counts", _OWN_WORD),
):
    WAYS.append(
        Way(f"code-{_name.replace('_', '-')}", "hidden code", _title,
            lambda name=_name: loader("finit", HERE / f"way_{name}.ko"), _expect)  # type: ignore[misc]
    )  # fmt: skip


# Races: two files that differ in the instruction alone, changed while they load


def _race(kind: str) -> str:
    target = scratch(HERE / "way_race.ko", "way_race.ko", "/var/tmp" if kind == "race-file" else None)
    shutil.copy(HERE / "way_race_clean.ko", f"{target}.next")
    return loader(kind, target, HERE / "way_race_clean.ko", SECONDS)


for _name, _title, _kernel in (
    ("race-memory", "init_module while another thread changes the buffer", ""),
    ("race-memfd", "finit_module while another thread changes the memfd", ""),
    ("race-file", "the file is rewritten while it loads", ""),
    ("race-rename", "the file's name changes hands while it loads", ""),
    ("race-mapped", "the file is changed through a shared mapping", "ETXTBSY: it is open for writing"),
):
    WAYS.append(Way(_name, "races", _title, lambda name=_name: _race(name), kernel=_kernel))  # type: ignore[misc]


def loaded() -> dict[str, bool]:
    """The modules of ours that are in the kernel, and whether what they were brought for is."""
    names = [line.split()[0] for line in Path("/proc/modules").read_text().splitlines() if line.startswith("way_")]
    return {name: Path(f"/sys/module/{name}/parameters/armed").read_text().strip() == "1" for name in names}


def unload() -> None:
    """Out with all of ours; Raises RuntimeError where one stays."""
    for _ in range(50):
        names = sorted(loaded(), key=lambda name: name != "way_needs")
        if not names:
            return
        for name in names:
            libc.syscall(DELETE_MODULE, name.encode(), NONBLOCK)
        time.sleep(0.02)
    raise RuntimeError(f"cannot unload {names}")


def main(names: Sequence[str]) -> None:
    """Try them all, or those named."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    bound = f"/lib/modules/{RELEASE}"
    for entry in WAYS:
        if names and entry.name not in names:
            continue
        own_tree = entry.group in ("tools", "autoload")
        if own_tree:  # modprobe then finds ours, and the kernel asks modprobe
            sh(f"mount --bind {TREE} {bound}")
        begin = time.time()
        try:
            said = entry.run()
        except Exception as error:  # what a way does wrong is a result too
            said = f"failed: {error!r}"
        end = time.time()
        inside = loaded()
        if own_tree:
            sh(f"umount {bound}")
        line = {
            "way": entry.name, "group": entry.group, "title": entry.title, "expect": entry.expect,
            "kernel": entry.kernel, "loaded": sorted(inside), "armed": sorted(n for n in inside if inside[n]),
            "said": said, "begin": begin, "end": end, "seconds": round(end - begin, 3),
        }  # fmt: skip
        print(json.dumps(line), flush=True)
        unload()


if __name__ == "__main__":
    main(sys.argv[1:])
