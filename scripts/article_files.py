"""What do the commands of "The article, live" find in build/article? It is made here, before article.py runs them."""

from __future__ import annotations

import lzma
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]

from guard import ways  # noqa: E402
from guard.machine import kernel, splitlock_payload  # noqa: E402
from guest import boots, images  # noqa: E402
from modules import debian, virtualbox  # noqa: E402

from splitlock._errors import SplitlockError  # noqa: E402
from splitlock.guard import judge  # noqa: E402
from splitlock.guest.bochs import emulator  # noqa: E402

PLACE = ROOT / "build" / "article"
_KERNEL = "xz"  # that of the machines with VMX: 6.12, the cloud one, which unpacks quickly
_PROGRAMS = ROOT / "tests" / "guest" / "programs"
_SHARED = ROOT / "tests" / "programs"
_INSIDE = ROOT / "src" / "splitlock" / "guest" / "matrix" / "inside"
_ASKS = ROOT / "tests" / "modules" / "hypervisors" / "blind_asks.c"
_ASKED = "handle_guest_split_lock"
_PYTHON = Path("/usr/bin/python3")
_NOT_OF_PYTHON = (
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "ensurepip",
    "pydoc_data",
    "tkinter",
    "dist-packages",
    "config-*",
)

# What the machines do. The console is slow, so the kernel is quiet (--append), and what it said comes last.
_SAID = "dmesg | grep -E 'x86/split|traps:'"
_DEMO = f"demo 30\necho demo: exit status $?\n{_SAID}"
_SPLITMOD = "dmesg -n 5\ninsmod /splitmod.ko count=1"
_BLIND = """
for how in "way=forward idt=0" "way=forward idt=1" "way=off idt=0"; do
    insmod /blind.ko $how
    rmmod blind
    usleep 100000 # detection is off for two jiffies after warn has let a lock pass
done
dmesg | sed -n 's/.*blind: way=/way=/p' | fold -s -w 76
"""
_KVM = "for each in irqbypass kvm kvm-intel; do insmod /$each.ko; done"
_NESTED = f"{_KVM}\nnested 1 unready\n{_SAID}"
_LINUX = "earlyprintk=ttyS0,keep loglevel=5 panic=-1 nokaslr mitigations=off pci=off acpi=off noreplace-smp reboot=p"
_LINUXVM = f"{_KVM}\nlinuxvm /vmlinuz /guest.cpio '{_LINUX}'\n{_SAID}"
_GUEST = """
exec >/dev/kmsg 2>&1
insmod /splitmod.ko count=1
echo insmod: exit status $?
demo 30
echo demo: exit status $?
reboot -f
"""
_ASKING = "insmod /blind_asks.ko way=handle"
_GATE = """
mount -t securityfs securityfs /sys/kernel/security
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
export PATH=$PATH:/usr/bin PYTHONPATH=/python PYTHONDONTWRITEBYTECODE=1 NO_COLOR=1
splitlock() { python3 -m splitlock "$@"; }
splitlock guard start
insmod /blind.ko
insmod /splitmod.ko count=0
cut -d' ' -f1 /proc/modules
splitlock guard log
"""
_LIMITED = """\
#include <linux/module.h>
#include <asm/tlbflush.h>
static int __init limited_init(void) { cr4_update_irqsoff(0, 0); return 0; }
module_init(limited_init);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("needs what the kernel exports to KVM alone");
"""


def prepare() -> None:
    """Put what the commands name into PLACE. Ends the script where the emulator is not built."""
    try:
        emulator.find()
    except SplitlockError as error:
        raise SystemExit(str(error)) from None
    PLACE.mkdir(parents=True, exist_ok=True)
    debian_6_1 = kernel("amd64")
    _link("modules", debian.unpacked("amd64") / "lib" / "modules" / debian_6_1.release)
    _link("linux-image-6.1.deb", debian.packages("amd64")["amd64"])
    _link("vmlinuz", debian.vmlinuz(_KERNEL))
    plain = [f"-ffile-prefix-map={path}=." for path in (Path.cwd(), _SHARED)]  # the page names no place of this machine
    demo = boots.compiled(_SHARED / "demo.c", PLACE / "demo", *plain)
    with tempfile.TemporaryDirectory(dir=PLACE) as name:
        directory = Path(name)
        _machines(directory, demo)
        start = directory / "run"
        start.write_text("#!/bin/sh\n/payload/demo\n")
        images.disk(PLACE / "clean.img")
        images.disk(PLACE / "cloud.img", {"run": start, "demo": demo})
        if not (PLACE / "vboxdrv.ko").exists():
            (directory / "virtualbox").mkdir()
            unpacked = virtualbox.packages(directory / "virtualbox")
            (unpacked / "usr/lib/virtualbox/VMMR0.r0").rename(PLACE / "VMMR0.r0")
            virtualbox.driver(unpacked, ways.headers("amd64")).rename(PLACE / "vboxdrv.ko")
        _new_kernel(directory)


def _link(name: str, path: Path) -> None:
    (PLACE / name).unlink(missing_ok=True)
    (PLACE / name).symlink_to(path)


