"""`#AC` in system management mode: bit 29 of TEST_CTRL holds there, too, and the report says whose it was.

"Since kernel doesn't know when SMI comes, it's impossible for kernel to disable split lock #AC before entering SMI. So
SMI handler may inherit kernel's split lock setting" (Intel's patch of 14 May 2018, "x86/split_lock: Enable #AC
exception for split locked accesses"). On this processor the handler of smm.c counts.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from guest.bochs.image import disc
from guest.conftest import Run


@pytest.mark.usefixtures("emulator")
def test_smm(guest: Run, tmp_path: Path) -> None:
    """Executed without detection; with it not, and its handler is called, there."""
    words = ["--vmx", "--cdrom", disc(tmp_path, "smm"), "-m", "32M", "--until", "oracle: done", "--duration", "60"]
    _, report = guest(*words)
    said = re.findall(r"^smm: (\d+) (\d+)\r?$", report["console"], re.M)
    assert said == [("1", "0"), ("0", "1")], report["console"][-500:]
    (site,) = report["sites"]
    assert (site["where"], site["mode"], site["hits"], site["traps"]) == ("firmware", 16, 1, 1)
    assert int(site["address"], 16) >> 12 == 0xA8
    processor = site["processor"]
    assert (processor["place"], processor["cpl"], processor["delivered"], processor["exits"]) == ("no VMX", 0, 1, 0)
