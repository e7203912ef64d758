"""What the tests of detection share: programs, modules for 6.1, and a guest that runs a script of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from guard import ways
from guard.machine import Kernel
from guest import boots
from guest.conftest import PROGRAMS, SHARED, Run
from modules.debian import unpacked

Boot = Callable[..., dict[str, Any]]
_KVM = ("ccp.ko", "irqbypass.ko", "kvm.ko", "kvm-amd.ko")


@pytest.fixture(scope="session")
def inside(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files for inside, by name: programs, our modules, Debian's for KVM and MSRs."""
    place = tmp_path_factory.mktemp("inside")
    sources = [
        SHARED / "demo.c",
        *(PROGRAMS / f"{name}.c" for name in ("forms", "faults", "processor", "nested", "wander")),
    ]
    found = {source.stem: boots.compiled(source, place / source.stem, f"-I{SHARED}") for source in sources}
    for name in ("splitmod", "formsmod", "oopsmod"):
        (place / f"{name}.build").mkdir()
        found[f"{name}.ko"] = boots.module(PROGRAMS / f"{name}.c", place / f"{name}.build", ways.headers("amd64"))
    debian = {path.name: path for path in unpacked("amd64").rglob("*.ko")}
    return {**found, **{name: debian[name] for name in (*_KVM, "msr.ko")}}


@pytest.fixture
def boot(guest: Run, debian: Kernel, inside: dict[str, Path], tmp_path: Path) -> Boot:
    """`boot(script, option, ..., append="...")`: Debian's 6.1 with the files in /, to its end; gives the report."""

    def run(script: str, *words: object, append: str = "", timeout: float = 200) -> dict[str, Any]:
        names = set(script.replace("/", " ").split())
        files = {name: path for name, path in inside.items() if name in names}
        initramfs = boots.initramfs(tmp_path / "initramfs", script, files)
        kernel = ["--kernel", debian.image, "--initrd", initramfs, "--append", f"console=ttyS0 {append}"]
        return guest(*kernel, *words, timeout=timeout)[1]

    return run


def sites(report: dict[str, Any], comm: str) -> list[dict[str, Any]]:
    """The sites of programs of a name."""
    return [site for site in report["sites"] if site["comm"] == comm]
