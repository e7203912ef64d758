"""Linux with KVM on the processor of `splitlock guest --vmx`, and splitlock run inside: one of Debian's kernels.

The initramfs holds the kernel's own kvm-intel, busybox, this machine's Python and of its library just what is imported.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from guest.conftest import command
from modules.debian import unpacked, vmlinuz

import splitlock as package
from splitlock.guest.probe.image import CODE

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
# the console is for the command alone: the kernel's own lines would stand in the middle of its
_APPEND = "console=ttyS0 quiet loglevel=0 nokaslr mitigations=off nowatchdog tsc=reliable panic=-1"
_BEGIN, _END = "begin", "exit status "
_INIT = f"""#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
exec </dev/null >/dev/ttyS0 2>&1
/bin/busybox stty -F /dev/ttyS0 raw
for module in {" ".join(_MODULES)}; do /bin/busybox insmod /$module; done
/bin/busybox echo {_BEGIN}
PYTHONPATH=/python PYTHONDONTWRITEBYTECODE=1 TMPDIR=/ PATH=/usr/bin:/bin /usr/bin/python3 -m splitlock "$@"
/bin/busybox echo {_END}$?
/bin/busybox stty -F /dev/ttyS0 raw # waits until all of it is out
exec /bin/busybox poweroff -f
"""


def splitlock(directory: Path, arguments: Sequence[str], *guest: str, append: str = "") -> tuple[int, str]:
    """Run splitlock inside: its exit status and what it said. AssertionError where that does not come.

    `guest`: options of `splitlock guest --vmx`; `append`: for the kernel's command line.
    """
    initramfs = directory / "initramfs"
    initramfs.write_bytes(_initramfs(arguments))
    words = ["--vmx", *guest, "-m", "512M", "--kernel", vmlinuz(_KERNEL), "--initrd", initramfs,
             "--append", f"{_APPEND} {append}", "--duration", "1500", "-o", directory / "report"]  # fmt: skip
    done = subprocess.run(command(*words), capture_output=True, timeout=1600, check=False)
    said = done.stderr.decode(errors="replace").replace("\r", "")
    found = re.search(rf"^{_BEGIN}\n(.*)^{_END}(\d+)$", said, re.M | re.S)
    assert found, said[-3000:]
    return int(found[2]), found[1]


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
