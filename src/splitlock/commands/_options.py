"""Options that more than one command has, and their values."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse


def seconds(text: str) -> float:
    """A time, more than none. Raises ValueError, of which argparse makes its line."""
    value = float(text)
    if not 0 < value < 1e9:
        raise ValueError
    return value


def report_options(
    parser: argparse.ArgumentParser,
    verbose: str,
    *,
    quiet: str = "nothing but the exit status when it is 0",
    formats: tuple[str, ...] = ("text", "json"),
    which: str = "",
    output: str = "write the report there, not to standard output",
) -> None:
    """What every command with a report has: --format, -o, -q and -v. `verbose`, `quiet`, `output`: what they are to do;
    `which`: what is to be said of the formats."""
    parser.add_argument("--format", choices=formats, default="text", help=f"{which} (default: text)".lstrip())
    parser.add_argument("-o", "--output", metavar="FILE", help=output)
    parser.add_argument("-q", "--quiet", action="store_true", help=quiet)
    parser.add_argument("-v", "--verbose", action="store_true", help=verbose)
