"""Cache lines, and operands that lie on two of them."""

from __future__ import annotations

CACHE_LINE = 64  # bytes; what split-lock detection looks at on every x86-64 CPU (SDM vol. 3A, 9.1.2.3)


def crosses(address: int, size: int) -> bool:
    """Whether `size` bytes at `address` lie on two cache lines."""
    return address % CACHE_LINE + size > CACHE_LINE


def past_line(address: int, size: int) -> int:
    """How many of `size` bytes at `address` lie on the second line; 0 when they do not cross."""
    return max(0, address % CACHE_LINE + size - CACHE_LINE)
