"""`splitlock simulate`: what would happen, step by step, or everywhere at once?"""

from __future__ import annotations

import os

from splitlock._errors import SplitlockError
from splitlock.commands._options import report_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from splitlock.commands import Parser

_EPILOG = """\
exit status: 0 nobody is harmed in the scenario (of --matrix: always), 1
somebody dies or is stuck, 2 something could not be read, or wrong usage.

examples:
  splitlock simulate docs/scenarios/02-unaware-guest.toml
  splitlock simulate docs/scenarios/07-refuse.toml \\
      --modules linux-image-6.1.0-56-amd64_*.deb vboxdrv.ko
  splitlock simulate --matrix --format html -o matrix.html
  splitlock simulate --matrix --processor '#AC' '#DB' --linux 6.12"""

PARSER = {
    "usage": "splitlock simulate SCENARIO.toml [--modules PATH...] [options]\n"
    "       splitlock simulate --matrix [--processor P...] [--linux V] [options]",
    "description": "Play a scenario on a model of processor, kernel, module loader, hypervisor and\n"
    "guest: who traps, who handles it, what is logged, who dies, what it costs.",
    "epilog": _EPILOG,
}


def prepare_parser(parser: Parser) -> None:
    """Add this verb's options to its parser, made with `PARSER`."""
    parser.add_argument("scenario", nargs="?", metavar="SCENARIO.toml", help="what happens (docs/simulate.md)")
    parser.add_argument("--matrix", action="store_true", help="every mode, policy, hypervisor and guest instead")
    parser.add_argument(
        "--modules",
        nargs="+",
        metavar="PATH",
        help="where the scenario's modules are: files, directories, packages (default: the running kernel's)",
    )
    parser.add_argument(
        "--processor",
        nargs="+",
        choices=("#AC", "#DB", "none"),
        help="of --matrix: what it detects (default: #AC; of amd: #DB)",
    )
    parser.add_argument("--vendor", choices=("intel", "amd"), default="intel", help="of --matrix (default: intel)")
    parser.add_argument("--linux", default="6.1", metavar="VERSION", help="of --matrix: the host's (default: 6.1)")
    report_options(
        parser, "of --matrix: a table for each policy", formats=("text", "json", "html"), which="html: of --matrix"
    )


def run(args: argparse.Namespace) -> int:
    """Do it; gives the exit status."""
    from splitlock.commands._output import Output

    if args.matrix == bool(args.scenario):
        raise SplitlockError("simulate: give it either a scenario or --matrix", 2)
    if args.format == "html" and not args.matrix:
        raise SplitlockError("--format html: of --matrix only; use text or json", 2)
    status, text = _matrix(args) if args.matrix else _scenario(args)
    if status or not args.quiet:
        with Output(args.output) as out:
            out.write(text)
    return status


def _scenario(args: argparse.Namespace) -> tuple[int, bytes]:
    from splitlock.model.run import run as play
    from splitlock.model.scenario import load
    from splitlock.report.simulate_text import render

    report = play(load(args.scenario), args.scenario, _finder(args.modules, os.path.dirname(args.scenario)))
    return int(report.harmed), report.to_json() if args.format == "json" else render(report).encode()


def _matrix(args: argparse.Namespace) -> tuple[int, bytes]:
    from splitlock.model.matrix import matrix
    from splitlock.model.scenario import Machine, linux, processor

    words = args.processor or Machine(vendor=args.vendor).detects
    detects = [word for word in words if word != "none"]
    if len(detects) != len(words) and detects:
        raise SplitlockError("--processor: none goes with nothing else", 2)
    report = matrix(processor(args.vendor, detects), linux(args.linux))
    if args.format == "json":
        return 0, report.to_json()
    if args.format == "html":
        from splitlock.report.simulate_html import render

        return 0, render(report).encode()
    from splitlock.report.simulate_text import render_matrix

    return 0, render_matrix(report, verbose=args.verbose).encode()


def _finder(paths: list[str] | None, beside: str) -> Callable[[str], bytes]:
    """Modules by name (`kvm_intel`) or file name among the paths; a name with a slash is a path beside the scenario."""
    from splitlock.image.package import File, Member, default_paths, files, read

    def stem(name: str) -> str:
        return os.path.basename(name).partition(".ko")[0].replace("-", "_")

    def find(name: str) -> bytes:
        if os.sep in name:
            found = next(read(File(os.path.join(beside, name), True)), None)
            if isinstance(found, Member):
                return bytes(found.data)
            raise SplitlockError(f"{name}: {found.reason if found else 'nothing in it'}; name a module", 2)
        try:
            places = paths or default_paths()
        except SplitlockError as error:
            raise SplitlockError(f"{error} with --modules, for {name}", 2) from None
        for file in files(places):
            if not isinstance(file, File) or not (
                stem(file.path) == stem(name) or file.path.endswith((".deb", ".rpm"))
            ):
                continue
            for member in read(file):
                if isinstance(member, Member) and stem(member.member or member.path) == stem(name):
                    return bytes(member.data)
        raise SplitlockError(f"{name}: no such module in {', '.join(places)}; say where it is with --modules", 2)

    return find
