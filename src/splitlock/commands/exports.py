"""`splitlock exports`: what hangs on a kernel's exported symbols."""

from __future__ import annotations

from splitlock._errors import SplitlockError
from splitlock.commands._options import report_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from splitlock.commands import Parser
    from splitlock.modules.exports import Kernel
    from splitlock.report.exports import Report

_EPILOG = """\
exit status: 0 nothing fails (for --break: nothing but what was asked for; for
--users: nobody uses it), 1 something does, 2 something could not be read, or
wrong usage.

examples:
  splitlock exports --without vmap_pfn
  splitlock exports --users __vmalloc --modules linux-image-6.1.0-56-amd64_*.deb
  splitlock exports --break kvm_intel kvm_amd --format json"""

PARSER = {
    "help": "tell what no longer loads without an exported symbol",
    "usage": "splitlock exports --without SYMBOL... [options]\n"
    "       splitlock exports --break MODULE... [options]\n"
    "       splitlock exports --users SYMBOL... [options]",
    "description": "Tell which kernel modules no longer load when the kernel, or a module, stops\nexporting a symbol.",
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
    report_options(parser, "list all of many modules")


def run(args: argparse.Namespace) -> int:
    """Do it; gives the exit status."""
    from splitlock.commands._output import Output
    from splitlock.commands._progress import Bar
    from splitlock.image.package import default_paths
    from splitlock.modules.exports import load
    from splitlock.report.exports_text import render

    try:
        paths = args.modules or default_paths()
    except SplitlockError as error:
        raise SplitlockError(f"{error} with --modules", error.exit_code) from None
    with Bar("reading modules", paths, quiet=args.quiet) as bar:
        kernel = load(paths, args.symvers, bar.advance)
    report = _report(kernel, args)
    status = 1 if any(not loss.wanted for loss in report.losses) or any(s.used_by for s in report.symbols) else 0
    status = 2 if report.errors else status
    if status or not args.quiet:
        with Output(args.output) as out:
            out.write(report.to_json() if args.format == "json" else render(report, verbose=args.verbose).encode())
    return status


def _report(kernel: Kernel, args: argparse.Namespace) -> Report:
    from splitlock.modules.policy import EXPORT_SETS
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
        option = "--without" if args.without else "--users"
        asked = []
        for word in dict.fromkeys(word.encode("utf-8", "backslashreplace").decode() for word in words):
            asked += EXPORT_SETS.get(word) or [kernel.known(word, option)]  # a set is no mistake where it is all gone
        asked = list(dict.fromkeys(asked))
    losses = [] if args.users else kernel.losses(asked)
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
            for name in asked
        ],
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
