"""A disk as a cloud boots it, boot loader included: clean it is clean, and what is put into it is named."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from guest import images
from guest.conftest import Run

pytestmark = pytest.mark.slow


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.mark.parametrize(("firmware", "hits"), [([], 0), (["--firmware", "ovmf"], 2)])
def test_clean(guest: Run, tmp_path: Path, firmware: list[str], hits: int) -> None:
    """By BIOS and by UEFI up to the prompt. Firmware runs before detection does: the image is ready all the same."""
    image = images.disk(tmp_path / "clean.img")
    before = _digest(image)
    _, report = guest("--disk", image, *firmware, "--until", "login:", "--duration", 280, timeout=320)
    assert report["watched"]["end"] == "until"
    assert report["watched"]["kernel"].endswith("cloud-amd64")
    assert (report["hits"], report["ready"]) == (hits, True)
    assert {site["where"] for site in report["sites"]} <= {"firmware"}
    assert _digest(image) == before


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_program_and_module(guest: Run, built: dict[str, Path], module: Path, tmp_path: Path, kind: str) -> None:
    """Both with their names, the program's function and line out of the image."""
    run = tmp_path / "run"
    run.write_text("#!/bin/sh\ninsmod /payload/splitmod.ko count=4321\n/payload/demo 1000000\n")
    image = images.disk(
        tmp_path / "split.img", {"run": run, "splitmod.ko": module, "demo": built["demo"]}, "nokaslr pti=on"
    )
    if kind == "qcow2":
        image = images.converted(image, tmp_path / "split.qcow2")
    before = _digest(image)
    status, report = guest("--disk", image, "--duration", 500, timeout=560)
    assert status == 1
    assert report["watched"]["end"] == "power off"
    program, loaded = report["sites"]
    assert (program["hits"], program["comm"], program["image"]) == (1_000_000, "demo", "/payload/demo")
    assert program["function"] == "bump"
    assert program["source"].rpartition("/")[2] == "demo.c:23"
    assert (loaded["hits"], loaded["where"], loaded["image"]) == (4321, "module", "splitmod")
    assert report["unwatched"] == []
    assert _digest(image) == before


@pytest.mark.parametrize("option", ["--sld", "--bus-lock"])
def test_with_detection(guest: Run, built: dict[str, Path], tmp_path: Path, option: str) -> None:
    """All of a distribution's user space runs on such processors, five levels of page tables and all."""
    run = tmp_path / "run"
    run.write_text("#!/bin/sh\nreadlink /proc/self/exe\n/payload/demo 3\n")
    image = images.disk(tmp_path / "split.img", {"run": run, "demo": built["demo"]})
    _, report = guest("--disk", image, option, "--duration", 500, timeout=560)
    assert report["watched"]["end"] == "power off"
    assert "requests served: 3" in report["console"]
    (site,) = [site for site in report["sites"] if site["comm"] == "demo"]
    assert (site["hits"], site["image"]) == (3, "/payload/demo")
