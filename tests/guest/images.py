"""Disks as clouds boot them: a partition table, GRUB for BIOS and for UEFI, Debian's root file system, a payload.

Made of files alone, nothing is mounted: parts are made each by its own tool and put where the table says.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from guard.machine import STORE
from modules.debian import ROOT, packages

KIND = "xz"  #: scripts/kernels.sh: 6.12, of the cloud flavour
_SECTOR, _MIB = 512, 1 << 20
_GRUB = Path("/usr/lib/grub")
# the ESP's partition, then the root's, in MiB; GRUB's own part lies before them
_ESP, _ROOT = 8, 32
_CONFIG = """serial --unit=0
terminal_output serial
search --no-floppy --label root --set=root
linux /vmlinuz root=LABEL=root console=ttyS0 {options}
initrd /initrd.img
boot
"""
_MODULES = ("part_gpt", "ext2", "linux", "search", "search_label", "serial", "terminal", "boot", "normal", "echo")


@cache
def root() -> Path:
    """The root file system, built once a machine."""
    package = packages(KIND)[KIND]
    done = subprocess.run([ROOT / "scripts" / "cloud.sh", STORE, package], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def disk(target: Path, payload: Mapping[str, Path] | None = None, options: str = "") -> Path:
    """A disk image `target`, raw, with `payload`'s files below /payload (`run` is started, then it powers off).

    `options`: more of the kernel's command line.
    """
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        parts = Path(name)
        (parts / "grub.cfg").write_text(_CONFIG.format(options=options))
        system = parts / "root.ext4"
        subprocess.run(["cp", "--sparse=always", "--reflink=auto", root(), system], check=True)
        _add(system, payload or {})
        size = system.stat().st_size // _MIB
        layout = (
            "label: gpt\n"
            f"start=2048, size={(_ESP - 1) * 2048}, type=21686148-6449-6E6F-744E-656564454649\n"
            f"start={_ESP * 2048}, size={(_ROOT - _ESP) * 2048}, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\n"
            f"start={_ROOT * 2048}, size={size * 2048}, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4\n"
        )
        with target.open("wb") as file:
            file.truncate((_ROOT + size + 1) * _MIB)
        subprocess.run(["sfdisk", "-q", target], input=layout, text=True, check=True)
        _bios(parts, target)
        _uefi(parts, target)
        put = ["dd", f"if={system}", f"of={target}", "bs=1M", f"seek={_ROOT}", "conv=notrunc,sparse", "status=none"]
        subprocess.run(put, check=True)
    return target


def _add(system: Path, payload: Mapping[str, Path]) -> None:
    """Put files into an ext4 image's /payload."""
    commands = ["cd /payload"]
    for name, path in payload.items():
        commands += [f"write {path} {name}", f"sif {name} mode 0100755"]
    done = subprocess.run(["debugfs", "-w", "-f", "-", system], input="\n".join(commands), capture_output=True,
                          text=True, check=True)  # fmt: skip
    assert "File not found" not in done.stderr, done.stderr


def _image(parts: Path, kind: str, output: str, *modules: str) -> bytes:
    """GRUB for one platform, with our configuration in it."""
    command: list[str | Path] = [
        "grub-mkimage",
        "-O",
        kind,
        "-p",
        "/grub",
        "-c",
        parts / "grub.cfg",
        "-o",
        parts / output,
    ]
    subprocess.run([*command, *_MODULES, *modules], check=True)
    return (parts / output).read_bytes()


def _bios(parts: Path, target: Path) -> None:
    """boot.img into the first sector, the core image into the partition for it (grub-core/boot/i386/pc)."""
    core = bytearray(_image(parts, "i386-pc", "core.img", "biosdisk"))
    first = 2048
    # diskboot.img is core's first sector; its list of blocks, at the end, says where the rest lies
    struct.pack_into("<QHH", core, 0x1F4, first + 1, -(-len(core) // _SECTOR) - 1, 0x820)
    boot = bytearray((_GRUB / "i386-pc" / "boot.img").read_bytes()[:_SECTOR])
    struct.pack_into("<Q", boot, 0x5C, first)
    with target.open("r+b") as file:
        file.write(boot[:440])  # the partition table's part of the sector stays
        file.seek(first * _SECTOR)
        file.write(core)


def _uefi(parts: Path, target: Path) -> None:
    """The EFI system partition."""
    _image(parts, "x86_64-efi", "BOOTX64.EFI", "fat", "efi_gop")
    system = parts / "esp"
    with system.open("wb") as file:
        file.truncate((_ROOT - _ESP) * _MIB)
    subprocess.run(["mkfs.vfat", "-F", "16", system], check=True, stdout=subprocess.DEVNULL)
    environment = {**os.environ, "MTOOLS_SKIP_CHECK": "1"}
    subprocess.run(["mmd", "-i", system, "::EFI", "::EFI/BOOT"], check=True, env=environment)
    copy: list[str | Path] = ["mcopy", "-i", system, parts / "BOOTX64.EFI", "::EFI/BOOT/BOOTX64.EFI"]
    subprocess.run(copy, check=True, env=environment)
    put = ["dd", f"if={system}", f"of={target}", "bs=1M", f"seek={_ESP}", "conv=notrunc", "status=none"]
    subprocess.run(put, check=True)


def converted(image: Path, target: Path) -> Path:
    """The same as qcow2, compressed."""
    assert shutil.which("qemu-img")
    subprocess.run(["qemu-img", "convert", "-c", "-O", "qcow2", image, target], check=True)
    return target
