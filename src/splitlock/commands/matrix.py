"""`splitlock matrix`: what does each kind of split lock really do, by kernel, mode and processor?"""

from __future__ import annotations

import argparse
import re

from splitlock._errors import SplitlockError
from splitlock.commands._options import report_options, seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeVar

    from splitlock.commands import Parser
    from splitlock.report.matrix import Kind, Processor
    from splitlock.report.matrix_vmx import Mode

    T = TypeVar("T")

_MODES = ("off", "warn", "mitigate=0", "fatal", "ratelimit:10")
_KINDS: tuple[Kind, ...] = (
    "user", "user32", "signal", "ac", "repeat", "module", "kthread", "interrupt", "together", "after",
)  # fmt: skip
_PROCESSORS: tuple[Processor, ...] = ("ac", "db", "both")
_DEADLINE, _VMX_DEADLINE = 60.0, 120.0  # seconds; Bochs' own: Linux boots in Linux there
_QEMU = "qemu-system-x86_64"
_VMX_MODES: tuple[Mode, ...] = ("off", "warn", "fatal", "unaware")
_HYPERVISORS = ("kvm", "forward", "through", "off", "handle")
_GUESTS = ("real", "kernel", "kernel_idt", "user_idt", "am_idt", "ac_idt", "asked", "asked_idt", "wrmsr_idt",
           "linux_user", "linux_module")  # fmt: skip
_EPILOG = """\
modes: off, warn, fatal, ratelimit:N as split_lock_detect= has them; mitigate=0
is warn with kernel.split_lock_mitigate=0.
kinds: user, user32 (a 32-bit program), signal (its handler), ac (EFLAGS.AC is
set), repeat (15 times), together (two at once), after (that, one on each
processor); in the kernel, where there are headers for it: module (as it is
loaded), kthread, interrupt.

with --vmx: guests of kvm-intel, and of a hypervisor of ours that gives #AC to
its guest (forward), does not intercept it (through), turns detection off (off)
or asks the kernel (handle); modes off, warn, fatal, and unaware: detection is
on, and the kernel does not know that the processor has it.

exit status: 0 all as the kernel's documentation says (with --vmx: as simulate
does), 1 something is not, 2 it could not be measured, or wrong usage.

examples:
  splitlock matrix --kernels /boot/vmlinuz-6.1.0-56-amd64
  splitlock matrix --kernels debs/ --format json -o matrix.json
  splitlock matrix --kernels linux-image-6.1*.deb --headers headers/ \\
      --modes warn fatal --kinds user module --processors ac
  splitlock matrix --vmx --kernels linux-image-6.12*.deb"""

PARSER = {
    "usage": "splitlock matrix [--vmx] --kernels PATH... [--headers PATH...] [options]",
    "description": "Boot kernels in QEMU, on processors that detect split locks and bus locks, and\n"
    "tell what each kind of split lock does in each mode; or with --vmx in Bochs,\n"
    "and tell what becomes of hypervisors' guests. Runs on any machine; nothing\n"
    "splits for real.",
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
    parser.add_argument("--vmx", action="store_true", help="hypervisors' guests, on a processor with VMX (in Bochs)")
    parser.add_argument("--modes", nargs="+", type=_mode, metavar="MODE", help="(default: all)")
    parser.add_argument("--kinds", nargs="+", choices=_KINDS, metavar="KIND", help="(default: all)")
    parser.add_argument(
        "--hypervisors", nargs="+", choices=_HYPERVISORS, metavar="H", help="with --vmx: which (default: all)"
    )
    parser.add_argument("--guests", nargs="+", choices=_GUESTS, metavar="G", help="with --vmx: which (default: all)")
    parser.add_argument(
        "--processors",
        nargs="+",
        choices=_PROCESSORS,
        metavar="P",
        help="ac: with #AC for split locks, db: with #DB for bus locks, both (default: all three)",
    )
    parser.add_argument("--qemu", metavar="PROGRAM", help=f"(default: {_QEMU})")
    parser.add_argument(
        "--deadline",
        type=seconds,
        metavar="S",
        help="give up when a boot says nothing for so long (60; --vmx: 120 of Bochs' own)",
    )
    report_options(parser, "with the kernel's own lines about every cell")


def run(args: argparse.Namespace) -> int:
    """Do it; gives the exit status."""
    from splitlock.commands._output import Output, end_politely
    from splitlock.commands._progress import Bar
    from splitlock.guest.matrix.measure import Wanted, measure
    from splitlock.report.matrix_text import render

    _check(args)
    if args.vmx:
        return _run_vmx(args)
    end_politely()
    wanted = Wanted(
        kernels=args.kernels, headers=args.headers, processors=_once(args.processors or _PROCESSORS),
        modes=_once(args.modes or _MODES), kinds=[kind for kind in _KINDS if kind in (args.kinds or _KINDS)],
        qemu=args.qemu or _QEMU, deadline=args.deadline or _DEADLINE,
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


def _check(args: argparse.Namespace) -> None:
    """Raises SplitlockError for options that do not go together."""
    others = ("kinds", "processors", "qemu") if args.vmx else ("hypervisors", "guests")
    for name in others:
        if getattr(args, name) is not None:
            raise SplitlockError(f"--{name}: {'not with' if args.vmx else 'only with'} --vmx", 2)
    for mode in args.modes or ():
        if mode not in (_VMX_MODES if args.vmx else (*_MODES, mode)) or (mode == "unaware" and not args.vmx):
            modes = ", ".join(_VMX_MODES if args.vmx else (*_MODES[:-1], "ratelimit:N"))
            raise SplitlockError(f"--modes {mode}: {'with' if args.vmx else 'without'} --vmx there are {modes}", 2)


def _run_vmx(args: argparse.Namespace) -> int:
    from splitlock.commands._output import Output, end_politely
    from splitlock.commands._progress import Bar
    from splitlock.guest.matrix.vmx import Wanted, measure
    from splitlock.model.measured import simulate
    from splitlock.report.matrix_vmx_text import render

    end_politely()
    wanted = Wanted(
        kernels=args.kernels, headers=args.headers,
        modes=[mode for mode in _VMX_MODES if mode in (args.modes or _VMX_MODES)],
        hypervisors=_once(args.hypervisors or _HYPERVISORS), guests=_once(args.guests or _GUESTS),
        deadline=args.deadline or _VMX_DEADLINE,
    )  # fmt: skip
    with Output(args.output) as out:
        with Bar("booting kernels", [], unit="cells", quiet=args.quiet) as bar:
            report = measure(wanted, bar.of, bar.advance)
        simulate(report.cells)
        status = 1 if any(cell.differs or cell.outcome == "other" for cell in report.cells) else 0
        if not any(cell.outcome not in ("not-tried", "impossible") for cell in report.cells):
            status = 2
        if status or report.interrupted or not args.quiet:
            out.write(report.to_json() if args.format == "json" else render(report, verbose=args.verbose).encode())
    return 130 if report.interrupted else status


def _once(words: Sequence[T]) -> list[T]:
    return list(dict.fromkeys(words))


def _mode(text: str) -> str:
    limit = re.fullmatch(r"ratelimit:([1-9]\d{0,3})", text)
    if text not in (*_MODES, "unaware") and not (limit and int(limit[1]) <= 1000):
        raise argparse.ArgumentTypeError(f"{text}: not off, warn, mitigate=0, fatal or ratelimit:1 to 1000")
    return text
