"""The report of `splitlock exports` as text, 80 columns wide."""

from __future__ import annotations

from splitlock.report.lines import count, named, page, wrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.report.exports import Loss, Report, Symbol

_LOSSES, _NAMES = 20, 8  # lines of the table, and names in a row, without --verbose
_MODULE, _SYMBOL = 28, 40  # columns of a name


def render(report: Report, *, verbose: bool = False) -> str:
    """The report, with a newline at the end; all of many modules and symbols where `verbose`."""
    lines = _symbols(report.symbols, verbose)
    if report.question == "users":
        for symbol in report.symbols:
            lines += ["", *wrap(f"{named(symbol.name)}: {_row(symbol.used_by, verbose)}")] if symbol.used_by else []
    else:
        lines += ["", *_summary(report)]
        if report.losses:
            lines += ["", *_losses(report, verbose)]
    if not report.optimal:
        lines += wrap("the search was cut short: there may be a set that costs less")
    if report.unresolved:
        lines += wrap(f"not counted, as they import what nobody exports: {_row(report.unresolved, verbose)}")
    for error in report.errors:
        lines += wrap(
            f"not read: {named(error.path)}{': ' + named(error.member) if error.member else ''}: {error.reason}"
        )
    return page(lines)


def _row(names: list[str], verbose: bool) -> str:
    """Names in a row: the first few of many."""
    few = len(names) if verbose else _NAMES
    return ", ".join(map(named, names[:few])) + (f" and {len(names) - few:,} more" if len(names) > few else "")


def _symbols(symbols: list[Symbol], verbose: bool) -> list[str]:
    """What was asked or found, a line a symbol."""
    lines = [f"{'SYMBOL':<{_SYMBOL}} {'USERS':>6} {'BREAKS':>7}  EXPORTED BY"]
    for symbol in symbols:
        if len(symbol.name) > _SYMBOL:
            lines.append(named(symbol.name))
        label = named(symbol.name) if len(symbol.name) <= _SYMBOL else ""
        exporters = ", ".join(map(named, symbol.exporters)) or "nobody"
        lines.append(f"{label:<{_SYMBOL}} {symbol.users:>6,} {symbol.breaks:>7,}  {exporters}")
        if symbol.alternatives:
            lines += wrap(f"  or, to the same effect: {_row(symbol.alternatives, verbose)}", "", "    ")
    return lines


def _summary(report: Report) -> list[str]:
    """How many no longer load."""
    modules = count(report.modules, "module")
    lost = len(report.losses)
    if not lost:
        return [f"{modules} read: {'it still loads' if report.modules == 1 else 'all of them still load'}"]
    if report.question == "without":
        through = lost - report.direct
        verb = "loads" if lost == 1 else "load"
        return wrap(f"{lost:,} of {modules} no longer {verb}: {report.direct:,} directly, {through:,} through others")
    others = sum(not loss.wanted for loss in report.losses)
    wanted = count(lost - others, "module")
    symbols = named(report.symbols[0].name) if len(report.symbols) == 1 else "these"
    if not others:
        return wrap(f"without {symbols} only what was asked for fails: {wanted}")
    return wrap(f"without {symbols} {wanted} asked for and {others:,} more fail")


def _losses(report: Report, verbose: bool) -> list[str]:
    """Who no longer loads, and why."""
    most = len(report.losses) if verbose else _LOSSES
    lines = [f"{'MODULE':<{_MODULE}} WHY"]
    for loss in report.losses[:most]:
        if len(loss.module) > _MODULE:
            lines.append(named(loss.module))
        label = named(loss.module) if len(loss.module) <= _MODULE else ""
        unasked = " (not asked for)" if report.question == "break" and not loss.wanted else ""
        lines += wrap(f"{label:<{_MODULE}} {_why(loss, verbose)}{unasked}", "", " " * (_MODULE + 1))
    if len(report.losses) > most:
        lines.append(f"... and {len(report.losses) - most:,} more (-v lists all)")
    return lines


def _why(loss: Loss, verbose: bool) -> str:
    return f"imports {_row(loss.direct, verbose)}" if loss.direct else f"through {_row(loss.through, verbose)}"
