"""What is a kernel to boot: packages, files, directories; and what is said of everything else."""

from __future__ import annotations

import re
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
    (found,) = kernels([str(kernel("amd64")), str(tree)], str(tmp_path))
    assert found.member == f"boot/vmlinuz-{found.release}"
    assert found.banner.startswith(f"Linux version {found.release} ")
    assert Path(found.image).read_bytes()[:4] == b"\x7fELF"


def test_without_pvh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be entered directly is booted as it is, or not at all."""
    (direct,) = kernels([str(vmlinuz("amd64"))], str(tmp_path))
    elf = Path(direct.image).read_bytes()
    assert len(module._PVH.findall(elf)) == 1
    (tmp_path / "vmlinux").write_bytes(module._PVH.sub(bytes(16), elf))
    with pytest.raises(SplitlockError, match="without CONFIG_PVH"):
        kernels([str(tmp_path / "vmlinux")], str(tmp_path))
    monkeypatch.setattr(module, "_PVH", re.compile(b"nowhere to be found"))
    (found,) = kernels([str(vmlinuz("amd64"))], str(tmp_path))
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
