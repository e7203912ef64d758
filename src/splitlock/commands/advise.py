"""`splitlock advise`: should split-lock detection be on here, and how?"""

from __future__ import annotations

import os
import stat

from splitlock._errors import SplitlockError
from splitlock.commands._options import report_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from splitlock.commands import Parser
    from splitlock.report.advise import Guest, Report
    from splitlock.report.status import Module
    from splitlock.report.status import Report as Status

_OPEN = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")
_EPILOG = """\
exit status: 0 the mode in effect breaks nothing here, 1 it does, 2 that cannot
be told, something could not be read, or wrong usage, 130 interrupted: the
report knows only what was scanned until then.

examples:
  splitlock advise
  splitlock advise --root /mnt/image --scan vmmon.ko
  splitlock status --format json -o host.json
  splitlock guest --disk vm.qcow2 --format json -o guest.json
  splitlock advise --status host.json --guest-report guest.json"""

PARSER = {
    "description": "Tell which modes of split_lock_detect= are safe on this machine, what breaks in\n"
    "the others and why, and what to boot with: one judgement with `status`,\n"
    "of the same facts, and of modules and guests that you name.",
    "epilog": _EPILOG,
}


def prepare_parser(parser: Parser) -> None:
    """Add this verb's options to its parser, made with `PARSER`."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--root", default="/", metavar="DIR", help="another system's files (default: this one's)")
    source.add_argument("--status", metavar="FILE", help="a report of `splitlock status --format json` instead")
    parser.add_argument("--scan", nargs="+", metavar="PATH", help="modules that may be loaded, besides those installed")
    parser.add_argument(
        "--guest-report",
        nargs="+",
        default=[],
        metavar="FILE",
        help="reports of `splitlock guest --format json`: these guests are run here, and no others",
    )
    report_options(parser, "with the source of each rule")


def run(args: argparse.Namespace) -> int:
    """Do it; gives the exit status."""
    from splitlock.commands._output import Output
    from splitlock.host.advise import advise
    from splitlock.report.advise_text import render

    guests = _guests(args.guest_report)
    status = _status(args)
    # who has interrupted one scan does not want another; a report of one that was is as good as it is
    named, interrupted = ([], True) if status.interrupted and not args.status else _scanned(args)
    report = advise(status, named, guests, status.machine or args.status or status.root, interrupted=interrupted)
    found = 130 if interrupted else _found(report)
    if found or not args.quiet:
        with Output(args.output) as out:
            out.write(report.to_json() if args.format == "json" else render(report, verbose=args.verbose).encode())
    return found


def _found(report: Report) -> int:
    """The exit status: 1 the mode in effect breaks something, 2 that cannot be told."""
    now = {mode.verdict for mode in report.judgement.modes if mode.now}
    uses = {report.judgement.split_locks.known, report.judgement.bus_locks.known}
    blind = not now or "not-known" in now or ("yes" not in uses and "unknown" in uses) or bool(report.unscanned)
    return 1 if "breaks" in now else 2 if blind else 0


def _status(args: argparse.Namespace) -> Status:
    import msgspec

    from splitlock.host.advise import contradiction
    from splitlock.report.status import Guard, Report

    if args.status:
        try:
            given = Report.from_json(_contents("--status", args.status))
        except msgspec.DecodeError as error:
            raise SplitlockError(f"--status {args.status}: no report of splitlock status: {error}", 2) from None
        if wrong := contradiction(given):
            raise SplitlockError(f"--status {args.status}: {wrong}; take the report anew, with splitlock status", 2)
        return given
    from splitlock.commands._progress import Bar
    from splitlock.host.root import Root
    from splitlock.host.status import status

    with Bar("reading modules", [], quiet=args.quiet) as bar:
        return status(Root(args.root), Guard(up="unknown", why="not asked"), advance=bar.advance)


def _scanned(args: argparse.Namespace) -> tuple[list[Module], bool]:
    """Modules that were named, and whether the scan was interrupted; what cannot be read is an error."""
    paths: list[str] = args.scan or []
    if not paths:
        return [], False
    from splitlock.host.modules import hypervisors, loaded
    from splitlock.host.root import Root

    for path in paths:
        if not os.path.exists(path):
            raise SplitlockError(f"--scan {path}: No such file or directory; name modules, packages or directories", 2)
    running = None if args.status else loaded(Root(args.root))  # there, where they may be loaded
    modules: list[Module] = []
    for path in paths:
        found = hypervisors(Root("/"), [os.path.abspath(path)], running)
        modules += found.modules
        if found.interrupted:
            return modules, True
        if found.failed:
            raise SplitlockError(f"--scan {found.failed[0]}; name kernel modules that can be read", 2)
        if not found.files:
            raise SplitlockError(f"--scan {path}: no kernel module is in it; name modules, packages or directories", 2)
    return modules, False


def _guests(paths: list[str]) -> list[Guest]:
    import msgspec

    from splitlock.host.advise import guest
    from splitlock.report.guest import Report

    found = []
    for path in paths:
        try:
            found.append(guest(path, Report.from_json(_contents("--guest-report", path))))
        except msgspec.DecodeError as error:
            raise SplitlockError(f"--guest-report {path}: no report of splitlock guest: {error}", 2) from None
    return found


def _contents(option: str, path: str) -> bytes:
    try:
        given = os.stat(path).st_mode
        # a pipe that is open already (of `<(splitlock status ...)`) ends; one that is named waits for somebody to write
        if stat.S_ISREG(given) or (stat.S_ISFIFO(given) and path.startswith(_OPEN)):
            with open(path, "rb") as file:
                return file.read()
        why = "is a directory" if stat.S_ISDIR(given) else "not a regular file"
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
    raise SplitlockError(f"{option} {path}: {why}; name a report in JSON", 2)
