"""Runs inside a guest: offers a refused module again and again while other modules are being judged, from a process
that takes the processor away from them at once.

    python3 preempt.py BAD GOOD SECONDS      prints {"tried": N, "refused": N, "other": {...}}
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from judged import judged  # type: ignore[import-not-found]  # beside this file, in the guest


def main() -> None:
    """BAD by one process of real-time priority, GOOD by four ordinary ones."""
    bad, good, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    end = time.monotonic() + seconds
    children = []
    for _ in range(4):
        child = os.fork()
        if not child:
            while time.monotonic() < end:
                judged(good)
            os._exit(0)
        children.append(child)
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
    came: dict[str, int] = {}
    tried = 0
    while time.monotonic() < end:
        time.sleep(0.001 + tried % 7 / 1000)
        said = str(judged(bad)["errno"])
        came[said] = came.get(said, 0) + 1
        tried += 1
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    for child in children:
        os.waitpid(child, 0)
    print(json.dumps({"tried": tried, "refused": came.pop("EPERM", 0), "other": came}))


if __name__ == "__main__":
    main()
