"""The toy modules, as the audit's tests build them."""

from modules.conftest import headers, hypervisors, toys

__all__ = ["headers", "hypervisors", "toys"]
