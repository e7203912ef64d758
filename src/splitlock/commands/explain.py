"""`splitlock explain`: what one line of the kernel's log means, or one oops, for who has only the log."""

from __future__ import annotations

import string
import sys

from splitlock._errors import SplitlockError
from splitlock.commands._options import oops_files, oops_options, report_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from splitlock.commands import Parser
    from splitlock.host.explain.space import Saved
    from splitlock.host.log.heard import Said
    from splitlock.linux.log import Line
    from splitlock.report.watch import Event

_EPILOG = """\
exit status: 0 the locked instruction was found, 1 it was not, or an oops's dump
does not fit, 2 it could not be looked for, or wrong usage.

examples:
  splitlock explain --pid 4185 "$(dmesg | grep split_lock | tail -n 1)"
  splitlock explain --image ./remake --base 0x555555554000 \\
      '#DB: remake/737636 took a bus_lock trap at address: 0x5555555645d6'
  splitlock explain --maps saved.maps 'LINE'      cat /proc/PID/maps >saved.maps
  dmesg | grep bus_lock | tail -n 1 | splitlock explain --pid 4185
  splitlock explain --vmlinux vmlinux <oops.txt     an oops, its whole dump"""

PARSER = {
    "usage": "splitlock explain [options] [LOGLINE]",
    "description": "Name the code behind the address in one line of the kernel's log, or behind an\n"
    "oops by a split lock in the kernel itself.",
    "epilog": _EPILOG,
}


def prepare_parser(parser: Parser) -> None:
    """Add this verb's options to its parser, made with `PARSER`."""
    parser.add_argument("line", nargs="?", metavar="LOGLINE", help="the kernel's line (default: standard input)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--pid", type=int, metavar="P", help="the process is still there (default: the line's own task)")
    where.add_argument("--maps", metavar="SAVED", help="a copy of its /proc/PID/maps")
    where.add_argument("--image", metavar="FILE", help="the program or library that the address is in")
    parser.add_argument(
        "--base",
        metavar="ADDR",
        help="with --image: where it was mapped (default: as the line says, else where it is linked to)",
    )
    parser.add_argument("--root", metavar="DIR", default="", help="with --maps: where the mapped files lie")
    oops_options(parser)
    report_options(
        parser,
        "the kernel's words as well; an oops's callers one by one",
        output="write there, not to standard output",
        quiet="nothing but the exit status",
    )


def run(args: argparse.Namespace) -> int:
    """Do it; gives the exit status."""
    from splitlock.commands._output import Output

    if args.base is not None and not args.image:
        raise SplitlockError("--base: goes with --image FILE", 2)
    if args.root and not args.maps:
        raise SplitlockError("--root: goes with --maps SAVED", 2)
    event = _event(_said(args.line), args)
    if not args.quiet:
        with Output(args.output) as out:
            if args.format == "json":
                import msgspec

                from splitlock.report.document import encoded

                out.write(msgspec.json.format(encoded(event), indent=2) + b"\n")
            else:
                from splitlock.report.watch_text import render

                out.write(render(event, verbose=args.verbose).encode("utf-8", "replace"))
    found = event.oops or event.place
    fits = event.oops is None or event.oops.fits != "no"
    return 0 if found and found.instruction and fits else 1


def _event(said: Said, args: argparse.Namespace) -> Event:
    """A sentence explained."""
    from splitlock.host.explain.line import explain
    from splitlock.host.oops import explanation as oops

    assert said.line is not None
    files, causes = oops_files(args)
    event = explain(said.line, _space(args, said.line))
    event.speaker = said.record.speaker
    if said.dump is not None:
        event.detail, event.oops = str(said.dump.place or ""), oops.explain(said.dump, files)
    event.causes = causes.of_event(event)
    return event


def _said(given: str | None) -> Said:
    """The first line with an address, or oops, in what was given, or in a log on standard input; however wrapped."""
    from splitlock.host.log.heard import Log
    from splitlock.host.log.sources import Stored, Text

    piped = given is None or given == "-"
    log = Log(Stored("-") if piped else Text(given or ""))
    kinds = ("trap", "guest", "killed", "oops", "alignment")
    lines = [said for said in log if said.line is not None and (said.line.kind in kinds or said.dump)]
    sure = [said for said in lines if said.line and said.line.kind in kinds]
    found = sure or lines  # a dump whose first line is lost is explained where there is nothing better
    if not found:
        what = "standard input: no" if piped else f"explain {(given or '').strip()[:60]!r}: not a"
        raise SplitlockError(
            f"{what} line of the kernel's with an address, and no oops, such as "
            "'#AC: COMM/PID took a split_lock trap at address: 0x401000'; `splitlock watch FILE` takes a whole log",
            2,
        )
    if len(found) > 1:
        sys.stderr.write(f"splitlock explain: the first of {len(found):,} lines; `splitlock watch -` explains all\n")
    return next((said for said in found if not said.record.speaker), found[0])  # the kernel's own word first


def _space(args: argparse.Namespace, line: Line) -> Saved | None:
    if args.pid is None and not args.maps and not args.image:
        return None
    from splitlock.host.explain.based import Based
    from splitlock.host.explain.space import Live, saved

    if args.pid is not None:
        try:
            return Live(args.pid)
        except PermissionError:
            raise SplitlockError(
                f"--pid {args.pid}: its memory is not readable: CAP_SYS_PTRACE is wanted; run it with sudo", 2
            ) from None
        except OSError as error:
            gone = isinstance(error, FileNotFoundError | ProcessLookupError)
            what = "no such task is here; of one that has ended: --maps, or --image" if gone else error.strerror
            raise SplitlockError(f"--pid {args.pid}: {what}", 2) from None
    if args.maps:
        return saved(args.maps, args.root)
    return Based(args.image, _address(args.base) if args.base is not None else None, line)


def _address(text: str) -> int:
    """An address, as the kernel and /proc write them: hexadecimal, with or without 0x."""
    digits = text.removeprefix("0x")
    if not digits or len(digits) > 16 or not all(digit in string.hexdigits for digit in digits):
        raise SplitlockError(
            f"--base {text}: no address of 64 bits; such as 0x555555554000, or as /proc/PID/maps has it", 2
        )
    return int(digits, 16)
