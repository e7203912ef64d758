"""The kernel's symbols, as we read them from its image and as it tells them itself."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
from guest import boots
from guest.conftest import Run
from modules.debian import vmlinuz

from splitlock.image import kallsyms
from splitlock.image.bzimage import vmlinux

_SCRIPT = """grep -v '\\[' /proc/kallsyms >/tmp/symbols
echo told $(wc -l </tmp/symbols) $(md5sum </tmp/symbols)"""


@pytest.mark.parametrize(
    "kind", ["new", *(pytest.param(each, marks=pytest.mark.slow) for each in ("old", "amd64", "xz"))]
)
def test_as_the_kernel_tells_them(guest: Run, tmp_path: Path, kind: str) -> None:
    """/proc/kallsyms of a kernel that lies where it was linked to, line by line; and the guest's report knows it."""
    image = tmp_path / "vmlinux"
    image.write_bytes(vmlinux(vmlinuz(kind).read_bytes(), 1 << 30))
    initramfs = boots.initramfs(tmp_path / "initramfs", _SCRIPT, {})
    _, report = guest("--kernel", image, "--initrd", initramfs, "--append", "console=ttyS0 nokaslr quiet")
    told = re.search(r"told (\d+) (\w+)", report["console"])
    assert told is not None, report["console"][-2000:]

    names, addresses, kinds = kallsyms._read(image.read_bytes(), None)
    lines = [f"{address:016x} {k} {name}\n" for name, address, k in zip(names, addresses, kinds, strict=True)]
    assert (int(told[1]), told[2]) == (len(lines), hashlib.md5("".join(lines).encode()).hexdigest())
    assert report["watched"]["processes"]
    assert report["watched"]["kernel"] in vmlinuz(kind).resolve().as_posix()
