"""What several tests of the audit share, built once a session: toy modules, and VirtualBox's real files."""

from __future__ import annotations

from pathlib import Path

import pytest
from modules.debian import packages
from modules.hypervisors import NAMES as HYPERVISORS
from modules.hypervisors import build as build_hypervisors
from modules.toys import build, unpack
from modules.virtualbox import driver
from modules.virtualbox import packages as packages_of_virtualbox


@pytest.fixture(scope="session")
def headers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Debian's kernel headers, ready to build modules against."""
    return unpack(list(packages("headers").values()), tmp_path_factory.mktemp("headers"))


@pytest.fixture(scope="session")
def toys(headers: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The toy modules by name."""
    return build(headers, tmp_path_factory.mktemp("toys"))


@pytest.fixture(scope="session")
def hypervisors(headers: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """blind, which runs, and its variants by name."""
    return build_hypervisors(headers, tmp_path_factory.mktemp("hypervisors"), HYPERVISORS)


@pytest.fixture(scope="session")
def virtualbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages virtualbox and virtualbox-dkms."""
    return packages_of_virtualbox(tmp_path_factory.mktemp("virtualbox"))


@pytest.fixture(scope="session")
def vboxdrv(virtualbox: Path, headers: Path) -> Path:
    """Its driver, built from its sources."""
    return driver(virtualbox, headers)
