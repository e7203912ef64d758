"""`splitlock scan`: which kernel modules are hypervisors, and what a policy says of them."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
import os
import sys

from splitlock._errors import SplitlockError
from splitlock.commands._options import jobs, report_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from concurrent.futures import Executor
    from typing import Protocol

    from splitlock.commands import Parser
    from splitlock.modules.audit import Batch, Job
    from splitlock.report.scan import File, Summary

    class Rendering(Protocol):
        """A report, a piece at a time."""

        def begin(self) -> bytes: ...
        def file(self, file: File) -> bytes: ...
        def end(self, summary: Summary) -> bytes: ...


_EPILOG = """\
PATH: modules (.ko, compressed or not), directories, .deb and .rpm packages,
vmlinux, vmlinuz, VirtualBox's .r0 files, any x86-64 ELF file.

policies:
  refuse           hypervisors that are neither sld_safe nor aware of split-lock
                   detection, and out-of-tree code that takes over the CPU
  disable          whatever enters a guest without sld_safe turns detection off
  kernel-2020      what the kernel patches posted in April 2020 would have done
  break:SYMBOL,... what imports these symbols would no longer link
  FILE.toml        your own

exit status: 0 nothing refused, 1 something refused or turning detection off,
2 something could not be read, or wrong usage.

examples:
  splitlock scan
  splitlock scan --policy kernel-2020 linux-image-6.1.0-*-amd64_*.deb
  splitlock scan --format sarif -o scan.sarif /lib/modules"""

PARSER = {
    "usage": "splitlock scan [options] [PATH...]",
    "description": "Find privileged instructions in kernel modules (default: the running\n"
    "kernel's), and judge the modules by a policy.",
    "epilog": _EPILOG,
}


def prepare_parser(parser: Parser) -> None:
    """Add this verb's options to its parser, made with `PARSER`."""
    parser.add_argument("--policy", default="refuse", help="which (default: refuse)")
    parser.add_argument(
        "--kinds",
        metavar="KIND,...",
        help="report these only: kinds or groups (vmx, svm, guest-call, control, msr, cache, system, frequent; all). "
        "Default: all but frequent (IRET, HLT, POPF). The policy looks for its own in any case",
    )
    parser.add_argument("--all", action="store_true", help="list clean files too")
    parser.add_argument("-j", "--jobs", metavar="N", type=jobs, help="processes (default: one a CPU)")
    parser.add_argument("--dask", metavar="ADDRESS", help="scan on a dask cluster, tcp://HOST:PORT")
    report_options(
        parser, "every finding, and each module's metadata", formats=("text", "json", "sarif"),
        quiet="only what is not allowed; no progress bar",
    )  # fmt: skip
    parser.add_argument("paths", nargs="*", metavar="PATH", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Do it; gives the exit status."""
    import gc

    from splitlock.commands._output import Output
    from splitlock.commands._progress import Bar
    from splitlock.image.package import default_paths
    from splitlock.modules.audit import Job
    from splitlock.modules.policy import load
    from splitlock.report.scan import Summary

    # What is imported stays, what a scan makes is in no circles: looking for garbage would take a tenth of the time.
    gc.freeze()
    gc.set_threshold(100_000)
    job = Job(load(args.policy), _kinds(args.kinds), args.all)
    paths = args.paths or default_paths()
    summary = Summary()
    terminal = args.output is None and sys.stdout.isatty()
    # a bar can stand below whole lines only, which the pieces of JSON are not
    bar = Bar("scanning", paths, quiet=args.quiet or (terminal and args.format != "text"))
    with Output(args.output, bar if terminal else None) as out:
        rendering = _rendering(args, job, colour=terminal and not os.environ.get("NO_COLOR"))
        out.write(rendering.begin())
        try:
            with contextlib.closing(_batches(paths, job, args)) as batches, bar:
                for batch in batches:
                    for file in batch.files:
                        summary.add(file)
                    summary.add_clean(batch.clean)
                    bar.advance(len(batch.files) + batch.clean)
                    out.write(b"".join(map(rendering.file, batch.files)))
            summary.complete = True
        finally:  # an interrupted scan leaves a valid report of what it saw
            out.write(rendering.end(summary))
    if summary.error:
        return 2
    return 1 if summary.refuse or summary.disable else 0


def _batches(paths: list[str], job: Job, args: argparse.Namespace) -> Generator[Batch, None, None]:
    """The results, from as many processes as were asked for."""
    from splitlock.modules.audit import audit, batches

    with contextlib.ExitStack() as stack:
        jobs = args.jobs or len(os.sched_getaffinity(0))
        if args.dask:
            executor, workers = _cluster(args.dask, stack)
            found = audit(paths, job, executor=executor, workers=workers, send=True)
        elif jobs == 1 or len(list(itertools.islice(batches(paths), 2))) < 2:  # nothing to share
            found = audit(paths, job)
        else:
            from splitlock.modules.workers import Workers

            found = audit(paths, job, executor=stack.enter_context(Workers(jobs)), workers=jobs)
        yield from found


def _cluster(address: str, stack: contextlib.ExitStack) -> tuple[Executor, int]:
    try:
        distributed = importlib.import_module("distributed")
    except ImportError:
        raise SplitlockError("--dask: dask is not installed; pip install 'splitlock[dask]'", 2) from None
    try:
        client = stack.enter_context(distributed.Client(address, timeout=10))
    except (OSError, ValueError) as error:
        raise SplitlockError(f"--dask {address}: {error or 'no answer'}; is a scheduler running there?", 2) from None
    workers = sum(client.nthreads().values())
    if not workers:
        raise SplitlockError(f"--dask {address}: the cluster has no workers; start some with dask worker", 2)
    return client.get_executor(), workers


def _kinds(text: str | None) -> frozenset[str]:
    from splitlock.modules.policy import OTHERS, expand
    from splitlock.x86.privileged import DEFAULT, KINDS

    if text is None:
        return DEFAULT | set(OTHERS)
    found: set[str] = set()
    for word in filter(None, text.split(",")):
        kinds = frozenset((*KINDS, *OTHERS)) if word == "all" else expand(word)
        if not kinds:
            raise SplitlockError(f"--kinds {word}: no kind and no group of kinds (docs/scan.md lists them)", 2)
        found |= kinds
    if not found:
        raise SplitlockError("--kinds: names no kind (vmx,svm,... or all)", 2)
    return frozenset(found)


def _rendering(args: argparse.Namespace, job: Job, *, colour: bool) -> Rendering:
    if args.format == "json":
        from splitlock.report.scan import Json

        return Json(args.policy)
    if args.format == "sarif":
        from splitlock import __version__
        from splitlock.report.sarif import Sarif
        from splitlock.x86.privileged import KINDS

        rules = {
            kind: f"{kind} ({KINDS[kind]})" if kind in KINDS else kind for kind in sorted(job.kinds | job.policy.kinds)
        }
        return Sarif(args.policy, __version__, rules.items())
    from splitlock.report.scan_text import Text

    return Text(args.policy, verbose=args.verbose, quiet=args.quiet, colour=colour)
