"""`splitlock watch`: follow the kernel's log, and name the code behind its addresses."""

from __future__ import annotations

import os
import sys

from splitlock._errors import SplitlockError
from splitlock.commands._options import report_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from splitlock.commands import Parser
    from splitlock.commands._output import Output
    from splitlock.host.sources import Record
    from splitlock.host.space import Saved
    from splitlock.host.watch import Watch
    from splitlock.report.watch import Event

_EPILOG = """\
exit status: 0 no split or bus lock was logged, 1 some were, 2 the log could not
be read, or wrong usage.

examples:
  sudo splitlock watch                     the kernel's log, and on until Ctrl-C
  splitlock watch --no-follow              what it holds now
  splitlock watch -f /var/log/kern.log     rotated or not
  dmesg | splitlock watch -
  splitlock watch --maps saved.maps old.log    cat /proc/PID/maps >saved.maps
  sudo splitlock watch --journal --listen 127.0.0.1:9418 -q"""

PARSER = {
    "usage": "splitlock watch [options] [FILE]",
    "description": "Follow the kernel's log and turn what it says of split and bus locks into image,\n"
    "function, source line, instruction, process, container and virtual machine.",
    "epilog": _EPILOG,
}


def prepare_parser(parser: Parser) -> None:
    """Add this verb's options to its parser, made with `PARSER`."""
    import argparse

    parser.add_argument("file", nargs="?", metavar="FILE", help="a log (-: standard input), instead of /dev/kmsg")
    parser.add_argument("--journal", action="store_true", help="systemd's journal instead, of all boots it holds")
    parser.add_argument(
        "-f", "--follow", action=argparse.BooleanOptionalAction, help="go on until Ctrl-C (default: for all but a FILE)"
    )
    parser.add_argument("--maps", metavar="SAVED", help="look addresses up in this copy of /proc/PID/maps")
    parser.add_argument("--root", metavar="DIR", default="", help="with --maps: where the mapped files lie")
    parser.add_argument("--listen", metavar="HOST:PORT", help="counters for Prometheus")
    report_options(
        parser,
        "the kernel's words, every repetition, all places",
        which="json: an event a line",
        output="write there, not to standard output",
        quiet="the sum only, and nothing where nothing was logged",
    )


def run(args: argparse.Namespace) -> int:
    """Do it; gives the exit status."""
    from splitlock.commands._output import Output, end_politely
    from splitlock.host.watch import Watch

    if args.journal and args.file:
        raise SplitlockError("--journal: is read instead of a FILE; leave one out", 2)
    if args.root and not args.maps:
        raise SplitlockError("--root: goes with --maps SAVED", 2)
    follow = args.follow if args.follow is not None else args.file is None
    space = _space(args)
    watch = Watch("the journal" if args.journal else args.file or "/dev/kmsg", space)
    metrics = None
    if args.listen is not None:
        from splitlock._prometheus import serve
        from splitlock.host.metrics import Metrics

        metrics = Metrics(serve(args.listen, "--listen"))
    end_politely()
    with Output(args.output) as out:
        shown = _Shown(args, out)
        complete = False
        try:
            for event in watch.events(_records(args, follow)):
                if metrics is not None:
                    metrics.count(event)
                shown.show(event)
            complete = not follow
        except KeyboardInterrupt:
            complete = follow  # that is how following ends
        shown.end(watch, complete)
    found = watch.summary(complete=complete)
    return 1 if found.traps or found.guests or found.killed or found.oopses else 0


def _records(args: argparse.Namespace, follow: bool) -> Iterator[Record]:
    from splitlock.host import sources

    if args.journal:
        return sources.journal(follow=follow)
    if args.file is not None:
        return sources.file(args.file, follow=follow)
    return sources.kmsg(follow=follow)


def _space(args: argparse.Namespace) -> Saved | None:
    if not args.maps:
        return None
    from splitlock.host.space import saved

    return saved(args.maps, args.root)


class _Shown:
    """Events as asked for: as text the first from each place, as JSON all of them."""

    _MOST = 10_000  # places that are remembered as shown

    def __init__(self, args: argparse.Namespace, out: Output) -> None:
        self.args, self.out = args, out
        self.colour = args.output is None and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        self._seen: set[tuple[object, ...]] = set()

    def show(self, event: Event) -> None:
        """One event, now."""
        if self.args.quiet:
            return
        if self.args.format == "json":
            import msgspec

            self.out.write(msgspec.json.encode(event) + b"\n")
        elif self.args.verbose or self._new(event):
            from splitlock.report.watch_text import render

            self.out.write(render(event, verbose=self.args.verbose, colour=self.colour).encode("utf-8", "replace"))

    def end(self, watch: Watch, complete: bool) -> None:
        """The sum."""
        summary = watch.summary(complete=complete)
        if self.args.quiet and not summary.recognised:
            return
        if self.args.format == "json":
            import msgspec

            self.out.write(msgspec.json.encode(summary) + b"\n")
        else:
            from splitlock.report.watch_text import render_summary

            self.out.write(render_summary(summary, verbose=self.args.verbose).encode("utf-8", "replace"))

    def _new(self, event: Event) -> bool:
        if event.kind in ("mode", "oops"):
            return True
        place = event.place
        where = (place.image, place.offset) if place and place.offset else (event.address,)
        key = (event.kind, event.exception, event.comm, *where, event.detail)
        if key in self._seen:
            return False
        if len(self._seen) < self._MOST:
            self._seen.add(key)
        return True
