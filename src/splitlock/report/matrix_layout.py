"""How do both matrices' reports lay out what they have measured: a column a mode, and what is said below?"""

from __future__ import annotations

from splitlock.report.lines import wrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import TypeVar

    from splitlock.report import matrix, matrix_vmx

    _Cell = TypeVar("_Cell", matrix.Cell, matrix_vmx.Cell)

CELL = 14  #: columns of a mode


def row(head: str, width: int, words: Iterable[str]) -> str:
    """A line of a table: `head`, `width` columns wide, and a word a mode."""
    return f"{head:<{width}}{''.join(f'{word:<{CELL}}' for word in words)}".rstrip()


def boots(logs: Iterable[tuple[str, list[str]]]) -> list[str]:
    """What the kernel said as it booted, once for each mode: `logs` has a mode and its lines for each boot."""
    said: dict[str, list[str]] = {}
    for mode, log in logs:
        said.setdefault(mode, log)
    lines = []
    for mode, log in said.items():
        for line in log or ["(nothing about split locks)"]:
            lines += wrap(line, f"{mode + ':':<{CELL}}", " " * CELL)
    return lines


def grouped(
    cells: Iterable[_Cell], name: Callable[[_Cell], str], what: Callable[[_Cell], list[str]]
) -> Iterator[tuple[str, str]]:
    """Each text, and the cells that it is about: `mode name, name; mode name`."""
    found: dict[str, dict[str, list[str]]] = {}
    for cell in cells:
        for text in what(cell):
            found.setdefault(text, {}).setdefault(cell.mode, []).append(name(cell))
    for text, modes in found.items():
        yield text, "; ".join(f"{mode} {', '.join(names)}" for mode, names in modes.items())


def details(cell: _Cell, title: str, texts: Iterable[str]) -> list[str]:
    """A cell's own lines, below its mode and title."""
    lines = ["", f"{cell.mode}, {title}"]
    for text in texts:
        lines += wrap(text, "  ", "    ")
    return lines


def ending(summary: str, report: matrix.Report | matrix_vmx.Report) -> list[str]:
    """The report's last lines."""
    lines = wrap(summary)
    for note in report.notes:
        lines += wrap(f"note: {note}")
    return lines + (["interrupted: the rest was not measured"] if report.interrupted else [])
