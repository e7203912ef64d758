"""The table of what Linux does, on every kernel, processor, mode and place. Rows by hand from docs/linux.md.

What real kernels did is in tests/model/test_measured.py and tests/host/test_judgement.py.
"""

from __future__ import annotations

from itertools import product

import pytest

from splitlock.linux.detection import FATES, PLACES, RULES, Armed, Kernel, Processor, Trap, boot, effect
from splitlock.linux.parameter import MODES
from splitlock.linux.versions import release

RELEASES = ("4.19.0", "5.6.0", "5.7.0", "5.12.0", "5.13.0", "5.14.0", "5.18.0", "5.19.0", "6.1.0", "6.2.0", "6.9.0",
            "6.10.0", "6.12.0", "6.13.0", "7.0.0", "7.1.0", "7.3.0")  # fmt: skip
BOTH, AC, DB, ZEN5 = Processor(True, True), Processor(True), Processor(False, True), Processor(False, True, amd=True)


TRAPS: tuple[Trap, ...] = ("#AC", "#DB")


def kernel(text: str) -> Kernel:
    found = release(text)
    assert found
    return Kernel(found)


def test_every_question_has_an_answer() -> None:
    """But for a #DB in the kernel, which never comes."""
    for text, mode, place, mitigate in product(RELEASES, MODES, PLACES, (True, False)):
        if place != "guest" or text not in ("4.19.0", "5.6.0"):  # KVM asks since 5.7
            assert effect(kernel(text), "#AC", mode, place, mitigate=mitigate).fate in FATES
        if place in ("program", "asking") and (mode, text) != ("ratelimit", "5.13.0"):
            assert effect(kernel(text), "#DB", mode, place, mitigate=mitigate).fate in FATES
    for place in ("kernel", "interrupt"):
        with pytest.raises(LookupError):
            effect(kernel("7.1.0"), "#DB", "warn", place)


def test_no_rule_is_dead() -> None:
    reached = {
        id(effect(kernel(text), trap, mode, place, mitigate=mitigate))
        for text, trap, mode, place, mitigate in product(RELEASES, TRAPS, MODES, PLACES, (True, False))
        if (trap == "#AC" and not (place == "guest" and text in ("4.19.0", "5.6.0")))
        or (trap == "#DB" and place in ("program", "asking"))
    }  # fmt: skip
    assert [rule for rule in RULES if id(rule.effect) not in reached] == []


@pytest.mark.parametrize(
    ("text", "processor", "value", "mode", "trap", "words"),
    [
        ("5.6.0", BOTH, "fatal", "off", None, ""),
        ("5.7.0", BOTH, None, "warn", "#AC", "warning about user-space split_locks"),
        ("5.12.0", AC, "ratelimit:9", "warn", "#AC", "warning about user-space split_locks"),
        ("5.12.0", DB, "warn", "off", None, ""),
        ("5.13.0", DB, None, "warn", "#DB", "#DB: warning on user-space bus_locks"),
        ("5.14.0", BOTH, "ratelimit:9", "ratelimit", "#DB", "#DB: setting system wide bus lock rate limit to 9/sec"),
        ("5.14.0", AC, "ratelimit:9", "ratelimit", None, ""),
        ("6.12.0", ZEN5, None, "off", None, "#DB: warning on user-space bus_locks"),  # said, and nothing is armed
        ("6.12.0", ZEN5, "fatal", "off", None, "#DB: sending SIGBUS on user-space bus_locks"),
        ("6.13.0", ZEN5, None, "warn", "#DB", "#DB: warning on user-space bus_locks"),
        ("7.0.0", BOTH, "off", "off", None, "disabled"),
        ("7.1.0", BOTH, "off", "off", None, ""),
        ("7.1.0", BOTH, "ratelimit:5000", "warn", "#AC",
         "#AC: crashing the kernel on kernel split_locks and warning on user-space split_locks"),
        ("7.1.0", Processor(), "fatal", "off", None, ""),
    ],
)  # fmt: skip
def test_boot(text: str, processor: Processor, value: str | None, mode: str, trap: str | None, words: str) -> None:
    found: Armed = boot(kernel(text), processor, value)
    assert (found.mode, found.trap) == (mode, trap)
    assert found.line == (f"x86/split lock detection: {words}" if words else "")
