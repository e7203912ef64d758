"""The command line: one file a verb, each with `prepare_parser` and `run`."""

from __future__ import annotations

import argparse
import os
import sys

from splitlock import __version__
from splitlock._errors import SplitlockError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_VERBS = ("run",)
_DESCRIPTION = """\
Find, explain and control split locks: locked instructions whose operand crosses
a cache line, which stall every core of the machine."""
_EPILOG = """\
examples:
  splitlock run -- ./game                      which code takes split locks?
  splitlock run --split-lock-detect=fatal -- ./game    as on a CPU that traps
  splitlock run --format json -o report.json -- make test"""


class Help(argparse.RawDescriptionHelpFormatter):
    """80 columns, whatever the terminal: asking for its width imports a lot, at every start."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=80)


class Parser(argparse.ArgumentParser):
    """Wrong usage is one line and, as for env(1) and timeout(1), exit status 125 where a program is run."""

    wrong_usage = 2

    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"{self.prog}: {message} (see {self.prog} --help)\n")
        sys.exit(self.wrong_usage)


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (the process's own by default); gives the exit status."""
    import importlib

    arguments = sys.argv[1:] if argv is None else argv
    parser = Parser(
        prog="splitlock",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=Help,
    )
    parser.add_argument("--version", action="version", version=f"splitlock {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True, parser_class=Parser)
    modules = {verb: importlib.import_module(f"splitlock.commands.{verb}") for verb in _VERBS}
    parsers = {verb: verbs.add_parser(verb, formatter_class=Help, **modules[verb].PARSER) for verb in _VERBS}
    for verb, module in modules.items():
        module.prepare_parser(parsers[verb])
    chosen, unknown = parser.parse_known_args(arguments)
    if unknown:
        parsers[chosen.verb].error(f"unrecognized option {unknown[0]}")
    try:
        status: int = modules[chosen.verb].run(chosen)
    except SplitlockError as error:
        sys.stderr.write(f"splitlock: {error}\n")
        status = error.exit_code
    except KeyboardInterrupt:
        status = 130
    return status


def entry() -> NoReturn:
    """The console script: leaves without the interpreter's tidying up, which costs milliseconds."""
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
