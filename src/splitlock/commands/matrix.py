"""`splitlock matrix`: what does each kind of split lock really do, by kernel, mode and processor?"""

from __future__ import annotations

import argparse
import re

from splitlock.commands._options import report_options, seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.commands import Parser

_MODES = ("off", "warn", "mitigate=0", "fatal", "ratelimit:10")
_KINDS = ("user", "user32", "signal", "ac", "repeat", "module", "kthread", "interrupt", "together", "after")
_PROCESSORS = ("ac", "db", "both")
_EPILOG = """\
modes: off, warn, fatal, ratelimit:N as split_lock_detect= has them; mitigate=0
is warn with kernel.split_lock_mitigate=0.
kinds: user, user32 (a 32-bit program), signal (its handler), ac (EFLAGS.AC is
set), repeat (15 times), together (two at once), after (that, one on each
processor); in the kernel, where there are headers for it: module (as it is
loaded), kthread, interrupt.

exit status: 0 all as the kernel's documentation says, 1 something is not, 2 it
could not be measured, or wrong usage.

examples:
  splitlock matrix --kernels /boot/vmlinuz-6.1.0-56-amd64
  splitlock matrix --kernels debs/ --format json -o matrix.json
  splitlock matrix --kernels linux-image-6.1*.deb --headers headers/ \\
      --modes warn fatal --kinds user module --processors ac"""

PARSER = {
    "usage": "splitlock matrix --kernels PATH... [--headers PATH...] [options]",
    "description": "Boot kernels in QEMU, on processors that detect split locks and bus locks, and\n"
    "tell what each kind of split lock does in each mode. Runs on any machine;\n"
    "nothing splits for real.",
    "epilog": _EPILOG,
}


def prepare_parser(parser: Parser) -> None:
    """Add this verb's options to its parser, made with `PARSER`."""
    parser.add_argument(
        "--kernels", nargs="+", required=True, metavar="PATH", help="vmlinuz, vmlinux, .deb, .rpm, or their directory"
    )
    parser.add_argument(
        "--headers",
        nargs="+",
        metavar="PATH",
        help="to build a module with: directories, or packages' (default: beside the kernels, or installed)",
    )
    parser.add_argument("--modes", nargs="+", type=_mode, default=_MODES, metavar="MODE", help="(default: all)")
    parser.add_argument("--kinds", nargs="+", choices=_KINDS, default=_KINDS, metavar="KIND", help="(default: all)")
    parser.add_argument(
        "--processors",
        nargs="+",
        choices=_PROCESSORS,
        default=_PROCESSORS,
        metavar="P",
        help="ac: with #AC for split locks, db: with #DB for bus locks, both (default: all three)",
    )
    parser.add_argument("--qemu", default="qemu-system-x86_64", metavar="PROGRAM", help="(default: %(default)s)")
    parser.add_argument(
        "--deadline", type=seconds, default=60.0, metavar="S", help="give up when a boot says nothing for so long (60)"
    )
    report_options(parser, "with the kernel's own lines about every cell")


def run(args: argparse.Namespace) -> int:
    """Do it; gives the exit status."""
    from splitlock.commands._output import Output, end_politely
    from splitlock.commands._progress import Bar
    from splitlock.guest.matrix.measure import Wanted, measure
    from splitlock.report.matrix_text import render

    end_politely()
    wanted = Wanted(
        kernels=args.kernels, headers=args.headers, processors=_once(args.processors), modes=_once(args.modes),
        kinds=[kind for kind in _KINDS if kind in args.kinds], qemu=args.qemu, deadline=args.deadline,
    )  # fmt: skip
    with Output(args.output) as out:
        with Bar("booting kernels", [], unit="cells", quiet=args.quiet) as bar:
            report = measure(wanted, bar.of, bar.advance)
        status = 1 if any(cell.differs for cell in report.cells) else 0
        if not any(cell.outcome != "not-tried" for cell in report.cells):
            status = 2
        if status or report.interrupted or not args.quiet:
            out.write(report.to_json() if args.format == "json" else render(report, verbose=args.verbose).encode())
    return 130 if report.interrupted else status


def _once(words: list[str]) -> list[str]:
    return list(dict.fromkeys(words))


def _mode(text: str) -> str:
    limit = re.fullmatch(r"ratelimit:([1-9]\d{0,3})", text)
    if text not in _MODES and not (limit and int(limit[1]) <= 1000):
        raise argparse.ArgumentTypeError(f"{text}: not off, warn, mitigate=0, fatal or ratelimit:1 to 1000")
    return text
