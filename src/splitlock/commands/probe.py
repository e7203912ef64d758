"""`splitlock probe`: how does a hypervisor treat split locks?"""

from __future__ import annotations

import sys

from splitlock._errors import SplitlockError
from splitlock.commands._options import report_options, seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from splitlock.commands import Parser
    from splitlock.report.probe import Report

_EPILOG = """\
commands:
  build            write the image: a CD that boots on any PC with a BIOS
  run              run it here: --qemu tcg, --qemu kvm, --bochs, --kvm
  read FILE        tell what a serial log of it says

exit status: 0 the guest is safe, 1 split locks are forwarded blindly or break
the guest, 2 something is missing, or wrong usage.

examples:
  splitlock probe build -o probe.iso       boot it; keep the first serial port
  splitlock probe read serial.log
  splitlock probe run --kvm -v             on /dev/kvm: 40 to 62 split locks
  splitlock probe run --qemu tcg --format json"""

PARSER = {
    "usage": "splitlock probe COMMAND [options]",
    "description": "Find out how a hypervisor treats split locks, from inside: a bootable image of\n"
    "8 KB tries them in real, protected and long mode, and says what happened.",
    "epilog": _EPILOG,
}
_BAD = ("forwards-blindly", "breaks-guest")


def prepare_parser(parser: Parser) -> None:
    """Add this verb's commands to its parser, made with `PARSER`."""
    command = parser.commands()
    build = command("build", "Write the image.")
    build.add_argument("-o", "--output", metavar="FILE", default="probe.iso", help="(default: probe.iso)")
    run = command("run", "Run the image here, and tell what it found.")
    where = run.add_mutually_exclusive_group(required=True)
    where.add_argument("--qemu", choices=("tcg", "kvm"), help="in QEMU: emulated, or on /dev/kvm")
    where.add_argument("--bochs", action="store_true", help="in Bochs, which emulates alignment checks")
    where.add_argument("--kvm", action="store_true", help="on /dev/kvm without QEMU: split locks are real here")
    run.add_argument("--qemu-binary", metavar="FILE", default="qemu-system-x86_64", help="(default: %(default)s)")
    run.add_argument("--bochs-binary", metavar="FILE", default="bochs", help="(default: %(default)s)")
    run.add_argument("--timeout", metavar="SECONDS", type=seconds, default=60.0, help="(default: 60)")
    run.add_argument("--log", metavar="FILE", help="keep the serial log there")
    read = command("read", "Tell what a serial log of the image says.")
    read.add_argument("log", metavar="FILE", help="the log, or - for standard input")
    for made in (run, read):
        report_options(made, "every row, with its cycles")
    build.add_argument("-q", "--quiet", action="store_true", help="nothing but the exit status when it is 0")


def run(args: argparse.Namespace) -> int:
    """Do it; gives the exit status."""
    if args.command == "build":
        return _build(args)
    return _run(args) if args.command == "run" else _read(args)


def _build(args: argparse.Namespace) -> int:
    from splitlock.commands._output import Output
    from splitlock.guest.probe.image import iso

    raw = iso()
    with Output(args.output) as out:
        out.write(raw)
    if not args.quiet:
        sys.stdout.write(f"{args.output}: {len(raw):,} bytes; boot it, keep what its first serial port says\n")
    return 0


def _run(args: argparse.Namespace) -> int:
    from splitlock.commands._output import Output, end_politely
    from splitlock.guest.probe import emulator, kvm
    from splitlock.guest.probe.log import read
    from splitlock.guest.probe.verdict import report

    end_politely()
    if args.kvm:
        source, ran = "KVM", kvm.run(args.timeout)
    elif args.bochs:
        source, ran = "Bochs", emulator.bochs(args.bochs_binary, args.timeout)
    else:
        source, ran = f"QEMU {args.qemu}", emulator.qemu(args.qemu, args.qemu_binary, args.timeout)
    if args.log:
        with Output(args.log) as log:
            log.write(ran.log)
    status = _tell(report(source, read(ran.log), ran.ended, ran.died), args)
    return 130 if ran.ended == emulator.INTERRUPTED else status


def _read(args: argparse.Namespace) -> int:
    from splitlock.guest.probe.log import LIMIT, read
    from splitlock.guest.probe.verdict import report

    try:
        if args.log == "-":
            raw = sys.stdin.buffer.read(LIMIT)
        else:
            with open(args.log, "rb") as file:
                raw = file.read(LIMIT)
    except OSError as error:
        raise SplitlockError(f"{args.log}: {error.strerror}; name the log of the first serial port", 2) from None
    log = read(raw)
    if not log.lines:
        raise SplitlockError(f"{args.log}: no line of the probe's in it; name the log of the first serial port", 2)
    return _tell(report("standard input" if args.log == "-" else args.log, log), args)


def _tell(report: Report, args: argparse.Namespace) -> int:
    from splitlock.commands._output import Output
    from splitlock.report.probe_text import render

    status = 2 if report.missing else 1 if report.verdict in _BAD else 0
    if status or not args.quiet:
        with Output(args.output) as out:
            out.write(report.to_json() if args.format == "json" else render(report, verbose=args.verbose).encode())
    return status
