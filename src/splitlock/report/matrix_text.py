"""The report of `splitlock matrix` as text, 80 columns wide."""

from __future__ import annotations

from splitlock.report.lines import count, page, wrap
from splitlock.report.matrix_layout import boots, details, ending, grouped, row

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.report.matrix import Cell, Report

_HEAD, _COLUMNS = 10, 5
_PROCESSORS = {"ac": "#AC for split locks", "db": "#DB for bus locks", "both": "#AC for split locks, #DB for bus locks"}
_OUTCOMES = {"sigbus": "SIGBUS", "not-tried": "-"}
_WAITED = 10_000_000  # ns: what took so long is told
_KINDS = {
    "user": "a program", "user32": "a 32-bit program", "signal": "a signal handler",
    "ac": "a program with EFLAGS.AC set", "repeat": "a program, 15 times", "module": "a module as it is loaded",
    "kthread": "a kernel thread", "interrupt": "an interrupt handler",
    "together": "two programs at once, 7 times", "after": "after together: a program on each of two processors",
}  # fmt: skip


def render(report: Report, *, verbose: bool = False) -> str:
    """The report, with a newline at the end; with all that the kernel said where `verbose`."""
    lines = []
    for kernel in report.kernels:
        for processor in dict.fromkeys(cell.processor for cell in report.cells if cell.kernel == kernel.release):
            cells = [cell for cell in report.cells if (cell.kernel, cell.processor) == (kernel.release, processor)]
            lines += wrap(f"Linux {kernel.release} on a processor with {_PROCESSORS[processor]}")
            logs = [(b.mode, b.log) for b in report.boots if (b.kernel, b.processor) == (kernel.release, processor)]
            lines += [*_table(cells), "", *boots(logs), *_remarks(cells)]
            if verbose:
                lines += _words(cells)
            lines.append("")
    lines += [f"{name:<{_HEAD}} {what}" for name, what in _KINDS.items() if any(c.kind == name for c in report.cells)]
    lines += ["", *_summary(report)]
    return page(lines)


def _table(cells: list[Cell]) -> list[str]:
    """A line a kind, a column a mode; so many tables that all columns fit."""
    modes = list(dict.fromkeys(cell.mode for cell in cells))
    found: dict[tuple[str, str], Cell] = {(cell.kind, cell.mode): cell for cell in cells}
    lines = []
    for first in range(0, len(modes), _COLUMNS):
        some = modes[first : first + _COLUMNS]
        lines += ["", row("", _HEAD, some)]
        for kind in (kind for kind in _KINDS if any(cell.kind == kind for cell in cells)):
            lines.append(row(kind, _HEAD, [_word(found.get((kind, mode))) for mode in some]))
    return lines


def _word(cell: Cell | None) -> str:
    """What happened, with the longest wait; `!` where that is not as documented."""
    if cell is None:
        return ""
    text = _OUTCOMES.get(cell.outcome, cell.outcome)
    if cell.outcome == "completed":
        text = "warned" if cell.warnings else "completed"
        longest = max(cell.nanoseconds, default=0)
        if longest >= _WAITED:
            text = f"{'warned' if cell.warnings else 'waited'} {_time(longest)}"
        elif cell.muted and not cell.warnings:
            text = "(muted)"
    return text + ("!" if cell.differs else "")


def _time(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e9:.1f}s" if nanoseconds >= 999_500_000 else f"{nanoseconds / 1e6:.0f}ms"


def _remarks(cells: list[Cell]) -> list[str]:
    """Where it is not as documented, and what was not tried."""
    lines = []
    for reason, some in grouped(cells, lambda cell: cell.kind, lambda cell: cell.differs):
        lines += wrap(f"! {some}: {reason}")
    for reason, some in grouped(cells, lambda cell: cell.kind, _untried):
        lines += wrap(f"- {some}: not tried: {reason}")
    if any("(muted)" in _word(cell) for cell in cells):
        lines += wrap("(muted): completed; whether it was logged cannot be told: the kernel logs 10 lines in 5 seconds")
    return ["", *lines] if lines else []


def _untried(cell: Cell) -> list[str]:
    return [cell.reason or ""] if cell.outcome == "not-tried" else []


def _words(cells: list[Cell]) -> list[str]:
    """What the kernel said about each kind, what its signal was, and how long each took."""
    lines = []
    for cell in cells:
        more = []
        if cell.signal:
            how = "executed" if cell.signal.executed else "not executed"
            more.append(
                f"signal {cell.signal.number}, si_code {cell.signal.code}, si_addr {cell.signal.address}, "
                f"{cell.signal.place} the instruction, which was {how}"
            )
        if cell.nanoseconds:
            more.append("ms: " + " ".join(f"{one / 1e6:.2f}" for one in cell.nanoseconds))
        if cell.apart:
            more.append("ms between two ends: " + " ".join(f"{one / 1e6:.2f}" for one in cell.apart))
        lines += details(cell, f"{cell.kind}: {_word(cell)}", [*cell.log, *more])
    return lines


def _summary(report: Report) -> list[str]:
    tried = sum(cell.outcome != "not-tried" for cell in report.cells)
    differ = sum(bool(cell.differs) for cell in report.cells)
    return ending(
        f"{count(tried, 'cell')} measured in {count(len(report.boots), 'boot')} of QEMU {report.qemu}; "
        f"{differ or 'none'} not as documented ({report.documentation})",
        report,
    )
