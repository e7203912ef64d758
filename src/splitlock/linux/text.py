"""How are times and foreign names written in one line? UTC as ISO 8601; nothing in a name ends the line."""

from __future__ import annotations

import datetime


def when(seconds: float, precision: str = "microseconds") -> str:
    """Seconds since 1970 as UTC, ISO 8601; `precision`: microseconds or milliseconds."""
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.isoformat(timespec=precision).replace("+00:00", "Z")


def one_line(text: str) -> str:
    """A name that others chose, with `?` for what is no printable character."""
    return "".join(c if c.isprintable() else "?" for c in text)
