"""A QEMU on which detection does not work is refused before the guest begins: here its command line is altered."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from guest.conftest import command


@pytest.mark.parametrize(
    ("option", "edit", "said"),
    [
        ("--sld", "s/detect=split-locks/detect=once/", "is `#17 at`, not `completed`"),
        ("--sld", "s/detect=split-locks/detect=none/", "TEST_CTRL cannot be set"),
        ("--sld", "s/detect=split-locks/detect=split-locks+once/", "is `#17 at`, not `completed`"),
        ("--bus-lock", "s/detect=bus-locks/detect=none/", "CPUID does not show bus-lock detection"),
        ("--forward-ac", "s/detect=always/detect=asked/", "is `completed`, not `#17 at`"),
        ("--forward-ac", "s/detect=always/detect=none/", "is `completed`, not `#17 at`"),
    ],
)
def test_refused(tmp_path: Path, option: str, edit: str, said: str) -> None:
    """One line, which says what was found; exit status 2."""
    wrapper = tmp_path / "qemu"
    wrapper.write_text(f"#!/bin/sh\nset -f\nexec {shutil.which('qemu-system-x86_64')} $(echo \"$*\" | sed '{edit}')\n")
    wrapper.chmod(0o755)
    words = command("--qemu", wrapper, option, "--kernel", "/bin/true", "--duration", "5")
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_accepted(tmp_path: Path) -> None:
    """The same wrapper that changes nothing gets as far as the kernel, which is none."""
    words = command("--sld", "--kernel", "/bin/true", "--duration", "5")
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert "does not work" not in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--forward-ac", "--sld"], "--forward-ac: announces nothing"),
        (["--traps", "/dev/null"], "--traps: goes with --vmx, --sld"),
        (["--bus-lock", "--smp", "1"], "--bus-lock: needs --smp 2"),
        (["--sld", "--traps", "/none/x"], "--traps /none/x: No such file"),
    ],
)
def test_wrong_usage(words: list[str], said: str) -> None:
    """One line each."""
    done = subprocess.run(command("--kernel", "/bin/true", *words), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert said in done.stderr
