"""What the probe's tests share: its log in QEMU's TCG and in Bochs, run once."""

from __future__ import annotations

import pytest

from splitlock.guest.probe import emulator


@pytest.fixture(scope="session")
def tcg() -> bytes:
    """The serial log of a whole run in QEMU's TCG."""
    ran = emulator.qemu("tcg", emulator.QEMU, 60)
    assert ran.ended == ""
    return ran.log


@pytest.fixture(scope="session")
def bochs() -> bytes:
    """The serial log of a whole run in Bochs."""
    ran = emulator.bochs(emulator.BOCHS, 60)
    assert ran.ended == ""
    return ran.log
