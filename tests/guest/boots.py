"""Small guests: a kernel and an initramfs of busybox, programs and modules, which boot in seconds."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

_INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
export PATH=/bin:/
/bin/busybox --install -s /bin
{script}
echo all done
poweroff -f
"""


def initramfs(target: Path, script: str, files: Mapping[str, Path], more: Path | None = None) -> Path:
    """An initramfs `target` that runs a script of busybox's sh and powers off; in / lie `files`, and all of `more`."""
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        tree = Path(name)
        if more:
            shutil.copytree(more, tree, dirs_exist_ok=True)
        (tree / "bin").mkdir(exist_ok=True)
        shutil.copy(str(shutil.which("busybox")), tree / "bin" / "busybox")
        for place, path in files.items():
            shutil.copy(path, tree / place)
        (tree / "init").write_text(_INIT.format(script=script))
        (tree / "init").chmod(0o755)
        listing = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
        command = ["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0"]
        done = subprocess.run(command, cwd=tree, input=listing.encode(), capture_output=True, check=True)
    target.write_bytes(done.stdout)
    return target


def compiled(source: Path, target: Path, *flags: str) -> Path:
    """A program for inside, static."""
    subprocess.run(["gcc", "-O2", "-g", "-static", "-pthread", *flags, "-o", target, source], check=True)
    return target


def module(source: Path, directory: Path, headers: Path) -> Path:
    """A kernel module, built in `directory`."""
    shutil.copy(source, directory)
    (directory / "Kbuild").write_text(f"obj-m += {source.stem}.o\nccflags-y += -I{source.parent}\n")
    command: Sequence[str] = ["make", "-s", "-C", str(headers), f"M={directory}", "CC=gcc-12",
                              "CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"]  # fmt: skip
    subprocess.run(command, check=True)
    return directory / f"{source.stem}.ko"
