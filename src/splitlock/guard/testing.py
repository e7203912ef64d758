"""What the gate says of a file that nobody loads: its own code, in user space, under its own configuration."""

from __future__ import annotations

import hashlib
import os
import time

from splitlock._errors import ImageError
from splitlock.guard import allowed, gate, layout
from splitlock.guard import judge as library
from splitlock.guard.config import build, words
from splitlock.guard.decisions import record
from splitlock.guard.state import load
from splitlock.image.module import KernelImage
from splitlock.linux.text import when
from splitlock.modules import policy as policies

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.modules.policy import Policy
    from splitlock.report.guard import Decision


class Rules:
    """What to judge by: a policy's name, or without one the running gate's configuration, else `refuse`.

    Raises SplitlockError for a policy that the gate cannot judge by.
    """

    def __init__(self, policy: str | None) -> None:
        self._policy: Policy | None = None
        self._listed: frozenset[str] = frozenset()
        if policy is None and os.geteuid() == 0 and gate.is_up():
            state = load()
            self._words = state.words if state else None
            self._config = gate.live_config()
            self._listed = frozenset(allowed.listed())
            return
        self._policy = policies.load(policy or "refuse")
        self._config = build(self._policy)
        self._words = words(self._policy)

    def judge(self, path: str) -> Decision:
        """What the gate says of a file: the running one, or one on the kernel that the module was built for.

        Raises SplitlockError where the file holds no module.
        """
        data = allowed.contents(path).data
        config = self._config
        if self._policy is not None and (release := _release(data)):
            config = build(self._policy, release=release)
        before = time.monotonic_ns()
        there = library.judge(data, config)
        there.duration = there.duration or time.monotonic_ns() - before
        digest = hashlib.sha256(data)
        there.digest[:], there.digested = digest.digest(), 1
        if digest.hexdigest() in self._listed and there.verdict == layout.REFUSE:
            there.allowed, there.refused = 1, 0
        there.pid, there.uid, there.comm = os.getpid(), os.getuid(), b"splitlock"
        return record(there, config, self._words, when(time.time()))


def _release(data: bytes) -> str:
    """The kernel that a module says it was built for, empty when it does not."""
    try:
        return KernelImage(data).modinfo.get("vermagic", [""])[0]
    except ImageError:
        return ""
