"""The command line: one file a verb, each with `prepare_parser` and `run`."""

from __future__ import annotations

import argparse
import os
import sys

from splitlock import __version__
from splitlock._errors import SplitlockError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

# Listed here so that only the chosen verb's module is imported: start-up counts.
_VERBS = {
    "run": "run a program and name every split lock it takes",
    "cache": "make programs ready for `run` ahead of their first run",
    "guest": "boot a guest and name every split lock in it",
    "probe": "find out how a hypervisor treats split locks",
    "matrix": "measure what split locks do, by kernel, mode and processor",
    "scan": "find the hypervisors among kernel modules, and judge them",
    "exports": "tell what no longer loads without an exported symbol",
    "guard": "keep kernel modules out that a policy refuses, as they load",
    "status": "tell what this machine has, and what each mode would do on it",
    "watch": "follow the kernel's log, and name the code behind its addresses",
    "explain": "name the code behind one line of the kernel's log",
    "simulate": "play what would happen, on a model of the whole machine",
    "advise": "tell which modes are safe here, and what breaks in the others",
}
_DESCRIPTION = """\
Find, explain and control split locks: locked instructions whose operand crosses
a cache line, which stall every core of the machine."""
_EPILOG = """\
examples:
  splitlock run -- ./game                      which code takes split locks?
  splitlock run --split-lock-detect=fatal -- ./game    as on a CPU that traps
  splitlock run --format json -o report.json -- make test
  splitlock probe build -o probe.iso       how does this hypervisor treat them?
  splitlock scan                           which kernel modules are hypervisors?
  splitlock exports --without vmap_pfn     which would no longer load?
  splitlock guard start                    and keep them out"""


class Help(argparse.RawDescriptionHelpFormatter):
    """80 columns, whatever the terminal: asking for its width imports a lot, at every start."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=80)


def complain(text: str) -> None:
    """Write one line on standard error, whatever the names in it hold. Raises OSError where nobody listens."""
    from splitlock.report.lines import printable

    sys.stderr.write(f"{printable(text)}\n")
    sys.stderr.flush()


class Parser(argparse.ArgumentParser):
    """Wrong usage is one line and, as for env(1) and timeout(1), exit status 125 where a program is run."""

    wrong_usage = 2

    def commands(self) -> Callable[[str, str], Parser]:
        """Commands of its own, as `command`: makes the parser of one, by its name and what it is about."""
        made = self.add_subparsers(
            prog=self.prog, dest="command", metavar="COMMAND", required=True, parser_class=Parser
        )
        return lambda name, about: made.add_parser(name, description=about, formatter_class=Help)

    def error(self, message: str) -> NoReturn:
        complain(f"{self.prog}: {message} (see {self.prog} --help)")
        sys.exit(self.wrong_usage)


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (the process's own by default); gives the exit status.

    What nobody foresaw is raised: splitlock._start makes a line of it.
    """
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
    wanted = next((argument for argument in arguments if not argument.startswith("-")), None)
    # The others' parsers are wanted for help and for a verb that does not exist; start-up counts.
    for verb, about in ((v, a) for v, a in _VERBS.items() if wanted not in _VERBS or v == wanted):
        if verb != wanted:
            verbs.add_parser(verb, help=about, formatter_class=Help)
            continue
        module = importlib.import_module(f"splitlock.commands.{verb}")
        verb_parser = verbs.add_parser(verb, formatter_class=Help, **{"help": about, **module.PARSER})
        module.prepare_parser(verb_parser)
    chosen, unknown = parser.parse_known_args(arguments)
    if unknown and hasattr(chosen, "paths") and not unknown[0].startswith("-"):
        chosen.paths += unknown  # argparse takes those before the first option only
        unknown = [word for word in unknown if word.startswith("-")]
    if unknown:
        verb_parser.error(f"unrecognized {'option' if unknown[0].startswith('-') else 'argument'} {unknown[0]}")
    try:
        status: int = module.run(chosen)
    except SplitlockError as error:
        status = error.exit_code
        try:
            complain(f"splitlock: {error}")
        except OSError:  # nobody listens; the status says it
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # as long as the process
    except KeyboardInterrupt:
        status = 130
    if (reader := sys.modules.get("splitlock.image.child")) is not None:
        _unguarded(reader.kept())
    return status


def _unguarded(kept: list[str]) -> None:
    """Say what the process that reads ELF files could not give up."""
    try:
        for said in kept:
            complain(f"splitlock: {said}")
    except OSError:  # nobody listens
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # as long as the process


def entry() -> NoReturn:
    """What splitlock._start calls: leaves without the interpreter's tidying up, which costs milliseconds."""
    for descriptor in range(3):  # or what we open next would take a closed one's place
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(1, "w")  # noqa: SIM115  # as long as the process
    sys.stderr = sys.stderr or open(2, "w")  # noqa: SIM115
    status = main()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        status = status or 125
    os._exit(status)
