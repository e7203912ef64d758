"""What the command `splitlock` (front/) has to know of this installation, written down in the user's cache."""

from __future__ import annotations

import os
import sys

from splitlock.process.agent import memory
from splitlock.process.agent.named import VERSION
from splitlock.process.cache import SHARED, key_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.process.cache import Cache

_PYTHON = "splitlock-python"


def remember(cache: Cache, agent: str) -> None:
    """Write it down where it is not yet, or no longer true. Nothing fails for want of it: Python then does it all."""
    script = os.path.abspath(sys.argv[0])
    if os.path.basename(script) != _PYTHON or cache.directory is None:
        return
    try:
        text = _text(os.path.join(os.path.dirname(script), "splitlock"), agent)
    except OSError:  # there is no front
        return
    try:
        descriptor = os.open(os.path.join(cache.directory, "place"), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            is_true = file.read() == text
    except OSError:
        is_true = False
    if not is_true:
        cache.put("place", text)


def _text(front: str, agent: str) -> bytes:
    from splitlock.process.elsewhere import HANDS_OVER, ONE_FOR_ALL

    lines = [
        f"versions {memory.VERSION} {VERSION}",
        f"front {_key(front)}",
        f"agent {_key(agent)} {agent}",
        f"shared {SHARED}",
        *(f"name {name}" for name in (*HANDS_OVER, *sorted(ONE_FOR_ALL))),
        "end",
    ]
    return os.fsencode("".join(f"{line}\n" for line in lines))


def _key(path: str) -> str:
    return "-".join(f"{number:x}" for number in key_of(os.stat(path)))
