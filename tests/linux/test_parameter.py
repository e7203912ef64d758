"""split_lock_detect= as arch/x86/lib/cmdline.c and match_option() read it; each answer was worked out from these."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitlock.linux.parameter import Setting, find, setting

LINES = {
    "root=/dev/sda1 ro quiet": None,
    "split_lock_detect=off": "off",
    "split_lock_detect=off split_lock_detect=fatal": "fatal",  # the last one
    "split_lock_detect=off split_lock_detect=": "",
    '"split_lock_detect=off"': None,  # another word
    'split_lock_detect="off"': '"off"',
    'x="a split_lock_detect=off"': 'off"',  # quotes keep nothing together
    "a\tsplit_lock_detect=warn\x01b": "warn",  # whatever is not above a blank ends a word
    "-- split_lock_detect=off": "off",
    "xsplit_lock_detect=off split-lock-detect=off Split_lock_detect=off": None,
    "split_lock_detect": None,
}
VALUES = {
    "off": ("off", 0), "warn": ("warn", 0), "fatal": ("fatal", 0), "ratelimit:1": ("ratelimit", 1),
    "ratelimit:1000": ("ratelimit", 1000), "ratelimit:50x": ("ratelimit", 50), "ratelimit:": ("ratelimit", 0),
    "ratelimit:0005": ("ratelimit", 5),
}  # fmt: skip
NONE = ("", "OFF", "offf", "of", '"off"', "ratelimit", "ratelimit:0", "ratelimit:1001", "ratelimit:5000",
        "ratelimit:-5", "ratelimit:x", "ratelimit:+5", "1", "disabled")  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_find(line: str) -> None:
    assert find(line) == LINES[line]


@pytest.mark.parametrize("value", VALUES)
def test_values(value: str) -> None:
    found = setting(value)
    assert (found.mode, found.rate, found.ignored) == (*VALUES[value], "")


@pytest.mark.parametrize("value", NONE)
def test_no_mode_leaves_the_default(value: str) -> None:
    found = setting(value)
    assert (found.mode, found.rate) == ("warn", 0)
    assert found.ignored


def test_before_ratelimit() -> None:
    assert setting("ratelimit:5", ratelimit=False).mode == "warn"
    assert setting("fatal", ratelimit=False) == Setting("fatal")
    assert setting(None) == Setting("warn")


@given(st.text())
def test_any_text(text: str) -> None:
    setting(find(text))
    assert find(f"{text} split_lock_detect=off") == "off"
