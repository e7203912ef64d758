"""`splitlock status`: split-lock detection on this machine, or by another's files, and what each mode would do."""

from __future__ import annotations

import os
import sys

from splitlock._errors import SplitlockError
from splitlock.commands._options import report_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from splitlock.commands import Parser
    from splitlock.host.root import Root
    from splitlock.report.status import Guard, Measured, Report

_EPILOG = """\
exit status: 0 no split lock was logged since boot, or none can be, 1 some were,
2 it cannot be told (the log is not there, or not whole), or wrong usage, 130
interrupted: not all modules were scanned.

examples:
  sudo splitlock status
  splitlock status --root /host            a container's mount of its host
  splitlock status --root sosreport-web1   what an sosreport holds
  splitlock status --measure               takes 400 split locks: asks first"""

PARSER = {
    "usage": "splitlock status [options]",
    "description": "One page on a machine: what its processor can detect, the kernel's mode, what it\n"
    "logged, which hypervisors it has, what each mode would do, what to check first.",
    "epilog": _EPILOG,
}
_DEFAULT = 400  # split locks


def prepare_parser(parser: Parser) -> None:
    """Add this verb's options to its parser, made with `PARSER`."""
    parser.add_argument(
        "--root", metavar="DIR", default="/", help="read another system's files: what is its / (default: /)"
    )
    parser.add_argument("--no-scan", action="store_true", help="do not look into the kernel's modules")
    parser.add_argument(
        "--measure", metavar="N", nargs="?", type=int, const=_DEFAULT,
        help=f"take N split locks (1 to 500, default: {_DEFAULT}), and tell what one costs, and costs a neighbour core",
    )  # fmt: skip
    parser.add_argument("--yes", action="store_true", help="with --measure: do not ask")
    report_options(parser, "all modules and programs")


def run(args: argparse.Namespace) -> int:
    """Do it; gives the exit status."""
    from splitlock.commands._output import Output
    from splitlock.commands._progress import Bar
    from splitlock.host.root import Root
    from splitlock.host.status import status

    root = Root(args.root)
    if args.measure is not None and not root.live:
        raise SplitlockError("--measure: measures this machine; leave out --root", 2)
    if args.yes and args.measure is None:
        raise SplitlockError("--yes: goes with --measure", 2)
    measured = _measure(args) if args.measure is not None else None
    bar = Bar("scanning modules", [], quiet=args.quiet)
    with Output(args.output, bar) as out, bar:
        report = status(root, _guard(root), scan=not args.no_scan, measured=measured, advance=bar.advance)
        found = _found(report)
        if found or report.interrupted or not args.quiet:
            if args.format == "json":
                out.write(report.to_json())
            else:
                from splitlock.report.status_text import render

                out.write(render(report, verbose=args.verbose).encode("utf-8", "replace"))
    return 130 if report.interrupted else found


def _found(report: Report) -> int:
    """The exit status: 1 split locks were logged, 2 it cannot be told whether any was."""
    if report.log.lines or report.log.stuck:
        return 1
    uses = {report.processor.split_lock.used.known, report.processor.bus_lock.used.known}
    silent = report.kernel.mode == "fatal" and report.log.deaf  # killed, and no line says so
    return 0 if uses == {"no"} or (report.log.whole and not silent) else 2


def _guard(root: Root) -> Guard:
    """The gate's state, where it can be asked."""
    from splitlock.report.status import Guard

    if not root.live:
        return Guard(up="unknown", why="it is another machine's")
    if os.geteuid() != 0:
        return Guard(up="unknown", why="only root can ask it")
    from splitlock.guard.status import status

    try:
        state = status()
    except SplitlockError as error:
        return Guard(up="unknown", why=str(error))
    return Guard(up="yes" if state.live else "no", why=state.why.removeprefix("not up; "))


def _measure(args: argparse.Namespace) -> Measured:
    from splitlock.host import measure
    from splitlock.host.kernel import effective_mode

    if not 1 <= args.measure <= measure.MOST:
        raise SplitlockError(f"--measure {args.measure}: 1 to {measure.MOST} split locks", 2)
    if effective_mode() == "fatal":
        raise SplitlockError(
            "--measure: split_lock_detect=fatal here: the first split lock would be our end (SIGBUS)", 2
        )
    if not args.yes and not sys.stdin.isatty():
        raise SplitlockError("--measure: takes real split locks: not without consent; add --yes", 2)
    sys.stderr.write(
        f"splitlock: --measure takes {args.measure} real split locks, each of which stalls all cores of the host "
        "for some microseconds\n"
    )
    if not args.yes:
        sys.stderr.write("go on? [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise SplitlockError("--measure: nothing measured", 2)
    return measure.measure(args.measure)
