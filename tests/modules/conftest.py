"""What several tests of the audit share, built once a session: toy modules, and VirtualBox's real files."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from modules.debian import packages
from modules.toys import build, make, unpack

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


@pytest.fixture(scope="session")
def headers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Debian's kernel headers, ready to build modules against."""
    return unpack(list(packages("headers").values()), tmp_path_factory.mktemp("headers"))


@pytest.fixture(scope="session")
def toys(headers: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The toy modules by name."""
    return build(headers, tmp_path_factory.mktemp("toys"))


@pytest.fixture(scope="session")
def virtualbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages virtualbox and virtualbox-dkms, found through package lists of the test's own."""
    place = tmp_path_factory.mktemp("virtualbox")
    wanted = ["Created-By: Packages", "Origin: Debian", "Component: main"]
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", *wanted]
    known = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    archives = [uri for uri in known if "security" not in uri]
    if not archives:
        pytest.skip("no Debian archive among this machine's sources")
    for directory in ("lists/partial", "cache/archives/partial"):
        (place / directory).mkdir(parents=True)
    (place / "sources").write_text(f"deb [signed-by={KEYRING}] {archives[0]} sid contrib\n")
    settings = {
        "Dir::Etc::sourcelist": place / "sources", "Dir::Etc::sourceparts": "/dev/null",
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


@pytest.fixture(scope="session")
def vboxdrv(virtualbox: Path, headers: Path) -> Path:
    """Its driver, built from its sources."""
    (source,) = (virtualbox / "usr/src").glob("virtualbox-*/vboxdrv")
    make(headers, source, jobs=os.cpu_count() or 1)
    return source / "vboxdrv.ko"
