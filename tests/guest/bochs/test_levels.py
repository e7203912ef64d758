"""Is a split lock a guest's, or one of a guest's guest? The hypervisor of levels.c knows."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from guest.bochs.image import disc
from guest.conftest import Run

_IN_ORDER = ["guest", "nested", "guest", "guest", "nested", "nested", "guest", "guest"]  # as levels.c has them


@pytest.mark.usefixtures("emulator")
def test_levels(guest: Run, tmp_path: Path) -> None:
    """A VMCS is of the second level from its first entry, behind a guest's VMLAUNCH, to its VMCLEAR or VMXOFF."""
    traps = tmp_path / "traps"
    words = ["--vmx", "--cdrom", disc(tmp_path, "levels"), "-m", "32M", "--until", "oracle: done", "--traps", traps]
    _, report = guest(*words, "--duration", "60")
    assert report["console"].splitlines()[-1].endswith("oracle: done"), report["console"][-500:]
    told = [json.loads(line) for line in traps.read_text().splitlines()]
    assert [line["place"] for line in told if "trap" in line] == _IN_ORDER
    counts: Counter[str] = Counter()
    for site in report["sites"]:
        counts[site["processor"]["place"]] += site["traps"]
    assert counts == {"guest": _IN_ORDER.count("guest"), "nested guest": _IN_ORDER.count("nested")}
