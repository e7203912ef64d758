"""The supervisor's side of tracers (traced.py): started when an agent asks for one, and read in the end."""

from __future__ import annotations

import os
import sys

from splitlock.process.agent import memory as shared

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from splitlock.process.agent.memory import Door, Memory
    from splitlock.process.agent.traced import Found
    from splitlock.process.policy import Policy


class _Started:
    """A tracer: its process, the file that it writes to in the end, and the door that it was started for."""

    def __init__(self, pid: int, file: int, door: Door) -> None:
        self.pid, self.file, self.door = pid, file, door
        self.ended = False


class Tracers:
    """Those of one run."""

    def __init__(self, memory: Memory, policy: Policy, quiet: bool, verbose: bool) -> None:
        self._memory, self._policy, self._quiet, self._verbose = memory, policy, quiet, verbose
        self._started: list[_Started] = []
        self._answered: set[tuple[int, int]] = set()

    def look(self) -> None:
        """Start one wherever an agent asks; where one has ended before it could answer, the agent need not wait."""
        for tracer in self._started:
            if not tracer.ended and os.waitpid(tracer.pid, os.WNOHANG)[0]:
                tracer.ended = True
                door = self._memory.door(tracer.door.number)
                if door.tid == tracer.door.tid and door.state in (shared.KNOCKED, shared.THERE, shared.ALLOWED):
                    self._memory.set_door(door.number, shared.UNABLE)
        for number in range(shared.DOORS):
            door = self._memory.door(number)
            if door.state != shared.KNOCKED:
                self._answered.discard((number, door.tid))
            elif (number, door.tid) not in self._answered:
                self._answered.add((number, door.tid))
                try:
                    self._start(door)
                except OSError:
                    self._memory.set_door(number, shared.UNABLE)

    def _start(self, door: Door) -> None:
        from splitlock._environment import BOOT

        file = os.memfd_create("splitlock")
        try:
            os.set_inheritable(file, True)
            words = [
                sys.executable, "-I", "-c", BOOT, "run", f"--traced={self._memory.number}:{door.number}:{file}",
                f"--split-lock-detect={self._policy}", *["--mitigate"] * self._policy.mitigate, *["-q"] * self._quiet,
            ]  # fmt: skip
            pid = os.posix_spawn(sys.executable, words, os.environ)
        except OSError:
            os.close(file)
            raise
        os.set_inheritable(file, False)
        self._started.append(_Started(pid, file, door))
        if self._verbose:
            from splitlock.process.policy import say

            say(f"splitlock: {door.name} is traced, since the agent has no place in it: {shared.REASONS[door.reason]}")

    def found(self) -> Iterator[Found]:
        """What each has found, once all that they followed have ended; nothing of one that was killed."""
        from splitlock.process.agent.traced import read

        for tracer in self._started:
            if not tracer.ended:
                os.waitpid(tracer.pid, 0)
            if (found := read(tracer.file)) is not None:
                yield found
        self._started.clear()
