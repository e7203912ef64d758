"""Options that more than one command has, and their values."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from splitlock.host.causes import Causes
    from splitlock.host.oops.files import Files


def seconds(text: str) -> float:
    """A time, more than none. Raises ValueError, of which argparse makes its line."""
    value = float(text)
    if not 0 < value < 1e9:
        raise ValueError
    return value


def oops_options(parser: argparse.ArgumentParser) -> None:
    """Where what an oops means is looked up: --vmlinux, --module, --debug, --causes."""
    parser.add_argument(
        "--vmlinux", metavar="FILE", help="oopses: the kernel's file, with debug information or without"
    )
    parser.add_argument(
        "--module", metavar="FILE", action="append", default=[], help="oopses: a module's file (NAME.ko)"
    )
    parser.add_argument("--debug", metavar="DIR", help="oopses: a directory with such files")
    parser.add_argument("--causes", metavar="FILE", action="append", default=[], help="more known causes (TOML)")


def oops_files(args: argparse.Namespace) -> tuple[Files, Causes]:
    """What those options name. Raises SplitlockError where one cannot be read."""
    from splitlock.host.causes import Causes
    from splitlock.host.oops.files import Files

    return Files(args.vmlinux, tuple(args.module), args.debug), Causes(args.causes)


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


def jobs(text: str) -> int:
    """A number of processes, as an option's value."""
    from argparse import ArgumentTypeError

    from splitlock.linux.text import number

    if not 1 <= (number(text) or 0) <= 1024:
        raise ArgumentTypeError(f"{text}: not a number of processes (1 to 1024)")
    return int(text)
