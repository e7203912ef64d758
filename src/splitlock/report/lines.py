"""The lines of a text report: 80 columns wide, with nothing in them that a terminal would act on.

Names are what others chose. So whatever goes into a line is made `printable` first, then broken or cut: a name neither
begins a line of its own nor makes one too long.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

WIDTH = 80  #: columns
NO_BREAK = "\xa0"  #: a blank at which `wrap` breaks no line; `page` makes a blank of it


def wrap(text: str, first: str = "", then: str = "  ") -> list[str]:
    """Break a text at its blanks into lines that begin with `first` and, from the second on, with `then`.

    A word that is longer than a line stays whole. Line breaks in the text are shown as escapes.
    """
    lines, line = [], first
    for word in printable(text).split(" "):
        if len(line) + len(word) > WIDTH and line.strip():
            lines.append(line.rstrip())
            line = then
        line += word + " "
    return [*lines, line.rstrip()]


def cut(text: str, width: int = WIDTH) -> str:
    """The text, or so much of its start as fits; escapes count as they are shown."""
    text = printable(text)
    return text if len(text) <= width else text[: width - 1] + "…"


def count(number: int, one: str, many: str = "") -> str:
    """How many of what: `1 file`, `4,023 files`; `many` where the plural is not made with an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def printable(text: str) -> str:
    """One line: control characters, line breaks and bytes that are no UTF-8 are shown as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == NO_BREAK else c.encode("unicode_escape").decode() for c in text)


def page(lines: Iterable[str]) -> str:
    """The lines as the text of a report, with a newline at the end of each."""
    return "".join(f"{printable(line)}\n".replace(NO_BREAK, " ") for line in lines)
