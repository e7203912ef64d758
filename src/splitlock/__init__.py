"""Find, explain and control split locks on x86 Linux."""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["__version__"]
