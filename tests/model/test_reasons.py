"""docs/matrix.md's table of reasons beside the measurements: each cell that is not as documented has one, no other."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from splitlock.guest.matrix.documented import differences, documented
from splitlock.report.matrix import Report

_DATA = sorted((Path(__file__).parent / "data").glob("matrix-*.json"))
_DOCS = Path(__file__).parents[2] / "docs" / "matrix.md"
Cell = tuple[str, str, str, str]


def _reasons() -> dict[Cell, list[str]]:
    """By Linux, processor, mode and kind: what the table says was seen."""
    lines = _DOCS.read_text().splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("| Linux | processor |"))
    found: dict[Cell, list[str]] = {}
    for line in lines[begin + 2 :]:
        if not line.startswith("|"):
            break
        linux, processors, modes, kinds, seen, reason = (part.strip() for part in line.strip("|").split("|"))
        assert reason
        for cell in product(*(part.split(", ") for part in (linux, processors, modes, kinds))):
            key: Cell = (cell[0], cell[1], cell[2], cell[3])
            assert key not in found, f"two reasons for {key}"
            found[key] = seen.split("; ")
    return found


@pytest.mark.parametrize("path", _DATA, ids=lambda path: path.stem)
def test_every_difference_has_its_reason(path: Path) -> None:
    """Judged anew by the documentation's table, which may have changed since the measurement."""
    report = Report.from_json(path.read_bytes())
    series = ".".join(report.kernels[0].release.split(".")[:2])
    reasons = {cell: seen for cell, seen in _reasons().items() if cell[0] == series}
    found = {}
    for cell in report.cells:
        cell.documented = documented(cell.processor, cell.mode, cell.kind)
        if said := differences(cell):
            found[series, str(cell.processor), cell.mode, str(cell.kind)] = said
    assert found.keys() == reasons.keys()
    for place, said in found.items():
        for difference in said:
            assert any(difference.startswith(seen) for seen in reasons[place]), (place, difference)
