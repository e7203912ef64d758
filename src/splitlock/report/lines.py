"""The lines of a text report: 80 columns wide, with nothing in them that a terminal would act on.

Names are what others chose. So whatever goes into a line is made `printable` first, then broken or cut. A name that may
hold blanks (a file's, a program's, a function's) goes in by `named`: it looks like no columns of ours, and where it is
broken the next line says that it goes on.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

WIDTH = 80  #: columns
NO_BREAK = "\xa0"  #: a blank at which `wrap` breaks no line; `page` makes a blank of it
_BLANK = "\ue000"  # of a name: `wrap` begins no line of ours behind it; `page` makes a blank of it
_ON = "… "  # begins a line that is a broken name's


def named(text: str) -> str:
    """A name of somebody else's, for a line. A blank that stands alone stays, others are shown as escapes."""
    shown, before = "", " "
    for at, letter in enumerate(text):
        if letter != " ":
            shown += letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        else:
            shown += _BLANK if before != " " and at < len(text) - 1 else "\\x20"
        before = letter
    return shown


def wrap(text: str, first: str = "", then: str = "  ") -> list[str]:
    """Break a text at its blanks into lines that begin with `first` and, from the second on, with `then`.

    A word that is longer than a line stays whole; a name is broken at its own blanks, and goes on behind `…`. Line
    breaks in the text are shown as escapes.
    """
    lines, line = [], first
    for word in printable(text).split(" "):
        if len(line) + len(word) > WIDTH and line.strip():
            lines.append(line.rstrip())
            line = then
        while len(line) + len(word) > WIDTH and _BLANK in word:
            at = word.rfind(_BLANK, 0, max(WIDTH - len(line), 0) + 1)
            at = at if at > 0 else word.find(_BLANK)
            lines.append(line + word[:at])
            line, word = then + _ON, word[at + 1 :]
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
    return "".join(
        c if c.isprintable() or c in (NO_BREAK, _BLANK) else c.encode("unicode_escape").decode() for c in text
    )


def page(lines: Iterable[str]) -> str:
    """The lines as the text of a report, with a newline at the end of each."""
    return "".join(f"{printable(line)}\n".replace(NO_BREAK, " ").replace(_BLANK, " ") for line in lines)
