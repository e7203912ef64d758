"""How are the cells of one kernel and mode filled? By a boot, and by another for what is left when a kind ended it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from splitlock.guest.matrix.boot import Booted
    from splitlock.guest.matrix.log import Log, Told
    from splitlock.report.matrix import End

Kind = TypeVar("Kind", bound=str)

_HOW: dict[End, str] = {"done": "init ended", "reset": "the machine was reset", "hang": "nothing more was heard"}


class Column(ABC, Generic[Kind]):
    """The cells of one kernel, processor and mode."""

    def fill(self, kinds: list[Kind], advance: Callable[[int], None]) -> None:
        """Boot, and again for what is left when the kernel did not survive a kind.

        Once more, too, where it did not even come up: under TCG one processor may run a breakpoint of code that another
        is just patching, and the kernel knows nothing of it any more (an oops `int3`). On a busy host it was 2 boots in
        98 of Linux 7.2.
        """
        again = True
        while kinds:
            booted, log = self.boot(kinds)
            told_of = {told.kind: told for told in log.kinds}
            tried = {kind: told_of[kind] for kind in kinds if kind in told_of}
            warnings = 0
            for kind, told in tried.items():
                self.tried(kind, told, booted, warnings)
                warnings += told.warnings
            if not tried and again:
                again = False
                continue
            if not tried:
                for kind in kinds:
                    self.untried(kind, f"the kernel did not come up: {_HOW[booted.end]}")
            advance(len(tried or kinds))
            kinds = [kind for kind in kinds if kind not in tried] if tried else []

    @abstractmethod
    def boot(self, kinds: list[Kind]) -> tuple[Booted, Log]:
        """One boot that is to try these kinds, one after the other."""

    @abstractmethod
    def tried(self, kind: Kind, told: Told, booted: Booted, warnings: int) -> None:
        """A cell, from what is told of it in the last boot; `warnings` came before it in that."""

    @abstractmethod
    def untried(self, kind: Kind, reason: str) -> None:
        """A cell that stays empty."""
