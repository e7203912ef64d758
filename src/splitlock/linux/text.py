"""How are times, numbers and names that others wrote read and written? UTC as ISO 8601; a name ends no line."""

from __future__ import annotations

import datetime

_DIGITS = 18  # what fits in 64 bits, a signed number's too: nothing in /proc is larger, and JSON holds no more


def when(seconds: float, precision: str = "microseconds") -> str:
    """Seconds since 1970 as UTC, ISO 8601; `precision`: microseconds or milliseconds."""
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.isoformat(timespec=precision).replace("+00:00", "Z")


def one_line(text: str) -> str:
    """A name that others chose, with `?` for what is no printable character."""
    return "".join(c if c.isprintable() else "?" for c in text)


def number(text: str) -> int | None:
    """A number that others wrote, decimal; None: it is none. Below 10**18, in ASCII digits and nothing else.

    str.isdigit() takes digits of all scripts, and superscripts, which int() does not; int() takes blanks, signs and _,
    and raises ValueError beyond 4300 digits.
    """
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _DIGITS else None
