"""Whatever a name holds: no line of a report is of its making, none is too long by it, none moves a terminal."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from splitlock.report import (
    advise_text,
    exports_text,
    guard_text,
    guest_text,
    lines,
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
HEX = {"offset", "address", "operand", "operand_address", "eax", "ebx", "ecx", "edx", "value"}  # written by us


def made(kind: Any, choice: int, name: str = "") -> Any:
    """A value of a type: each text in it hostile, of what is given to choose from the `choice`-th."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return arguments[choice % len(arguments)]
    if origin in (types.UnionType, typing.Union):
        return made(arguments[0], choice, name)
    if origin is list:
        return [made(arguments[0], choice, name)] * 2
    if origin is dict:
        return {made(arguments[0], choice): made(arguments[1], choice)}
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        hints = typing.get_type_hints(kind)
        return kind(**{field: made(hints[field], choice, field) for field in kind.__struct_fields__})
    if kind is str:
        return "0x10" if name in HEX else HOSTILE
    return {bool: True, int: 3, float: 2.5}[kind]


def cases() -> Iterator[Any]:
    for number, (kind, render) in enumerate(RENDERERS):
        for choice in range(8):
            yield pytest.param(kind, render, choice, id=f"{number}-{kind.__module__.rpartition('.')[2]}-{choice}")


@pytest.mark.parametrize(("kind", "render", "choice"), list(cases()))
def test_hostile_names(kind: Any, render: Callable[[Any], str], choice: int) -> None:
    """By the types of the reports: a field that is added is among them."""
    text = render(made(kind, choice))
    assert text.endswith("\n")
    assert text.count("\\nforged") > 0, "nothing hostile came through: the test tests nothing"
    for line in text[:-1].split("\n"):
        assert line.isprintable(), line
        assert not line.startswith("forged      up"), line


@pytest.mark.parametrize("blanks", range(0, 30, 3))
def test_wrapped_lines_are_no_wider_for_what_is_escaped(blanks: int) -> None:
    """Escapes are longer than what they stand for."""
    text = " ".join(["\x1b" * 4, "\n" * 3, "word"] * 20)
    wrapped = lines.wrap(text, " " * blanks, "    ")
    assert max(map(len, wrapped)) <= lines.WIDTH
    assert "".join(wrapped).replace(" ", "") == text.replace("\x1b", "\\x1b").replace("\n", "\\n").replace(" ", "")


@pytest.mark.parametrize("width", [1, 2, 10, 40])
def test_cut_counts_escapes(width: int) -> None:
    assert len(lines.cut("\x1b" * 40, width)) == width


def test_page_makes_blanks_of_what_wrap_does_not_break() -> None:
    assert lines.page(["a\xa0b", "c\nd"]) == "a b\nc\\nd\n"
