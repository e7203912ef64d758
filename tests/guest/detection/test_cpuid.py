"""Does what an emulated processor says of itself hold together? The rules are the manuals', CPUID in SDM vol. 2A."""

from __future__ import annotations

import subprocess
from itertools import product
from pathlib import Path

import pytest
from guest.conftest import PROGRAMS

from splitlock.guest.detection import Detection, processor

Leaves = dict[int, tuple[int, int, int, int]]
DETECTIONS = [
    *(Detection(split, bus) for split, bus in product((False, True), (False, True))),
    *(Detection(bus_locks=bus, forward="once") for bus in (False, True)),
]
_DEADLINE = 60  # seconds


@pytest.fixture(scope="session")
def sector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk that boots into cpuid.S."""
    place = tmp_path_factory.mktemp("cpuid")
    subprocess.run(["gcc", "-m32", "-c", "-o", place / "object", PROGRAMS / "cpuid.S"], check=True)
    command = ["ld", "-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-e", "0x7c00"]
    subprocess.run([*command, "-o", place / "disk", place / "object"], check=True)
    with (place / "disk").open("r+b") as file:
        file.truncate(1 << 20)
    return place / "disk"


def _leaves(qemu: str, words: str, sector: Path) -> Leaves:
    command = [qemu, "-nodefaults", "-accel", "tcg", "-display", "none", "-m", "16M", "-cpu", f"max{words}",
               "-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4",
               "-drive", f"if=ide,format=raw,snapshot=on,file={sector}"]  # fmt: skip
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_DEADLINE
    )
    lines = [[int(word, 16) for word in line.split()] for line in done.stdout.splitlines()]
    assert len(lines) == 7, done.stderr
    return {leaf: (a, b, c, d) for leaf, a, b, c, d in lines}


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("detection", DETECTIONS, ids=str)
def test_holds_together(qemu: str, sector: Path, detection: Detection, slow: bool) -> None:
    """What a leaf announces has the leaves that it takes, and addresses are as wide as their tables are deep."""
    leaves = _leaves(qemu, processor(detection, slow=slow), sector)
    basic, extended = leaves[0][0], leaves[0x8000_0000][0]
    long_mode = leaves[0x8000_0001][3] >> 29 & 1
    svm, la57 = leaves[0x8000_0001][2] >> 2 & 1, leaves[7][2] >> 16 & 1
    assert long_mode
    assert basic >= 7
    assert extended >= 0x8000_0008  # address widths: every processor with long mode has them
    physical, linear = leaves[0x8000_0008][0] & 0xFF, leaves[0x8000_0008][0] >> 8 & 0xFF
    assert linear == (57 if la57 else 48)
    assert 36 <= physical <= 52
    assert not svm or extended >= 0x8000_000A  # AMD's manual, vol. 2, 15.30: SVM's own leaf
    vendor = b"".join(leaves[0][place].to_bytes(4, "little") for place in (1, 3, 2))
    if detection.split_locks or detection.bus_locks:
        assert (vendor, svm) == (b"GenuineIntel", 0)
        assert not leaves[1][2] >> 31  # no hypervisor: Linux would not use detection
