"""Toy modules, built for real against Debian's kernel headers, which are unpacked and not installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

SOURCES = Path(__file__).parent
NAMES = sorted(source.stem for source in SOURCES.glob("*.c"))
COMPILER = "gcc-12"  # what Debian 12's kernels are built with


def unpack(packages: list[Path], directory: Path) -> Path:
    """The build directory of the headers for amd64, out of the packages linux-headers-*, -common and linux-kbuild."""
    for package in packages:
        subprocess.run(["dpkg-deb", "-x", package, directory], check=True)
    sources = directory / "usr" / "src"
    (headers,) = (path for path in sources.glob("linux-headers-*-amd64") if path.is_dir())
    makefile = headers / "Makefile"
    makefile.write_text(makefile.read_text().replace("/usr/src/", f"{sources}/"))
    return headers


def build(headers: Path, directory: Path) -> dict[str, Path]:
    """All toys, built in `directory`: their .ko files by name."""
    for path in SOURCES.iterdir():
        if path.suffix in {".c", ".h"}:
            shutil.copy(path, directory)
    (directory / "Kbuild").write_text("".join(f"obj-m += {name}.o\n" for name in NAMES))
    make(headers, directory, jobs=os.cpu_count() or 1)
    return {name: directory / f"{name}.ko" for name in NAMES}


def make(headers: Path, directory: Path, jobs: int) -> None:
    """Build the modules whose Kbuild or Makefile is in `directory`."""
    # without BTF of their own, which takes pahole
    variables = [f"M={directory}", f"CC={COMPILER}", "CONFIG_DEBUG_INFO_BTF_MODULES="]
    command = ["make", "-s", f"-j{jobs}", "-C", str(headers), *variables, "modules"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
