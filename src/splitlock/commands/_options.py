"""Values of options that more than one command has."""

from __future__ import annotations


def seconds(text: str) -> float:
    """A time, more than none. Raises ValueError, of which argparse makes its line."""
    value = float(text)
    if not 0 < value < 1e9:
        raise ValueError
    return value
