"""What is a kernel to boot: packages, files, directories; and what is said of everything else."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from guest.matrix.conftest import kernel
from modules.debian import packages, vmlinuz

from splitlock._errors import SplitlockError
from splitlock.guest.matrix import kernels as module
from splitlock.guest.matrix.kernels import headers, kernels


def test_package_and_directory(tmp_path: Path) -> None:
    """A package and the kernel unpacked from it are one; vmlinux is what is booted."""
    tree = tmp_path / "tree"
    (tree / "boot").mkdir(parents=True)
    (tree / "boot" / "vmlinuz-x").symlink_to(vmlinuz("amd64"))
    (tree / "boot" / "config-x").write_text("")
    ((found,), _) = kernels([str(kernel("amd64")), str(tree)], str(tmp_path))
    assert found.member == f"boot/vmlinuz-{found.release}"
    assert found.banner.startswith(f"Linux version {found.release} ")
    assert Path(found.image).read_bytes()[:4] == b"\x7fELF"


def test_without_pvh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be entered directly is booted as it is, or not at all."""
    ((direct,), _) = kernels([str(vmlinuz("amd64"))], str(tmp_path))
    elf = Path(direct.image).read_bytes()
    assert len(module._PVH.findall(elf)) == 1
    (tmp_path / "vmlinux").write_bytes(module._PVH.sub(bytes(16), elf))
    with pytest.raises(SplitlockError, match="without CONFIG_PVH"):
        kernels([str(tmp_path / "vmlinux")], str(tmp_path))
    monkeypatch.setattr(module, "_PVH", re.compile(b"nowhere to be found"))
    ((found,), _) = kernels([str(vmlinuz("amd64"))], str(tmp_path))
    assert Path(found.image).read_bytes() == vmlinuz("amd64").read_bytes()


def test_errors(tmp_path: Path) -> None:
    """One line that names the file and says what to do."""
    broken = tmp_path / "broken.deb"
    broken.write_bytes(kernel("amd64").read_bytes()[:3_000_000])
    text = tmp_path / "text"
    text.write_text("no kernel")
    (tmp_path / "empty").mkdir()
    for path, reason in (
        (broken, "ends in the middle of a file"),
        (text, "no kernel of x86-64"),
        (tmp_path / "nothing", "No such file or directory"),
        (tmp_path / "empty", "no kernel there"),
        (packages("headers")["kbuild"], "headers alone"),
    ):
        with pytest.raises(SplitlockError, match=rf"^--kernels.*{reason}.*; name a vmlinuz[^\n]*$") as caught:
            kernels([str(path)], str(tmp_path))
        assert caught.value.exit_code == 2


def test_headers(tmp_path: Path) -> None:
    """From packages beside the kernel; the same tree by its name; none for another release; a damaged package."""
    release = packages("headers")["headers"].name.partition("_")[0].removeprefix("linux-headers-")
    tree = headers(release, [str(kernel("amd64"))], str(tmp_path / "root"))
    assert tree == str(tmp_path / "root" / "usr" / "src" / f"linux-headers-{release}")
    assert headers(release, [tree], "") == tree
    assert headers(release, [str(tmp_path / "root")], "") == tree
    assert headers("1.2.3-none", [str(kernel("amd64"))], "") is None
    (tmp_path / f"linux-headers-{release}_1.deb").write_text("damaged")
    with pytest.raises(SplitlockError, match=r"--headers .*_1\.deb: .*; download it again"):
        headers(release, [str(tmp_path)], str(tmp_path / "other"))


def _vmlinux(release: str, bits: int = 64) -> bytes:
    """As much of a kernel as tells one."""
    note = b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0"
    return b"\x7fELF" + bytes([bits // 32]) + bytes(59) + b"Linux version " + release.encode() + b" (x) #1\n\0" + note


def _package(target: Path, name: str, depends: str, files: dict[str, bytes]) -> Path:
    """A package of Debian's kind."""
    tree = target / f"{name}.tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        f"Package: {name}\nVersion: 1\nArchitecture: amd64\nMaintainer: x <x@example.org>\nDescription: x\n"
        + (f"Depends: {depends}\n" if depends else "")
    )
    for path, content in files.items():
        (tree / path).parent.mkdir(parents=True)
        (tree / path).write_bytes(content)
    package = target / f"{name}_1_amd64.deb"
    subprocess.run(["dpkg-deb", "--build", tree, package], check=True, capture_output=True)
    shutil.rmtree(tree)
    return package


def test_packages_that_name_another(tmp_path: Path) -> None:
    """Two that hold nothing lead to the one with the kernel, if that is beside them; else its name is told."""
    place, other = tmp_path / "all", tmp_path / "alone"
    place.mkdir()
    other.mkdir()
    depends = "dracut | initramfs-tools (>= 0.1), linux-base-9.1 (= 1), linux-binary-9.1-amd64 (= 1), linux-modules-9.1"
    meta = _package(place, "linux-image-amd64", "linux-image-9.1-amd64 (= 1)", {})
    image = _package(place, "linux-image-9.1-amd64", depends, {})
    member = "usr/lib/modules/9.1-amd64/vmlinuz"
    binary = _package(place, "linux-binary-9.1-amd64", "", {member: _vmlinux("9.1-amd64")})
    for path in (meta, image, binary, place):
        ((found,), passed_over) = kernels([str(path)], str(tmp_path))
        assert (found.path, found.member, passed_over) == (str(binary), member, [])

    shutil.copy(image, other)
    with pytest.raises(SplitlockError, match=r"linux-image-9\.1-amd64_1_amd64\.deb: .* in linux-binary-9\.1-amd64"):
        kernels([str(other / image.name)], str(tmp_path))


def test_others_in_a_directory(tmp_path: Path) -> None:
    """A kernel of 32 bits, a text, half a package: named in the report, and the rest is measured."""
    place = tmp_path / "boot"
    place.mkdir()
    (place / "vmlinuz-good").write_bytes(_vmlinux("9.1-amd64"))
    (place / "vmlinux-686").write_bytes(_vmlinux("9.1-686", 32))
    (place / "vmlinuz-text").write_text("no kernel")
    (place / "linux-image-half.deb").write_bytes(kernel("amd64").read_bytes()[:3_000_000])
    ((found,), passed_over) = kernels([str(place)], str(tmp_path))
    assert found.path == str(place / "vmlinuz-good")
    assert [line.partition(": ")[0] for line in passed_over] == [
        str(place / name) for name in ("linux-image-half.deb", "vmlinux-686", "vmlinuz-text")
    ]
    (place / "vmlinuz-good").unlink()
    with pytest.raises(SplitlockError, match="name a vmlinuz"):
        kernels([str(place)], str(tmp_path))
