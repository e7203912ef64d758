"""The report of `splitlock exports`: plain data, what is in the JSON of schema `splitlock/exports/1`, and as text."""

from __future__ import annotations

import textwrap

import msgspec

SCHEMA = "splitlock/exports/1"
_WIDTH = 80
_FEW = 20  # lines that a table has without --verbose
_NAME = 28  # columns of a module's name


class Symbol(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One symbol that was asked for, or found to be the one to remove."""

    name: str
    exporters: list[str]  #: `vmlinux`, or modules; empty when nobody exports it
    users: int  #: modules that import it
    breaks: int  #: modules that no longer load when it alone goes
    used_by: list[str] | None = None  #: the users' names, for `--users`
    alternatives: list[str] | None = None  #: other symbols whose removal has the same effect, for `--break`


class Loss(msgspec.Struct, kw_only=True):
    """A module that no longer loads."""

    module: str
    path: str
    member: str | None  #: its name inside the package at `path`
    wanted: bool  #: it is one of the modules to break
    direct: list[str]  #: the removed symbols that it imports
    through: list[str]  #: the failing modules that it imports from


class Error(msgspec.Struct, kw_only=True):
    """What could not be read."""

    path: str
    member: str | None
    reason: str


class Report(msgspec.Struct, kw_only=True):
    """The answer to one question."""

    schema: str
    question: str  #: `without`, `break` or `users`
    kernels: list[str]  #: releases that the modules were built for
    modules: int  #: that were read
    kernel_exports: str | None  #: where the kernel's own exports are known from; null: taken from what modules import
    symbols: list[Symbol]
    unknown: list[str]  #: symbols asked for that nobody exports or imports
    wanted: list[str]  #: the modules to break
    direct: int  #: how many of the losses import a removed symbol themselves
    losses: list[Loss]
    optimal: bool  #: false: the search for the symbols to remove was cut short, there may be better ones
    unresolved: list[str]  #: modules that import what nobody exports, whatever is removed
    errors: list[Error]

    @classmethod
    def from_json(cls, raw: bytes | str) -> Report:
        """The report in a JSON text. Raises msgspec.ValidationError when it is none."""
        report = msgspec.json.decode(raw, type=cls)
        if report.schema != SCHEMA:
            raise msgspec.ValidationError(f"schema {report.schema!r}, not {SCHEMA!r}")
        return report

    def to_json(self) -> bytes:
        """As JSON, indented, with a newline at the end."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def render(report: Report, *, verbose: bool = False) -> str:
    """The report as text, 80 columns wide; all of the modules where `verbose`."""
    lines = _symbols(report, verbose)
    if report.question == "users":
        for symbol in report.symbols:
            lines += _users(symbol, verbose)
    else:
        lines += ["", *_losses(report, verbose)]
    notes = [f"{name}: no module imports it, and nobody here exports it" for name in report.unknown]
    if report.unknown and report.kernel_exports is None:
        notes.append("(whether the kernel exports it, --symvers or the kernel's own file would tell)")
    if not report.optimal:
        notes.append("the search was cut short: there may be a set that costs less")
    if report.unresolved:
        notes.append(f"not counted, as they import what nobody exports: {_list(report.unresolved, verbose)}")
    lines += [line for note in notes for line in _wrapped(note, "  ")]
    for error in report.errors:
        lines += _wrapped(f"not read: {error.path}{': ' + error.member if error.member else ''}: {error.reason}", "  ")
    return "\n".join(lines) + "\n"


def _symbols(report: Report, verbose: bool) -> list[str]:
    """What was asked or found, a line a symbol."""
    if not report.symbols:
        return []
    lines = [f"{'SYMBOL':<40} {'USERS':>6} {'BREAKS':>7}  EXPORTED BY"]
    for symbol in report.symbols:
        numbers = f"{symbol.users:>6,} {symbol.breaks:>7,}  {', '.join(symbol.exporters) or 'nobody'}"
        if len(symbol.name) > 40:
            lines.append(symbol.name)
            lines.append(f"{'':<40} {numbers}")
        else:
            lines.append(f"{symbol.name:<40} {numbers}")
        if symbol.alternatives:
            lines += _wrapped(f"  or, to the same effect: {_list(symbol.alternatives, verbose)}", "    ")
    return lines


def _users(symbol: Symbol, verbose: bool) -> list[str]:
    if not symbol.used_by:
        return []
    return ["", *_wrapped(f"{symbol.name}: {_list(symbol.used_by, verbose)}", "  ")]


def _losses(report: Report, verbose: bool) -> list[str]:
    """Who no longer loads."""
    lost = len(report.losses)
    if report.question == "break":
        others = sum(not loss.wanted for loss in report.losses)
        summary = f"without {_these(report.symbols)} {_modules(lost - others)} asked for and {others:,} more fail"
        if not others:
            summary = f"without {_these(report.symbols)} only what was asked for fails: {_modules(lost)}"
    elif not lost:
        return [f"{_modules(report.modules)} read: all of them still load"]
    else:
        summary = f"{lost:,} of {_modules(report.modules)} no longer load: {report.direct:,} import"
        summary += f" {_these(report.symbols)}, {lost - report.direct:,} depend on those"
    lines = _wrapped(summary, "  ")
    shown = report.losses if verbose else report.losses[:_FEW]
    lines += ["", f"{'MODULE':<{_NAME}} WHY"]
    for loss in shown:
        why = f"imports {_list(loss.direct, verbose)}" if loss.direct else f"through {_list(loss.through, verbose)}"
        if report.question == "break" and not loss.wanted:
            why += " (not asked for)"
        if len(loss.module) > _NAME:
            lines.append(loss.module)
        label = loss.module if len(loss.module) <= _NAME else ""
        indent = " " * (_NAME + 1)
        lines += textwrap.wrap(f"{label:<{_NAME}} {why}", _WIDTH, subsequent_indent=indent, break_on_hyphens=False)
    if len(shown) < lost:
        lines.append(f"... and {lost - len(shown):,} more (-v lists all)")
    return lines


def _these(symbols: list[Symbol]) -> str:
    return symbols[0].name if len(symbols) == 1 else "these"


def _modules(number: int) -> str:
    return f"{number:,} module" + ("" if number == 1 else "s")


def _list(names: list[str], everything: bool) -> str:
    """Names in a row, the first few of many."""
    few = len(names) if everything else 8
    return ", ".join(names[:few]) + (f" and {len(names) - few:,} more" if len(names) > few else "")


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, subsequent_indent=indent, break_on_hyphens=False)
