"""A console's lines: init's and the kernel's, in order, whatever else comes with them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as some

from splitlock.guest.matrix.log import Log

CONSOLE = b"""SeaBIOS\x1b[2J\xff
[    0.000000] Linux version 6.1.0\r
[    0.000000] Command line: split_lock_detect=warn splitlock=user\r
[    0.000000] x86/split lock detection: #AC: crashing the kernel on kernel split_locks and more\r
[    3.1][    T1] splitlock-matrix: ready split_lock_detect=0x0000000000000001 bus_lock_detect=0x0000000000000000\r
[    3.200000] splitlock-matrix: begin user\r
[    3.300000] x86/split lock detection: #AC: user/85 took a split_lock trap at address: 0x40111b\r
[    3.400000] splitlock-matrix: took user ns=0x0000000001163bbd executed=0x0000000000000001\r
[    3.400000] splitlock-matrix: took other ns=0x0000000000000001\r
[    3.400000] splitlock-matrix: took user ns=nothing ns=0x1 executed\r
[    3.500000] splitlock-matrix: end user status=0x0000000000000000 killed=0x0000000000000007 oops=0x0000000000000000\r
[    3.600000] splitlock-matrix: begin module\r
[    3.700000] Split lock detected\r
[    3.700000] : 0000 [#1] PREEMPT SMP PTI\r
[    3.800000] Kernel panic - not syncing: Fatal exception in interr"""


def test_console() -> None:
    """Each line where it belongs; the last one is torn off."""
    log = Log(CONSOLE)
    assert len(log.boot) == 1
    assert log.ready == {"split_lock_detect": 1, "bus_lock_detect": 0}
    user, module = log.kinds
    assert (user.kind, user.ended, user.oops, user.panic, user.warnings) == ("user", True, False, False, 1)
    assert user.said("took") == [{"ns": 0x1163BBD, "executed": 1}, {"ns": "nothing"}]
    assert (module.kind, module.ended, module.oops, module.panic) == ("module", False, True, True)
    assert module.log[0] == "Split lock detected"


@given(some.binary(), some.integers(0, len(CONSOLE)), some.integers(0, 200))
def test_garbage(noise: bytes, at: int, lost: int) -> None:
    """Anything may come in between, and anything be lost: it is read all the same."""
    for told in Log(CONSOLE[:at] + noise + CONSOLE[at + lost :]).kinds:
        assert told.warnings <= len(told.log)
        assert all(isinstance(fields, dict) for fields in told.said("took"))
