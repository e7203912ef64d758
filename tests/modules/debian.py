"""Debian's real kernels for tests: downloaded once by scripts/kernels.sh, unpacked once beside the packages."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STORE = Path(os.environ.get("SPLITLOCK_KERNELS", ROOT / "build" / "kernels"))


@cache
def packages(kind: str) -> dict[str, Path]:
    """The package files of a kind that scripts/kernels.sh knows.

    Where there are none to be had the test is skipped, but in continuous integration (CI is set) it fails.
    """
    done = subprocess.run([ROOT / "scripts" / "kernels.sh", STORE, kind], capture_output=True, text=True, check=False)
    if done.returncode:
        give_up = pytest.fail if os.environ.get("CI") else pytest.skip
        give_up(f"no kernel packages: {done.stderr.strip()}")
    return {what: Path(path) for what, path in (line.split(" ", 1) for line in done.stdout.splitlines())}


@cache
def unpacked(kind: str) -> Path:
    """A kernel package's contents."""
    package = packages(kind)[kind]
    target = STORE / f"unpacked-{package.stem}"
    if not target.exists():
        part = Path(tempfile.mkdtemp(dir=STORE))
        subprocess.run(["dpkg-deb", "-x", package, part], check=True)
        try:
            part.rename(target)
        except OSError:  # another process was quicker
            shutil.rmtree(part)
    return target


@cache
def modules(kind: str) -> dict[str, Path]:
    """A kernel's modules by file name, uncompressed ones only."""
    found = {path.name: path for path in sorted((unpacked(kind) / "lib" / "modules").rglob("*.ko"))}
    assert found
    return found


@cache
def vmlinuz(kind: str) -> Path:
    """A kernel's boot image."""
    root = unpacked(kind)  # since 7.0 it is where its modules will be
    (path,) = [*(root / "boot").glob("vmlinuz-*"), *root.glob("usr/lib/modules/*/vmlinuz")]
    return path
