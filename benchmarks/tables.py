"""What the benchmarks share: where they ran, numbers as text, tables for a terminal and for docs/benchmarks.md."""

from __future__ import annotations

import datetime
import math
import os
import platform
import statistics
import subprocess
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


def version(command: list[str]) -> str:
    """The first line that a program says about its version; empty if it says none."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=60)
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout.strip() else ""


def machine() -> str:
    """Where and when: processor, cores we may use, kernel, date."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    now = datetime.datetime.now(datetime.UTC)
    return f"{model}, {len(os.sched_getaffinity(0))} cores, Linux {platform.release()}, {now:%Y-%m-%d %H:%M} UTC"


@dataclass(frozen=True)
class Table:
    """Cells as text, the first row the header, the first column names; `caption` says what the numbers are."""

    caption: str
    rows: list[list[str]]

    def text(self) -> str:
        """For a terminal of 80 columns."""
        widths = [max(len(row[column]) for row in self.rows) for column in range(len(self.rows[0]))]
        lines = [
            "  ".join(
                cell.ljust(width) if column == 0 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in self.rows
        ]
        lines.insert(1, "-" * len(lines[0]))
        return "\n".join([*textwrap.wrap(self.caption, 80), *(line.rstrip() for line in lines)])


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    magnitude = math.floor(math.log10(abs(value))) if abs(value) >= 0.01 else -2
    return f"{value:.{max(0, 2 - max(magnitude, 0))}f}"


def spread(values: Sequence[float]) -> str:
    """Median, least and greatest."""
    return f"{number(statistics.median(values))} {number(min(values))}..{number(max(values))}" if values else "failed"


def median(values: Sequence[float]) -> str:
    """The median alone."""
    return number(statistics.median(values)) if values else "failed"


def rewrite_section(path: Path, name: str, section: str) -> None:
    """Put `section` between the markers NAME:begin and NAME:end in the file. Raises SystemExit without markers."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, found, rest = path.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{path}: the lines {begin} and {end} are not both there")
    path.write_text(f"{before}{begin}\n\n{section}\n{end}{after}")


def publish(name: str, heading: list[str], tables: Sequence[Table], markdown: Path | None) -> None:
    """Print the tables under a heading; put them between NAME:begin and NAME:end of `markdown` where one is given."""
    report = "\n\n".join(["\n".join(heading), *(table.text() for table in tables)]) + "\n"
    print(report, end="")
    if markdown:
        rewrite_section(markdown, name, f"```\n{report}```\n")
