#!/usr/bin/env python3
"""Writes the tables of docs/linux.md that come from linux/versions.py, linux/models.py and linux/often.py.

    scripts/linux_page.py [FILE]

Each stands between two comments, `<!-- NAME -->` and `<!-- end of NAME -->`; the rest of the page is left as it is.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from splitlock.linux.models import LISTED, UNANNOUNCED
from splitlock.linux.often import TABLE
from splitlock.linux.sentences import PREFIX
from splitlock.linux.versions import CHANGES, ONLY_ANNOUNCED, Change, Version

PAGE = Path(__file__).parents[1] / "docs" / "linux.md"


def tables() -> dict[str, str]:
    """Each table by its name."""
    return {"versions": _versions(), "models": _models(), "often": _often()}


def written(page: str) -> str:
    """The page with its tables as they are to be. Raises ValueError where one has no place."""
    for name, table in tables().items():
        start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
        place = re.compile(re.escape(start) + ".*?" + re.escape(end), re.DOTALL)
        if len(place.findall(page)) != 1:
            raise ValueError(f"docs/linux.md: {start.strip()} ... {end.strip()} must stand there once")
        page = place.sub(lambda _, text=start + table + end: text, page)
    return page


def _versions() -> str:
    rows = ["| Linux | what | also in | not in | shown by | source |", "|---|---|---|---|---|---|"]
    for change in sorted(CHANGES, key=lambda change: change.since):
        rows.append(
            f"| {_series(change.since)} | `{change.name}`: {change.what} | {_also(change)} | {_levels(change.lacks)} "
            f"| {change.shown or 'nothing'} | {change.source} |"
        )
    return "\n".join(rows) + "\n"


def _models() -> str:
    rows = ["| model | processor | Linux looks at it |", "|---|---|---|"]
    for table, condition in ((UNANNOUNCED, "by its model: it announces nothing"), (LISTED, "if it announces it")):
        for model, (name, change) in table.items():
            since = ", ".join(part for part in (f"{_series(change.since)} on", _also(change)) if part)
            rows.append(f"| 0x{model:02X} | {name} | {since}, {condition} |")
    every = "Alder Lake-N (N100), Raptor Lake-P, Emerald Rapids, Meteor Lake and all later"
    rows.append(f"| every other | {every} | {_series(ONLY_ANNOUNCED.since)} on, if it announces it |")
    return "\n".join(rows) + "\n"


def _often() -> str:
    rows = ["| line | Linux | how often | rate limit | source |", "|---|---|---|---|---|"]
    for entry in TABLE:
        words = entry.sentence.template.removeprefix(PREFIX).replace("\n", " ").replace("{place}", " in FILE[...]")
        shown = re.sub(r"\{(\w+)(?::\w+)?\}", lambda field: field[1].upper(), words)
        since = f"{_series(entry.since.since)} on" if entry.since else ""
        rows.append(f"| `{shown}` | {since} | {entry.every} | {entry.limit} | {entry.source} |")
    return "\n".join(rows) + "\n"


def _series(version: Version) -> str:
    return "{}.{}".format(*version)


def _levels(table: Mapping[Version, int]) -> str:
    return ", ".join(f"{_series(series)}.{patch}" for series, patch in sorted(table.items()))


def _also(change: Change) -> str:
    parts = [
        _levels(change.stable),
        " and ".join(f"{_series(s)}.{p} or before" for s, p in sorted(change.seen.items())),
    ]
    return ", ".join(part for part in parts if part)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    target.write_text(written(target.read_text(encoding="utf-8")), encoding="utf-8")
