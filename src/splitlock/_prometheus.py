"""Counters served over HTTP for Prometheus, where prometheus-client is installed."""

from __future__ import annotations

import importlib

from splitlock._errors import SplitlockError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def serve(address: str, option: str) -> Any:
    """Serve the registry at `address`, HOST:PORT, of `option`; gives prometheus_client. Raises SplitlockError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or len(port) > 5 or int(port) > 65535:
        raise SplitlockError(f"{option} {address}: not HOST:PORT, such as 127.0.0.1:9417", 2)
    try:
        client = importlib.import_module("prometheus_client")
    except ImportError:
        raise SplitlockError(
            f"{option}: prometheus-client is not installed; pip install 'splitlock[metrics]'", 2
        ) from None
    try:
        client.start_http_server(int(port), host.strip("[]"))
    except OSError as error:
        raise SplitlockError(f"{option} {address}: {error.strerror or error}", 2) from None
    return client
