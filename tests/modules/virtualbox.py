"""VirtualBox's real files, from Debian sid's contrib: its packages, and its driver built from their sources."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from modules.debian import ROOT
from modules.toys import make


def packages(place: Path) -> Path:
    """The packages virtualbox and virtualbox-dkms, unpacked in `place`; found through package lists of its own."""
    found = subprocess.run(
        [ROOT / "src/splitlock/guest/bochs/sources.py", "sid", "contrib"], capture_output=True, text=True, check=False
    )
    if found.returncode:
        pytest.skip(found.stderr.strip())
    for directory in ("lists/partial", "cache/archives/partial"):
        (place / directory).mkdir(parents=True)
    (place / "debian.sources").write_text(found.stdout)
    settings = {
        "Dir::Etc::sourcelist": place / "debian.sources", "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": place / "lists", "Dir::Cache": place / "cache", "APT::Sandbox::User": "root",
    }  # fmt: skip
    apt = ["apt-get", "-qq", *(word for key, value in settings.items() for word in ("-o", f"{key}={value}"))]
    for words in (["update"], ["download", "virtualbox", "virtualbox-dkms"]):
        done = subprocess.run([*apt, *words], cwd=place, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no VirtualBox to be had: {done.stderr.strip()}")
    for package in place.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, place], check=True)
    return place


def driver(place: Path, headers: Path) -> Path:
    """vboxdrv.ko, built in `place` of `packages`."""
    (source,) = (place / "usr/src").glob("virtualbox-*/vboxdrv")
    make(headers, source, jobs=os.cpu_count() or 1)
    return source / "vboxdrv.ko"
