"""The model's processor beside real emulators' and the plugin's: every row of the probe."""

from __future__ import annotations

from itertools import product
from typing import Literal

import pytest

from splitlock.guest.detection import Detection
from splitlock.guest.probe.log import read
from splitlock.guest.selftest import expected
from splitlock.model.cpu import Access, Core, Processor, raises
from splitlock.report.probe import Row

BITS: dict[str, Literal[16, 32, 64]] = {"real16": 16, "prot32": 32, "long64": 64}


def access(row: Row) -> Access:
    return Access("user" if row.cpl == 3 else "kernel", row.ac, row.am, BITS[row.mode])


@pytest.mark.parametrize(("where", "alignment"), [("tcg", False), ("bochs", True)])
def test_probe(request: pytest.FixtureRequest, where: str, alignment: bool) -> None:
    rows = [row for row in read(request.getfixturevalue(where)).rows if row.access == "split"]
    assert len(rows) >= 20
    for row in rows:
        raised = raises(Processor(alignment=alignment), Core(row.detecting), access(row))
        assert (raised == "#AC") == row.alignment_check, row


@pytest.mark.parametrize(("split_locks", "bus_locks"), list(product((False, True), repeat=2)))
def test_plugin(split_locks: bool, bus_locks: bool) -> None:
    """What the plugin's own test expects of its processors, in every state."""
    for mode, cpl, am, ac, on in product(BITS, (0, 3), (False, True), (False, True), (False, True)):
        if mode == "real16" and cpl == 3:
            continue
        both = [False] if on else [False, True]  # the probe sets one at a time
        for debugctl in both:
            row = Row(
                number=0, mode=mode, cpl=cpl, am=am, ac=ac, detecting=on,  # type: ignore[arg-type]
                access="buslock" if debugctl else "split", outcome="completed",
            )  # fmt: skip
            processor = Processor(split_locks, bus_locks, alignment=False)
            raised = raises(processor, Core(on, debugctl), access(row))
            found = expected(row, Detection(split_locks, bus_locks, None))
            if raised == "#DB" or found.startswith("#1 "):
                assert raised == "#DB"
                assert found == "#1 after"
            else:
                assert found == ("#17 at" if raised else "completed"), (row, raised)
