"""What has the processor to say of a kind? Its log (bochs/instrument/record.cc), cut where the guest's init says so."""

from __future__ import annotations

import json
import os
from collections import Counter

from splitlock.report.matrix_vmx import Side

_STEPS = {"vm exit": "exits", "injected": "injected", "delivered": "delivered", "triple fault": "triple_faults"}


class Traps:
    """The log of one boot, in memory. `fd` is inherited by the emulator."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("splitlock-traps")
        self._marks: list[int] = []

    def mark(self) -> None:
        """A kind begins, and the machine stands still: what is written from here on is its."""
        self._marks.append(os.lseek(self.fd, 0, os.SEEK_CUR))

    def sides(self) -> list[Side]:
        """What there is of each kind, in order."""
        ends = [*self._marks[1:], os.lseek(self.fd, 0, os.SEEK_END)]
        return [self._side(begin, end) for begin, end in zip(self._marks, ends, strict=False)]

    def _side(self, begin: int, end: int) -> Side:
        """Of a log that may be long: a guest that does nothing but trap writes two lines each time."""
        steps: Counter[str] = Counter()
        place, cpl = None, None
        with open(self.fd, "rb", closefd=False) as file:
            file.seek(begin)
            while file.tell() < end and (line := file.readline()):
                told = json.loads(line)
                if "trap" in told and steps["trap"] == 0:
                    place, cpl = told["place"], told["cpl"]
                steps[told.get("then", "trap")] += 1
        counts = {name: steps[step] for step, name in _STEPS.items()}
        return Side(place=place, cpl=cpl, traps=steps["trap"], **counts)

    def close(self) -> None:
        """Free it."""
        os.close(self.fd)
