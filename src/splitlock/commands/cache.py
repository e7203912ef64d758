"""`splitlock cache`: what `run` keeps of the images that it has analysed."""

from __future__ import annotations

import os

from splitlock.commands._options import jobs, report_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from splitlock.commands import Parser
    from splitlock.process.agent.warm import Outcome
    from splitlock.report.cache import Report

_EPILOG = """\
commands:
  warm PATH...     make ready programs, libraries, and those below directories
  warm --installed all that are installed here
  status           where the images are, how many, and how large
  clear            remove them

`run` analyses each program and library once, before it runs for the first time;
a browser takes seconds. Made by root, images are there for every user.

exit status: 0 done, 2 something could not be made ready, or wrong usage.

examples:
  splitlock cache warm /usr/lib/firefox-esr
  sudo splitlock cache warm --installed
  splitlock cache status --format json"""

PARSER = {
    "usage": "splitlock cache COMMAND [options]",
    "description": "Make programs and libraries ready for `splitlock run` ahead of their first run.",
    "epilog": _EPILOG,
}


def prepare_parser(parser: Parser) -> None:
    """Add this verb's commands to its parser, made with `PARSER`."""
    command = parser.commands()
    warm = command("warm", "Make ready what is not yet.")
    what = warm.add_mutually_exclusive_group(required=True)
    what.add_argument("paths", nargs="*", metavar="PATH", default=[], help="a program, a library or a directory")
    what.add_argument("--installed", action="store_true", help="all below /usr, /opt and the like")
    warm.add_argument(
        "-j", "--jobs", metavar="N", type=jobs, default=len(os.sched_getaffinity(0)), help="at a time (%(default)s)"
    )
    for made in (warm, command("status", "Tell where they are."), command("clear", "Remove them.")):
        report_options(made, "list all that could not be made ready")


def run(args: argparse.Namespace) -> int:
    """Do it; gives the exit status."""
    from splitlock.commands._output import Output, end_politely
    from splitlock.report.cache_text import render

    end_politely()
    report = _report(args)
    status = 2 if report.failed else 0
    if status or not args.quiet:
        text = render(report, args.command, verbose=args.verbose).encode()
        with Output(args.output) as out:
            out.write(report.to_json() if args.format == "json" else text)
    return status


def _report(args: argparse.Namespace) -> Report:
    from splitlock.process.agent.caches import clear, counted
    from splitlock.report.cache import Failure, Report

    if args.command == "clear":
        return Report(caches=clear())
    outcomes = _warm(args) if args.command == "warm" else []
    made = sum(outcome.is_new for outcome in outcomes)
    failed = [Failure(path=outcome.path, reason=outcome.reason) for outcome in outcomes if outcome.reason]
    return Report(caches=counted(), made=made, found=len(outcomes) - made - len(failed), failed=failed)


def _warm(args: argparse.Namespace) -> list[Outcome]:
    from splitlock.commands._progress import Bar
    from splitlock.process.agent.caches import to_fill
    from splitlock.process.agent.warm import INSTALLED, images, warm

    outcomes: list[Outcome] = []
    cache = to_fill()
    with Bar("analysing", [], unit="images", quiet=args.quiet) as bar:
        files = list(images(INSTALLED if args.installed else args.paths, outcomes.append))
        bar.of(len(files))
        for outcome in warm(files, cache, args.jobs):
            outcomes.append(outcome)
            bar.advance()
    return outcomes
