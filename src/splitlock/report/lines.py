"""The lines of a text report: 80 columns wide, with nothing in them that a terminal would act on."""

from __future__ import annotations

WIDTH = 80  #: columns


def wrap(text: str, first: str = "", then: str = "  ") -> list[str]:
    """Break a text at its blanks into lines that begin with `first` and, from the second on, with `then`.

    A word that is longer than a line stays whole.
    """
    lines, line = [], first
    for word in text.split(" "):
        if len(line) + len(word) > WIDTH and line.strip():
            lines.append(line.rstrip())
            line = then
        line += word + " "
    return [*lines, line.rstrip()]


def cut(text: str, width: int = WIDTH) -> str:
    """The text, or so much of its start as fits."""
    return text if len(text) <= width else text[: width - 1] + "…"


def count(number: int, one: str, many: str = "") -> str:
    """How many of what: `1 file`, `4,023 files`; `many` where the plural is not made with an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def printable(text: str) -> str:
    """Names are what others chose: control characters and bytes that are no UTF-8 are shown as escapes."""
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
