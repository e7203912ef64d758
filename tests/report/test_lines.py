"""Whatever a name holds: no line of a report is of its making, none is too long by it, none moves a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from report.made import RENDERERS, made

from splitlock.report import lines


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
