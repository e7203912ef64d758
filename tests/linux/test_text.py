"""Numbers that others wrote: the oracle is int(), asked only for what ASCII's ten digits make."""

from __future__ import annotations

import sys

import pytest

from splitlock.linux.text import number


def test_every_character() -> None:
    """Of all that Unicode has, ten characters are digits here."""
    kept = [c for c in map(chr, range(sys.maxunicode + 1)) if number(c) is not None]
    assert "".join(kept) == "0123456789"


@pytest.mark.parametrize(
    "text", ["", "-1", "+1", "1_0", " 1", "1 ", "1\n", "0x1", "1.0", "²", "1²", "\udcff", "\0", "9" * 5000]
)
def test_no_number(text: str) -> None:
    assert number(text) is None


@pytest.mark.parametrize("digits", range(1, 40))
def test_what_json_can_hold(digits: int) -> None:
    """Signed 64 bits."""
    found = number("9" * digits)
    assert (found is None) == (digits > 18)
    assert found is None or 0 <= found == 10**digits - 1 < 1 << 63
