"""What do assignments in files of the shell, and of GRUB's, come to: quotes, continued lines, variables?"""

from __future__ import annotations

import re
import shlex

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_PIECE = re.compile(
    r"""((?<!\S)\#[^\n]*)|\\\n|\\.|'[^']*'|"[^"\\]*(?:\\.[^"\\]*)*"|\n|[^\S\n]+|[^\s\\'"]+|.""", re.S | re.X
)
_ESCAPED = re.compile(r"\\.", re.S)
_ASSIGNED = re.compile(r"\s*(?:export\s+|set\s+)?(\w+)(\+?)=(.*)", re.S)
_VARIABLE = re.compile(r"'[^']*'|\\.|\$(?:(\w+)|\{(\w+)\})", re.S)
_LONGEST = 4096  # characters that variables may add to a line: x86's COMMAND_LINE_SIZE is 2048


def lines(text: str) -> Iterator[str]:
    """Its lines: a backslash at the end, and an open quote, go on in the next one. Comments are left out."""
    parts: list[str] = []
    for piece in _PIECE.finditer(text):
        found = piece[0]
        if found == "\n":
            yield "".join(parts)
            parts.clear()
        elif found != "\\\n" and not piece[1]:
            # in double quotes a line goes on too; in single ones the backslash is a letter
            parts.append(_ESCAPED.sub(_gone, found) if found[0] == '"' else found)
    yield "".join(parts)


def _gone(escaped: re.Match[str]) -> str:
    return "" if escaped[0] == "\\\n" else escaped[0]


def assignments(text: str) -> Iterator[tuple[str, str, bool]]:
    """Names, values with their quotes, and whether the value is added to what was there (`+=`, or it names itself)."""
    for line in lines(text):
        if match := _ASSIGNED.match(line):
            itself = rf"\$(?:{match[1]}\b|\{{{match[1]}\}})"
            yield match[1], match[3], bool(match[2]) or re.search(itself, match[3]) is not None


def expanded(text: str, values: Mapping[str, str]) -> str:
    """With variables' values in it; of one that is not known, nothing."""
    left = _LONGEST

    def value(match: re.Match[str]) -> str:
        nonlocal left
        name = match[1] or match[2]
        if not name:
            return match[0]
        found = values.get(name, "")[:left]
        left -= len(found)
        return found

    return _VARIABLE.sub(value, text)


def unquoted(text: str) -> str:
    """What the shell, and GRUB's, makes of quoted words."""
    try:
        return " ".join(shlex.split(text, comments=True))
    except ValueError:  # a quote that does not end
        return text
