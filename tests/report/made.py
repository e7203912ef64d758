"""Reports made by their types: any of the renderers gets one with whatever text and number is asked for."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from splitlock.report import (
    advise_text,
    exports_text,
    guard_text,
    guest_text,
    matrix_text,
    matrix_vmx_text,
    probe_text,
    run_text,
    scan_text,
    simulate_text,
    status_text,
    watch_text,
)
from splitlock.report.advise import Report as Advise
from splitlock.report.exports import Report as Exports
from splitlock.report.guard import Decision
from splitlock.report.guard import Status as Gate
from splitlock.report.guest import Report as Guest
from splitlock.report.matrix import Report as Matrix
from splitlock.report.matrix_vmx import Report as MatrixVmx
from splitlock.report.probe import Report as Probe
from splitlock.report.run import Report as Run
from splitlock.report.scan import File
from splitlock.report.simulate import Report as Simulate
from splitlock.report.status import Report as Status
from splitlock.report.watch import Event, Summary

HOSTILE = "a\nforged      up\r\x1b[2J\x1b]0;x\x07\u202e\x85\u2028\x0b\udcff " * 3
RENDERERS: list[tuple[Any, Callable[[Any], str]]] = [
    (Advise, lambda report: advise_text.render(report, verbose=True)),
    (Exports, lambda report: exports_text.render(report, verbose=True)),
    (Decision, lambda decision: guard_text.render(decision, verbose=True)),
    (Decision, lambda decision: guard_text.render_test(decision, HOSTILE, verbose=True)),
    (Gate, guard_text.render_status),
    (Guest, lambda report: guest_text.render(report, verbose=True)),
    (Probe, lambda report: probe_text.render(report, verbose=True)),
    (Run, run_text.render),
    (File, lambda file: scan_text.Text("refuse", verbose=True).file(file).decode()),
    (Simulate, simulate_text.render),
    (Status, lambda report: status_text.render(report, verbose=True)),
    (Event, lambda event: watch_text.render(event, verbose=True)),
    (Summary, lambda summary: watch_text.render_summary(summary, verbose=True)),
]
#: What is in these comes from machines of our own.
MEASURED: list[tuple[Any, Callable[[Any], str]]] = [
    (Matrix, lambda report: matrix_text.render(report, verbose=True)),
    (MatrixVmx, lambda report: matrix_vmx_text.render(report, verbose=True)),
]
HEX = {"offset", "address", "operand", "operand_address", "eax", "ebx", "ecx", "edx", "value"}  # written by us


class Filling(NamedTuple):
    """What the values are."""

    text: str = HOSTILE
    number: int = 3
    fraction: float = 2.5
    items: int = 2  #: of each list


_PLAIN = Filling()


def made(kind: Any, choice: int, name: str = "", filling: Filling = _PLAIN) -> Any:
    """A value of a type; of what is given to choose from the `choice`-th."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return arguments[choice % len(arguments)]
    if origin in (types.UnionType, typing.Union):
        return made(arguments[0], choice, name, filling)
    if origin is list:
        return [made(arguments[0], choice, name, filling)] * filling.items
    if origin is dict:
        return {made(arguments[0], choice, "", filling): made(arguments[1], choice, "", filling)}
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        hints = typing.get_type_hints(kind)
        return kind(**{field: made(hints[field], choice, field, filling) for field in kind.__struct_fields__})
    if kind is str:
        return "0x10" if name in HEX else filling.text
    return {bool: True, int: filling.number, float: filling.fraction}[kind]
