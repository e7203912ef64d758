"""Lines of real kernels on processors that detect: `watch` and `explain` name the instruction that took them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from guard.machine import Kernel, kernel
from guest import boots

SPLITLOCK = [sys.executable, "-m", "splitlock"]
SHARED = Path(__file__).parents[1] / "programs"


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Static and linked to fixed addresses: the log's address is the file's."""
    return boots.compiled(SHARED / "demo.c", tmp_path_factory.mktemp("demo") / "demo", f"-I{SHARED}", "-no-pie")


@pytest.fixture(scope="session")
def debian() -> Kernel:
    return kernel("amd64")


@pytest.mark.parametrize(
    ("option", "mode", "kind"),
    [
        ("--sld", "warn", "trap"),
        pytest.param("--bus-lock", "warn", "trap", marks=pytest.mark.slow),
        pytest.param("--sld", "fatal", "killed", marks=pytest.mark.slow),
        pytest.param("--sld", "off", None, marks=pytest.mark.slow),
    ],
)
def test_console(tmp_path: Path, debian: Kernel, demo: Path, option: str, mode: str, kind: str | None) -> None:
    """What Debian's 6.1 prints in each mode, from `splitlock guest`'s processor with detection."""
    initramfs = boots.initramfs(tmp_path / "initramfs", "demo 3", {"demo": demo})
    words = [
        "--kernel",
        debian.image,
        "--initrd",
        initramfs,
        option,
        "--append",
        f"console=ttyS0 split_lock_detect={mode}",
    ]
    guest = subprocess.run(
        [*SPLITLOCK, "guest", "-o", tmp_path / "report", *map(str, words)],
        capture_output=True,
        timeout=120,
        check=False,
    )
    console = tmp_path / "console"
    console.write_bytes(guest.stderr + guest.stdout)
    done = subprocess.run(
        [*SPLITLOCK, "watch", "--format", "json", console], capture_output=True, text=True, timeout=60, check=False
    )
    *events, summary = [json.loads(line) for line in done.stdout.splitlines()]
    assert summary["mode"] == mode, console.read_text(errors="replace")[-3000:]
    found = [event for event in events if event["kind"] != "mode"]
    if kind is None:  # there were split locks, and nobody was told of them: such a log proves nothing
        assert (found, done.returncode) == ([], 2)
        assert "detection is off: nothing is ever logged" in summary["doubts"]
        return
    assert done.returncode == 1
    assert {event["kind"] for event in found} <= {kind, "suppressed"}
    line = next(event for event in found if event["kind"] == kind)
    assert (line["comm"], line["exception"]) == ("demo", "#DB" if option == "--bus-lock" else "#AC")
    explained = subprocess.run(
        [*SPLITLOCK, "explain", "--image", demo, "--format", "json", line["text"]],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert explained.returncode == 0, explained.stdout + explained.stderr
    place = json.loads(explained.stdout)["place"]
    assert place["function"] == "bump"
    assert place["instruction"].startswith("lock add dword ptr")
    assert place["source"].endswith("demo.c:23")
