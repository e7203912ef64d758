"""On which line of a TOML file does a table or a key stand? tomllib does not tell.

No parser: the file is known to be TOML. What is written as an inline table is found by the line of its own key.
"""

from __future__ import annotations

import re

Place = tuple[str | int, ...]  #: ("event", 1, "number"): the key of the second [[event]]

_HEADER = re.compile(r"\s*+\[(\[?)\s*+([^\[\]]+?)\s*\]\]?\s*(?:#.*)?")
_KEY = re.compile(r"\s*[\"']?([A-Za-z0-9_-]+)[\"']?\s*[.=]")
_PIECE = re.compile(
    r'"""(?:\\.|[^\\])*?"""|\'\'\'.*?\'\'\'|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'|#[^\n]*|[\[\]{}\n]', re.DOTALL
)


def places(text: str) -> dict[Place, int]:
    """The line, counted from 1, of each table and key."""
    found: dict[Place, int] = {}
    arrays: dict[str, int] = {}
    table: Place = ()
    for number, line in _starts(text):
        if header := _HEADER.fullmatch(line):
            name = header[2].strip("\"'")
            table = (name,)
            if header[1]:
                arrays[name] = arrays.get(name, -1) + 1
                found.setdefault(table, number)
                table = (name, arrays[name])
            found[table] = number
        elif key := _KEY.match(line):
            found.setdefault((*table, key[1]), number)
    return found


def _starts(text: str) -> list[tuple[int, str]]:
    """The lines on which something begins: those that go on with a value are left out."""
    lines = text.split("\n")
    begins, depth, number = [0], 0, 0
    for piece in _PIECE.finditer(text):
        words = piece[0]
        number += words.count("\n")
        if words in "[{":
            depth += 1
        elif words in "]}":
            depth -= 1
        elif words == "\n" and depth <= 0:
            depth = 0
            begins.append(number)
    return [(start + 1, lines[start]) for start in begins]


def line_of(found: dict[Place, int], place: Place) -> int:
    """The line of a place, or of the nearest thing that it is a part of; 1 if there is none."""
    while place and place not in found:
        place = place[:-1]
    return found.get(place, 1)
