"""A split lock that resets the machine: it goes on in the machine's next life, and time does not go back."""

from __future__ import annotations

from pathlib import Path

import pytest
from guest.bochs.image import disc
from guest.conftest import Run

_BIOS = 1_000, 10_000  # milliseconds of the machine's, from power-on to the boot sector: some 3 s


@pytest.mark.usefixtures("emulator")
def test_reset(guest: Run, tmp_path: Path) -> None:
    """Two resets, and from each exception to the next execution a boot."""
    words = ["--vmx", "--cdrom", disc(tmp_path, "reset"), "-m", "32M", "--until", "oracle: done", "--duration", "60"]
    _, report = guest(*words)
    assert report["detection"]["resets"] == 2
    (site,) = report["sites"]
    assert (site["hits"], site["traps"], site["processor"]["delivered"], site["delays"]) == (3, 2, 2, 2)
    assert _BIOS[0] < site["delay_ms"] <= site["longest_delay_ms"] < _BIOS[1]