def _machines(directory: Path, demo: Path) -> None:
    """What boots on the processor with VMX."""
    headers = ways.headers(_KERNEL)
    shutil.copy(_INSIDE / "blind.h", directory)
    splitmod, blind = (
        boots.module(path, directory, headers) for path in (_PROGRAMS / "splitmod.c", _INSIDE / "blind.c")
    )
    shutil.copy(blind, PLACE)
    nested, linuxvm = (boots.compiled(_PROGRAMS / f"{name}.c", directory / name) for name in ("nested", "linuxvm"))
    kvm = {f"{name}.ko": _of_kvm(name, directory) for name in ("irqbypass", "kvm", "kvm-intel")}
    _initramfs("demo.cpio", _DEMO, {"demo": demo})
    _initramfs("splitmod.cpio", _SPLITMOD, {"splitmod.ko": splitmod})
    _initramfs("blind.cpio", _BLIND, {"blind.ko": blind})
    _initramfs("kvm.cpio", _NESTED, {"nested": nested, **kvm})
    guest = boots.initramfs(directory / "guest.cpio", _GUEST, {"splitmod.ko": splitmod, "demo": demo})
    inside = {"linuxvm": linuxvm, "vmlinuz": debian.vmlinuz(_KERNEL), "guest.cpio": guest}
    _initramfs("linux.cpio", _LINUXVM, {**inside, **kvm})
    python = _with_python(directory / "python")
    _initramfs("gate.cpio", _GATE, {"blind.ko": blind, "splitmod.ko": splitmod}, python)


def _initramfs(name: str, script: str, files: Mapping[str, Path], more: Path | None = None) -> None:
    """One for the machines. What it prints must get out before the power goes, at 960 bytes a second; sleep is free."""
    boots.initramfs(PLACE / name, f"{script}\nsleep 9", files, more)


def _of_kvm(name: str, directory: Path) -> Path:
    (packed,) = debian.unpacked(_KERNEL).rglob(f"{name}.ko.xz")
    path = directory / f"{name}.ko"
    path.write_bytes(lzma.decompress(packed.read_bytes()))
    return path


def _with_python(tree: Path) -> Path:
    """A tree with this splitlock, its gate, this machine's Python and what they load."""
    tree.mkdir()
    judge.built(judge.OBJECT)
    splitlock_payload(tree)
    program = _PYTHON.resolve()
    words = [program, "-c", "import os, sysconfig; print(sysconfig.get_path('stdlib'))"]
    library = Path(subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip())
    shutil.copytree(library, tree / library.relative_to("/"), ignore=shutil.ignore_patterns(*_NOT_OF_PYTHON))
    _copy(program, tree / _PYTHON.relative_to("/"))
    objects = [program, _bpf(), *tree.rglob("*.so")]
    for path in {str(_bpf()), *_libraries(objects)}:
        _copy(Path(path), tree / path[1:])
    return tree


def _bpf() -> Path:
    cache = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"libbpf\.so\.1 .*x86-64.*=> (/\S+)", cache)
    if not found:
        raise SystemExit("libbpf.so.1 is not installed; make setup")
    return Path(found[1])


def _libraries(objects: Sequence[Path]) -> set[str]:
    said = subprocess.run(["ldd", *objects], capture_output=True, text=True, check=True).stdout
    return {path for path in re.findall(r"(/\S+) \(0x", said) if not path.startswith(str(PLACE))}


def _copy(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, target)


def _new_kernel(directory: Path) -> None:
    """Debian sid's kernel: what it exports, what building a module for it takes, and such a module."""
    _link("vmlinuz-7.2", debian.vmlinuz("new"))
    done = subprocess.run(
        [ROOT / "scripts" / "new-headers.sh", debian.STORE], stdout=subprocess.PIPE, text=True, check=True
    )
    headers = Path(done.stdout.strip())
    _link("headers-7.2", headers)
    _module("limited", {"limited.c": _LIMITED})
    sources = {path.name: path.read_text() for path in (_ASKS, _INSIDE / "blind.c", _INSIDE / "blind.h")}
    asks = _module("blind_asks", sources)
    # its build ends in an error, as the page shows: this one imports another name, up to the last moment
    shutil.copytree(asks, directory / "forced")
    with (directory / "forced" / "Makefile").open("a") as file:
        file.write(f"ccflags-y := -D{_ASKED}={_ASKED}_\n")
    command = [
        "make",
        "-sC",
        headers,
        f"M={directory}/forced",
        "KBUILD_MODPOST_WARN=1",
        "CONFIG_DEBUG_INFO_BTF_MODULES=",
        "modules",
    ]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    module = directory / "forced" / "blind_asks.ko"
    subprocess.run(["objcopy", "--redefine-sym", f"{_ASKED}_={_ASKED}", module], check=True)
    _initramfs("asks.cpio", _ASKING, {"blind_asks.ko": module})


def _module(name: str, sources: Mapping[str, str]) -> Path:
    """A module's directory, in which nothing is built yet."""
    place = PLACE / name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for file, text in sources.items():
        (place / file).write_text(text)
    (place / "Makefile").write_text(f"obj-m := {name}.o\n")
    return place
