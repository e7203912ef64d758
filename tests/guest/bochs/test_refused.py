"""What `--vmx` cannot boot, and an emulator that is not there: one line each, with what to do."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from guest.conftest import command
from modules.debian import vmlinuz

from splitlock._errors import SplitlockError
from splitlock.guest.bochs import emulator
from splitlock.guest.bochs.emulator import BUILD, build, find

_CYLINDER = 516_096  # bytes: 16 heads of 63 sectors
_TOOLS = ("sh", "cat", "dirname", "sha256sum", "cut", "mkdir", "make", "xz", "apt-get", "id", "strip", "python3")


def _refused(*words: object) -> str:
    done = subprocess.run(command(*words), capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    return done.stderr


@pytest.mark.parametrize("size", [512, _CYLINDER - 512, _CYLINDER + 1, 3 * _CYLINDER + 511])
def test_disk_of_no_size(tmp_path: Path, size: int) -> None:
    """Less than a cylinder, or parts of a sector; what is named as the remedy mends it."""
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(size)
    said = _refused("--vmx", "--disk", disk)
    assert f"--disk {disk}: {size:,} bytes" in said
    remedy = said.partition("truncate -s ")[2].split()[0]
    subprocess.run(["truncate", "-s", remedy, disk], check=True)
    assert disk.stat().st_size % _CYLINDER == 0
    assert disk.stat().st_size >= size


@pytest.mark.parametrize("kind", ["qcow2", "vmdk", "vhdx"])
def test_disk_of_other_formats(tmp_path: Path, kind: str) -> None:
    """The way out is named."""
    disk = tmp_path / "disk"
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, disk, "10M"], check=True)
    assert "qemu-img convert -O raw" in _refused("--vmx", "--disk", disk)


@pytest.mark.parametrize("option", [[], ["--vmx"]])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_truncated_kernel(tmp_path: Path, option: list[str], part: float) -> None:
    """It would hang, or say that it is corrupt, long after; the whole one is not refused for its size."""
    whole = vmlinuz("cloud-amd64").read_bytes()
    cut = tmp_path / "vmlinuz"
    cut.write_bytes(whole[: int(len(whole) * part)])
    assert f"--kernel {cut}: truncated" in _refused(*option, "--kernel", cut)


@pytest.mark.usefixtures("emulator")
def test_kernel_as_it_was_linked(tmp_path: Path) -> None:
    """ELF files do for QEMU alone."""
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(b"\x7fELF" + bytes(1000))
    assert "no bzImage, which --vmx needs" in _refused("--vmx", "--kernel", kernel)


def test_no_emulator(tmp_path: Path) -> None:
    """How it is built is said."""
    with pytest.raises(SplitlockError, match="splitlock guest --build-emulator"):
        find(tmp_path)


def test_no_roms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which packages have the ROMs, in one line; also where only a link to one of them is there."""
    mark = subprocess.run(["sh", BUILD, "--mark"], capture_output=True, text=True, check=True).stdout.split()[0]
    program = tmp_path / f"bochs-{mark}"
    program.touch(0o755)
    roms = tmp_path / "roms"
    roms.mkdir()
    monkeypatch.setattr(emulator, "_SHARE", roms)
    said = f"^--vmx: {roms}/BIOS-bochs-latest: not there; install bochsbios and vgabios [^\n]*$"
    with pytest.raises(SplitlockError, match=said):
        find(tmp_path)
    (roms / "BIOS-bochs-latest").touch()
    (roms / "VGABIOS-lgpl-latest").symlink_to(tmp_path / "vgabios.bin")
    with pytest.raises(SplitlockError, match="VGABIOS-lgpl-latest: not there"):
        find(tmp_path)


def test_no_place_for_it(tmp_path: Path) -> None:
    """A cache that cannot be made."""
    (tmp_path / "file").touch()
    with pytest.raises(SplitlockError, match=f"{tmp_path}/file/cache: cannot be made"):
        build(tmp_path / "file" / "cache")


def test_no_compiler(tmp_path: Path) -> None:
    """Which packages are missing."""
    (tmp_path / "bin").mkdir()
    for tool in _TOOLS:
        (tmp_path / "bin" / tool).symlink_to(str(shutil.which(tool)))
    done = subprocess.run(
        [str(shutil.which("sh")), BUILD, tmp_path / "cache"], env={"PATH": str(tmp_path / "bin")}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "g++ is missing; install g++" in done.stderr
