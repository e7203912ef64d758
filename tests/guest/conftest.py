"""What the guest tests share: programs and initramfs built once a session, and `splitlock guest` run to a report."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from guard import ways
from guard.machine import STORE, Kernel, kernel
from guest import boots
from modules.debian import ROOT, unpacked

from splitlock.guest.bochs.emulator import BUILD, Emulator, find

PROGRAMS = Path(__file__).parent / "programs"
SHARED = ROOT / "tests" / "programs"
SCHEMA = json.loads((ROOT / "docs" / "guest.schema.json").read_text())
Run = Callable[..., tuple[int, dict[str, Any]]]


def command(*words: object) -> list[str]:
    """The command line of `splitlock guest`."""
    return [sys.executable, "-m", "splitlock", "guest", *map(str, words)]


@pytest.fixture
def guest(tmp_path: Path) -> Run:
    """`guest(option, ...)`: exit status and report. The console is in `report["console"]`."""

    def run(*words: object, timeout: float = 120) -> tuple[int, dict[str, Any]]:
        target = tmp_path / "report.json"
        done = subprocess.run(
            command("--format", "json", "-o", target, *words), capture_output=True, timeout=timeout, check=False
        )
        console = done.stderr.decode(errors="replace")
        report: dict[str, Any] = json.loads(target.read_text()) if target.exists() else {}
        assert done.returncode in (0, 1) or (done.returncode == 2 and report.get("ready", True) is None), console
        jsonschema.validate(report, SCHEMA)
        report["console"] = console
        return done.returncode, report

    return run


@pytest.fixture(scope="session", params=["7.2", "10.0"])
def qemu(request: pytest.FixtureRequest) -> str:
    """QEMU with the oldest and with the newest plugin interface: Debian's own, and that of its backports."""
    if request.param == "7.2":
        return "qemu-system-x86_64"
    done = subprocess.run([ROOT / "scripts" / "qemu.sh", STORE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="session")
def emulator() -> Emulator:
    """Bochs with our library. Skips the test, with the reason, where it cannot be built."""
    done = subprocess.run(["sh", BUILD], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no emulator: {done.stderr.strip()}")
    return find()


@pytest.fixture(scope="session")
def debian() -> Kernel:
    """Debian's 6.1."""
    return kernel("amd64")


@pytest.fixture(scope="session")
def cloud() -> Kernel:
    """Debian's 6.12, of the cloud flavour."""
    return kernel("xz")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The programs, by name."""
    place = tmp_path_factory.mktemp("built")
    for source in (SHARED / "demo.c", PROGRAMS / "many.c", PROGRAMS / "nested.c"):
        boots.compiled(source, place / source.stem, f"-I{SHARED}")
    bare = ["gcc", "-m32", "-nostdlib", "-static"]
    subprocess.run([*bare, "-o", place / "split32", PROGRAMS / "split32.S"], check=True)
    for name, base, flags in (("sector", "0x7c00", []), ("firmware", "0", ["-DFIRMWARE"])):
        subprocess.run([*bare, "-c", *flags, "-o", place / "object", PROGRAMS / "bootsector.S"], check=True)
        link: list[str | Path] = [
            "ld",
            "-m",
            "elf_i386",
            "-Ttext",
            base,
            "--oformat",
            "binary",
            "-o",
            place / name,
            place / "object",
        ]
        subprocess.run(link, check=True)
    with (place / "sector").open("r+b") as file:
        file.truncate(1 << 20)  # a BIOS boots from no disk of one sector
    return {path.name: path for path in place.iterdir()}


@pytest.fixture(scope="session")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """splitmod.ko for 6.12."""
    return boots.module(PROGRAMS / "splitmod.c", tmp_path_factory.mktemp("splitmod"), ways.headers("xz"))


@pytest.fixture(scope="session")
def small(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initramfs that runs programs, and a guest in the guest where kvm-amd is there."""
    modules = {path.name: path for path in unpacked("amd64").rglob("*.ko")}
    kvm = ("ccp.ko", "irqbypass.ko", "kvm.ko", "kvm-amd.ko")
    script = "demo 3000\nmany\nsplit32\nfor each in ccp irqbypass kvm kvm-amd; do insmod /$each.ko; done\nnested 20000"
    files = {name: built[name] for name in ("demo", "many", "split32", "nested")}
    target = tmp_path_factory.mktemp("small") / "initramfs"
    return boots.initramfs(target, script, {**files, **{name: modules[name] for name in kvm}})
