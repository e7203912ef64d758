"""Linux in Bochs, which emulates VMX and alignment checks: one of Debian's kernels, and splitlock run inside.

The kernel and an initramfs lie on a CD that isolinux boots. The initramfs holds the kernel's own kvm-intel, busybox,
this machine's Python and of its library just what is imported. What the command prints goes to the second serial port.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from modules.debian import unpacked, vmlinuz

import splitlock as package
from splitlock.guest.probe.emulator import started
from splitlock.guest.probe.image import CODE

_ISOLINUX, _LDLINUX = "/usr/lib/ISOLINUX/isolinux.bin", "/usr/lib/syslinux/modules/bios/ldlinux.c32"
_PYTHON = "/usr/bin/python3"
_KERNEL = "cloud-amd64"
_MODULES = {
    "irqbypass": "irqbypass.ko",
    "kvm": "kvm.ko",
    "kvm_intel": "kvm-intel.ko",
}  # in the order in which they load
_OWN = Path(package.__file__).parents[1]
_SITE = [Path(path) for path in sys.path if path.endswith("-packages")]
# prints the files of what the command imports, and what Python has made of them
_LOADED = """
import json, sys
import encodings.ascii, encodings.latin_1, pkgutil, runpy
import splitlock.commands._output, splitlock.commands.probe, splitlock.guest.probe.kvm, splitlock.guest.probe.verdict
import splitlock.report.probe_text
modules = list(sys.modules.values())
print(json.dumps([getattr(module, kind, None) for module in modules for kind in ("__file__", "__cached__")]))
"""
_BOOT = """default linux
prompt 0
label linux
  kernel vmlinuz
  append initrd=initrd console=ttyS0 quiet nokaslr mitigations=off nowatchdog tsc=reliable panic=-1
"""
_BOCHSRC = """display_library: term
cpu: model=corei7_skylake_x, reset_on_triple_fault=0, ignore_bad_msrs=1, ips=100000000
memory: guest=512, host=512
romimage: file=$BXSHARE/BIOS-bochs-latest
vgaromimage: file=$BXSHARE/VGABIOS-lgpl-latest
ata0-master: type=cdrom, path=cd.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=console
com2: enabled=1, mode=file, dev=told
clock: sync=none
log: log
"""
_END = "exit status "


_INIT = f"""#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
exec </dev/null >/dev/ttyS1 2>&1
/bin/busybox stty -F /dev/ttyS1 raw
for module in {" ".join(_MODULES)}; do /bin/busybox insmod /$module; done
PYTHONPATH=/python PYTHONDONTWRITEBYTECODE=1 TMPDIR=/ PATH=/usr/bin:/bin /usr/bin/python3 -m splitlock "$@"
/bin/busybox echo {_END}$?
exec /bin/busybox sleep 1000000
"""


def splitlock(directory: Path, *arguments: str, seconds: float = 1500) -> tuple[int, str]:
    """Run splitlock inside: its exit status and what it said. AssertionError where that does not come in time."""
    _cd(directory, arguments)
    (directory / "bochsrc").write_text(_BOCHSRC)
    (directory / "go").write_text("c\n")
    told = directory / "told"
    deadline = time.monotonic() + seconds
    with started(["bochs", "-q", "-f", "bochsrc", "-rc", "go"], directory) as (process, said):
        while process.poll() is None and time.monotonic() < deadline:
            text = told.read_text(errors="replace") if told.exists() else ""
            if found := re.search(rf"^{_END}(\d+)$", text, re.M):
                return int(found[1]), text[: found.start()]
            time.sleep(1)
    ends = [path.read_text(errors="replace")[-3000:] for path in (directory / "console", directory / "log")]
    raise AssertionError(f"Bochs: no end, status {process.returncode}\n{text}\n{bytes(said)!r}\n" + "\n".join(ends))


def _cd(directory: Path, arguments: Sequence[str]) -> None:
    disc = directory / "cd"
    disc.mkdir()
    for path in (Path(_ISOLINUX), Path(_LDLINUX)):
        shutil.copy(path, disc)
    shutil.copy(vmlinuz(_KERNEL), disc / "vmlinuz")
    (disc / "initrd").write_bytes(_initramfs(arguments))
    (disc / "isolinux.cfg").write_text(_BOOT)
    subprocess.run(
        ["xorriso", "-as", "mkisofs", "-quiet", "-o", directory / "cd.iso", "-b", "isolinux.bin", "-c", "boot.cat",
         "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table", disc],
        check=True, capture_output=True,
    )  # fmt: skip


def _initramfs(arguments: Sequence[str]) -> bytes:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        for name in ("proc", "dev", "bin", "usr/bin", "usr/lib", "lib64", "lib", "tmp", "python"):
            (root / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(str(shutil.which("busybox")), root / "bin" / "busybox")
        for module, path in _MODULES.items():
            (found,) = unpacked(_KERNEL).rglob(path)
            shutil.copy(found, root / module)
        environment = {"PYTHONPATH": ":".join(map(str, [_OWN, *_SITE]))}
        names = subprocess.run([_PYTHON, "-c", _LOADED], env=environment, check=True, capture_output=True).stdout
        wanted = {*json.loads(names), str(_OWN / "splitlock" / "__main__.py")} - {None}
        loaded = [name for name in wanted if Path(name).exists()]
        objects = [_PYTHON, *(path for path in loaded if path.endswith(".so"))]
        libraries = subprocess.run(["ldd", *objects], check=True, capture_output=True, text=True).stdout
        for path in {_PYTHON, *re.findall(r"(/\S+) \(0x", libraries), *loaded, str(CODE)}:
            source = Path(path)
            home = _OWN if source.is_relative_to(_OWN) else next((h for h in _SITE if source.is_relative_to(h)), None)
            target = root / "python" / source.relative_to(home) if home else root / path[1:]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
        (root / "init").write_text(f"#!/bin/busybox sh\nexec /bin/busybox sh /start {shlex.join(arguments)}\n")
        (root / "init").chmod(0o755)
        (root / "start").write_text(_INIT)
        listing = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
        return subprocess.run(
            ["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0"], cwd=root, input=listing.encode(), capture_output=True,
            check=True,
        ).stdout  # fmt: skip
