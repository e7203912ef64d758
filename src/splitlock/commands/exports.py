"""`splitlock exports`: what hangs on a kernel's exported symbols."""

from __future__ import annotations

import argparse
import os
import sys

from splitlock._errors import SplitlockError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.commands import Parser
    from splitlock.modules.exports import Kernel
    from splitlock.report.exports import Report

_EPILOG = """\
exit status: 0 nothing fails (for --break: nothing but what was asked for; for
--users: nobody uses it), 1 something does, 2 something could not be read, or
wrong usage.

examples:
  splitlock exports --without vmap_pfn
  splitlock exports --users __vmalloc --modules linux-image-6.1.0-*_amd64.deb
  splitlock exports --break kvm_intel kvm_amd --format json"""

PARSER = {
    "help": "tell what no longer loads without an exported symbol",
    "usage": "splitlock exports (--without SYMBOL... | --break MODULE... | --users SYMBOL...)\n"
    "                         [options]",
    "description": "Tell which kernel modules no longer load when the kernel, or a module, stops exporting a symbol.",
    "epilog": _EPILOG,
}


def prepare_parser(parser: Parser) -> None:
    """Add this verb's options to its parser, made with `PARSER`."""
    question = parser.add_mutually_exclusive_group(required=True)
    question.add_argument(
        "--without", nargs="+", metavar="SYMBOL", help="who no longer loads without these, directly and through others"
    )
    question.add_argument(
        "--break",
        dest="break_",
        nargs="+",
        metavar="MODULE",
        help="which exports to remove so that these fail and the fewest others do",
    )
    question.add_argument("--users", nargs="+", metavar="SYMBOL", help="who imports these")
    parser.add_argument(
        "--modules",
        nargs="+",
        metavar="PATH",
        help="one kernel's modules: a directory, files or its package (default: the running kernel's)",
    )
    parser.add_argument("--symvers", metavar="FILE", help="what the kernel exports: Module.symvers, from its headers")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="(default: text)")
    parser.add_argument("-o", "--output", metavar="FILE", help="write the report there, not to standard output")
    parser.add_argument("-q", "--quiet", action="store_true", help="nothing but the exit status when it is 0")
    parser.add_argument("-v", "--verbose", action="store_true", help="list all of many modules")


def run(args: argparse.Namespace) -> int:
    """Do it; gives the exit status."""
    from splitlock.image.package import default_paths
    from splitlock.modules.exports import load

    bar = sys.stderr.isatty() and not args.quiet
    kernel = load(args.modules or default_paths(), args.symvers, _progress if bar else None)
    if bar:
        sys.stderr.write("\r\x1b[K")
    report = _report(kernel, args)
    status = 1 if any(not loss.wanted for loss in report.losses) or any(s.used_by for s in report.symbols) else 0
    status = 2 if report.errors else status
    if status or not args.quiet:
        _write(args, report)
    return status


def _report(kernel: Kernel, args: argparse.Namespace) -> Report:
    from splitlock.report.exports import SCHEMA, Error, Loss, Report, Symbol

    alternatives: dict[str, list[str]] = {}
    wanted: list[str] = []
    optimal = True
    if args.break_:
        from splitlock.modules.cut import cut

        wanted = sorted({kernel.named(name) for name in args.break_})
        found = cut(kernel, wanted)
        asked, alternatives, optimal = found.symbols, found.alternatives, found.optimal
    else:
        words = args.without or args.users
        asked = list(dict.fromkeys(word.encode("utf-8", "backslashreplace").decode() for word in words))
    known = [name for name in asked if name in kernel.users or name in kernel.exporters]
    losses = [] if args.users else kernel.losses(known)
    return Report(
        schema=SCHEMA,
        question="break" if args.break_ else "users" if args.users else "without",
        kernels=kernel.releases,
        modules=len(kernel.modules),
        kernel_exports=kernel.source,
        symbols=[
            Symbol(
                name=name,
                exporters=kernel.exporters.get(name, []),
                users=len(kernel.users.get(name, ())),
                breaks=len(kernel.without([name])),
                used_by=kernel.users.get(name, []) if args.users else None,
                alternatives=alternatives.get(name),
            )
            for name in known
        ],
        unknown=[name for name in asked if name not in known],
        wanted=wanted,
        direct=sum(bool(loss.direct) for loss in losses),
        losses=[
            Loss(
                module=loss.module,
                path=kernel.modules[loss.module].path,
                member=kernel.modules[loss.module].member,
                wanted=loss.module in wanted,
                direct=loss.direct,
                through=loss.through,
            )
            for loss in losses
        ],
        optimal=optimal,
        unresolved=kernel.unresolved,
        errors=[Error(path=f.path, member=f.member, reason=f.reason) for f in kernel.failures],
    )


def _progress(modules: int) -> None:
    if modules % 50 == 0:
        sys.stderr.write(f"\rreading modules: {modules:,}")
        sys.stderr.flush()


def _write(args: argparse.Namespace, report: Report) -> None:
    from splitlock.report.exports import render

    text = report.to_json() if args.format == "json" else render(report, verbose=args.verbose).encode()
    if not args.output:
        try:
            sys.stdout.buffer.write(text)
            sys.stdout.flush()
        except BrokenPipeError:  # of a reader that has seen enough, such as head(1)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    try:
        with open(args.output, "wb") as out:
            out.write(text)
    except OSError as error:
        raise SplitlockError(f"-o {args.output}: {error.strerror}; name a file that can be written", 2) from None
