"""`splitlock run`: run a program and name every split lock it takes."""

from __future__ import annotations

import argparse
import os
import time

from splitlock._errors import SplitlockError
from splitlock.commands._options import report_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.commands import Parser
    from splitlock.process.tracer import Tracer

_EPILOG = """\
modes (as the kernel parameter split_lock_detect=):
  off          run it unwatched
  warn         a line for each task's first split lock; every one is counted
  fatal        the lock does not execute; the task gets SIGBUS (BUS_ADRALN)
  ratelimit:N  all watched tasks together take at most N (1..1000) a second

exit status: the program's own, 128 + signal when it was killed; 125 our own
failure or wrong usage, 126 not executable, 127 not found.

examples:
  splitlock run -- ./game -windowed
  splitlock run --split-lock-detect=fatal -- ./server
  splitlock run --format json -o report.json --error-exitcode 1 -- make test"""


PARSER = {
    "help": "run a program and name every split lock it takes",
    "usage": "splitlock run [options] -- PROGRAM [ARGS...]",
    "description": "Run a program, its threads and children, and name every split lock they take.",
    "epilog": _EPILOG,
}


def prepare_parser(parser: Parser) -> None:
    """Add this verb's options to its parser, made with `PARSER`."""
    parser.wrong_usage = 125
    parser.add_argument(
        "--split-lock-detect",
        metavar="MODE",
        default="warn",
        help="off, warn (default), fatal or ratelimit:N",
    )
    parser.add_argument(
        "--mitigate",
        action="store_true",
        help="with warn: the kernel's misery too, 10 ms of sleep, then one split-locking task at a time",
    )
    report_options(
        parser,
        "list all sites, and the images that were watched",
        which="of the report",
        output="write the report there, not to standard error",
        quiet="no lines while it runs, no report of nothing",
    )
    parser.add_argument("--error-exitcode", metavar="N", type=_status, help="exit with N when split locks were taken")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="PROGRAM", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Do it; gives the exit status."""
    from splitlock.process.launch import Child
    from splitlock.process.policy import Policy

    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise SplitlockError("run: no program given (splitlock run [options] -- PROGRAM [ARGS...])")
    policy = Policy.parse(args.split_lock_detect, args.mitigate)
    output = 2
    if args.output:
        try:
            output = os.open(args.output, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise SplitlockError(f"-o {args.output}: {error.strerror}; name a file that can be written") from None
    child = Child(command, watched=policy.mode != "off")
    from splitlock.process.tracer import Tracer  # while the child gets ready

    tracer = Tracer(policy, quiet=args.quiet)
    tracer.run(child)
    found = tracer.sites
    if args.format == "json" or found or not args.quiet:
        _write(output, _render(tracer, command, args), args.output or "standard error")
    if found and args.error_exitcode is not None:
        return int(args.error_exitcode)
    return tracer.exit_status


def _render(tracer: Tracer, command: list[str], args: argparse.Namespace) -> bytes:
    images = []
    if args.verbose and args.format == "text":
        images = [f"  {count:>7,} sites  {name}" for name, count in sorted(tracer.watch.names.items())]
    if args.format == "text" and not tracer.sites:  # the usual case: without the imports a full report needs
        from splitlock.report.lines import page
        from splitlock.report.run_text import summary

        watched = tracer.watch.images
        rest = [(name, reason, size, held) for name, _, reason, size, held in tracer.unmonitored()]
        lines = summary(False, sum(watched.values()), len(watched), tracer.processes, rest)
        return page([*lines, *images]).encode()
    from splitlock.process.describe import describe

    report = describe(tracer, command)
    if args.format == "json":
        return report.to_json()
    from splitlock.report.lines import page
    from splitlock.report.run_text import render

    return (render(report, *((len(report.sites),) if args.verbose else ())) + page(images)).encode()


def _write(output: int, text: bytes, name: str) -> None:
    """The whole report, in place of what a file held before."""
    try:
        if output != 2:
            os.set_blocking(output, True)
            if os.path.isfile(name):
                os.ftruncate(output, 0)
        while text:
            try:
                text = text[os.write(output, text) :]
            except BlockingIOError:  # the program has made our common terminal or pipe non-blocking
                time.sleep(0.01)
    except OSError as error:
        raise SplitlockError(f"{name}: cannot write the report: {error.strerror}") from None


def _status(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 255:
        raise argparse.ArgumentTypeError(f"{text}: not an exit status (0 to 255)")
    return int(text)
