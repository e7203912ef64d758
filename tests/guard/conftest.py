"""The toy modules, as the audit's tests build them."""

from modules.conftest import headers, toys

__all__ = ["headers", "toys"]
