"""The tables of the article's facts, reproduced."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitlock.linux.often import Heard
from splitlock.linux.parameter import Mode
from splitlock.model.cpu import Access, Processor
from splitlock.model.kernel import Linux, Locks, boot, limited_ms, windows
from splitlock.model.machine import Host, native

AC, DB, BOTH = Processor(True), Processor(False, True), Processor(True, True)


def linux(mode: Mode, release: str = "6.1", *, mitigate: bool = True) -> Linux:
    return Linux.of(release, "ratelimit:10" if mode == "ratelimit" else mode, mitigate)


def fate(processor: Processor, mode: Mode, access: Access, mitigate: bool = True) -> str:
    return native(Host(processor, linux(mode, mitigate=mitigate)), access, Locks()).fate


@pytest.mark.parametrize(
    ("mode", "by_ac", "by_db", "kernel"),
    [
        ("off", "executed", "executed", "executed"),
        ("warn", "slowed", "executed", "oops"),
        ("fatal", "sigbus", "sigbus", "oops"),
        ("ratelimit", "executed", "executed", "executed"),
    ],
)
def test_the_parameter(mode: Mode, by_ac: str, by_db: str, kernel: str) -> None:
    assert fate(AC, mode, Access()) == by_ac
    assert fate(DB, mode, Access()) == by_db
    assert fate(AC, mode, Access("kernel")) == kernel
    assert fate(DB, mode, Access("kernel")) == "executed"  # user mode only


def test_mitigate() -> None:
    assert fate(AC, "warn", Access(), mitigate=False) == "executed"


def test_who_sets_eflags_ac() -> None:
    assert fate(AC, "warn", Access(ac=True)) == "sigbus"


@pytest.mark.parametrize(
    ("processor", "mode", "line"),
    [
        (AC, "warn", "#AC: crashing the kernel on kernel split_locks and warning on user-space split_locks"),
        (BOTH, "fatal", "#AC: crashing the kernel on kernel split_locks and sending SIGBUS on user-space split_locks"),
        (DB, "warn", "#DB: warning on user-space bus_locks"),
        (DB, "ratelimit", "#DB: setting system wide bus lock rate limit to 10/sec"),
        (AC, "ratelimit", ""),
        (AC, "off", "disabled"),
        (Processor(), "fatal", ""),
    ],
)
def test_boot(processor: Processor, mode: Mode, line: str) -> None:
    assert boot(linux(mode), processor).line == (line and f"x86/split lock detection: {line}")


@pytest.mark.parametrize(("mode", "words"), [("off", "disabled"), ("warn", "warning about user-space split_locks"),
                                             ("fatal", "sending SIGBUS on user-space split_locks"),
                                             ("ratelimit", "warning about user-space split_locks")])  # fmt: skip
def test_boot_before_bus_locks(mode: Mode, words: str) -> None:
    """5.7 to 5.12 have other words, and take `ratelimit` for the default."""
    assert boot(linux(mode, "5.12"), BOTH).line == f"x86/split lock detection: {words}"


def test_lines() -> None:
    locks = Locks(comm="CHTTPClientThread", pid=19782, address=0xF323A094)
    step = native(Host(DB, Linux.of("6.1")), Access(), locks).steps[-1]
    line = "x86/split lock detection: #DB: CHTTPClientThre/19782 took a bus_lock trap at address: 0xf323a094"
    assert step.log == line
    step = native(Host(AC, Linux.of("6.1")), Access(), locks).steps[-1]
    assert step.log == line.replace("#DB", "#AC").replace("bus_lock", "split_lock")
    again = locks._replace(heard=Heard())
    said = [native(Host(AC, Linux.of("6.1")), Access(), again).steps[-1].log for _ in range(3)]
    assert said == [step.log, "", ""]  # once a task


def test_misery() -> None:
    """Sleep 10 ms, one core at a time, detection back on after 2 jiffies."""
    step = native(Host(AC, Linux.of("6.1", hz=250)), Access(), Locks()).steps[-1]
    assert (step.milliseconds, step.alone_milliseconds) == (10, 8)
    seldom = native(Host(AC, Linux.of("6.1", hz=1000)), Access(), Locks(number=15, every_ms=50)).steps[-1]
    assert (seldom.milliseconds, seldom.alone_milliseconds) == (150, 30)


@given(st.integers(1, 300), st.integers(1, 1000), st.floats(0, 500))
def test_ratelimit(number: int, rate: int, every: float) -> None:
    """Never more than the rate in a window; waits are whole steps of 20 ms."""
    waited = limited_ms(number, rate, every)
    assert waited % 20 == 0
    assert waited + 1000 >= (number / rate - 1) * 1000 - number * every
    assert waited == 0 or number > rate
    assert limited_ms(rate, rate, every) == 0


@given(st.integers(1, 100_000), st.floats(0.1, 1000), st.floats(0, 1000))
def test_windows(number: int, window: float, every: float) -> None:
    rounds = windows(number, window, every)
    assert 1 <= rounds <= number
    assert every <= window or rounds == number
