"""`splitlock watch`: follow the kernel's log, and name the code behind its addresses."""

from __future__ import annotations

import os
import sys

from splitlock._errors import SplitlockError
from splitlock.commands._options import oops_files, oops_options, report_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from splitlock.commands import Parser
    from splitlock.commands._output import Output
    from splitlock.host.explain.space import Saved
    from splitlock.host.log.sources import Source
    from splitlock.host.watch import Watch
    from splitlock.report.watch import Event

_EPILOG = """\
exit status: 0 the log is whole since boot, the kernel detects, and logged no
split or bus lock; 1 some were logged; 2 it could not be told (the sum says
why), the log could not be read, or wrong usage.

examples:
  sudo splitlock watch                     the kernel's log, and on until Ctrl-C
  splitlock watch --no-follow              what it holds now
  splitlock watch -f /var/log/kern.log     rotated or not
  splitlock watch /var/log/kern.log*       rotated ones first, .gz and .xz too
  splitlock watch system.journal
  dmesg | splitlock watch -
  splitlock watch --maps saved.maps old.log    cat /proc/PID/maps >saved.maps
  sudo splitlock watch --journal --listen 127.0.0.1:9418 -q"""

PARSER = {
    "usage": "splitlock watch [options] [FILE ...]",
    "description": "Follow the kernel's log and turn what it says of split and bus locks into image,\n"
    "function, source line, instruction, process, container and virtual machine.",
    "epilog": _EPILOG,
}


def prepare_parser(parser: Parser) -> None:
    """Add this verb's options to its parser, made with `PARSER`."""
    import argparse

    parser.add_argument(
        "files", nargs="*", metavar="FILE",
        help="a log as it is (-: standard input), rotated ones of it, a directory of logs; instead of /dev/kmsg",
    )  # fmt: skip
    parser.add_argument("--journal", action="store_true", help="systemd's journal instead, of all boots it holds")
    parser.add_argument(
        "-f", "--follow", action=argparse.BooleanOptionalAction, help="go on until Ctrl-C (default: for all but a FILE)"
    )
    parser.add_argument("--maps", metavar="SAVED", help="look addresses up in this copy of /proc/PID/maps")
    parser.add_argument("--root", metavar="DIR", default="", help="with --maps: where the mapped files lie")
    oops_options(parser)
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
    from splitlock.host.log.heard import Log
    from splitlock.host.watch import Watch

    if args.journal and args.files:
        raise SplitlockError("--journal: is read instead of a FILE; leave one out", 2)
    if args.root and not args.maps:
        raise SplitlockError("--root: goes with --maps SAVED", 2)
    follow = args.follow if args.follow is not None else not args.files
    space = _space(args)
    source = _source(args, follow)
    # what is read from the kernel itself, or followed, goes on to now; a file ends somewhere
    watch = Watch(
        Log(source, ends=_ends(args, follow), untraced=not args.files and _untraced()), space, *oops_files(args)
    )
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
            for event in watch.events():
                if metrics is not None:
                    metrics.count(event)
                shown.show(event, elsewhere=watch.elsewhere(event))
            complete = not follow
        except KeyboardInterrupt:
            complete = follow  # that is how following ends
        return shown.end(watch, complete)


def _source(args: argparse.Namespace, follow: bool) -> Source:
    from splitlock.host.log import sources

    if args.journal:
        return sources.Journal(follow=follow)
    if not args.files:
        return sources.Kmsg(follow=follow)
    if not follow or args.files == ["-"]:
        return sources.Stored(*args.files)
    if len(args.files) > 1 or os.path.isdir(args.files[0]):
        raise SplitlockError("-f: follows one FILE; name the one that is being written", 2)
    return sources.Followed(args.files[0])


def _untraced() -> bool:
    """Does this kernel say nothing of programs that a signal kills (show_unhandled_signals)?"""
    try:
        with open("/proc/sys/debug/exception-trace") as file:
            return file.read().strip() == "0"
    except OSError:
        return False


def _ends(args: argparse.Namespace, follow: bool) -> bool | None:
    from splitlock.host.log import rotated

    if follow or not args.files:
        return True
    # Debian and Ubuntu save dmesg once, at boot
    saved = all(rotated.family(os.path.basename(name)) == "dmesg" for name in args.files)
    return (
        False if saved and any(os.path.dirname(os.path.abspath(name)).endswith("/log") for name in args.files) else None
    )


def _space(args: argparse.Namespace) -> Saved | None:
    if not args.maps:
        return None
    from splitlock.host.explain.space import saved

    return saved(args.maps, args.root)


class _Shown:
    """Events as asked for: as text the first from each place, as JSON all of them."""

    _MOST = 10_000  # places that are remembered as shown

    def __init__(self, args: argparse.Namespace, out: Output) -> None:
        self.args, self.out = args, out
        self.colour = args.output is None and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        self._seen: set[tuple[object, ...]] = set()
        self._told: set[str] = set()  # notes: each is said once

    def show(self, event: Event, *, elsewhere: bool) -> None:
        """One event, now. `elsewhere`: on another machine than the log's first."""
        if self.args.quiet:
            return
        if self.args.format == "json":
            from splitlock.report.document import encoded

            self.out.write(encoded(event) + b"\n")
        elif self.args.verbose or self._new(event):
            from splitlock.report.watch_text import render

            told = event.note in self._told and not self.args.verbose
            if event.note and len(self._told) < self._MOST:
                self._told.add(event.note)
            again = event.oops is not None and not self.args.verbose and not self._first(event)
            text = render(
                event, verbose=self.args.verbose, colour=self.colour, note=not told, again=again, elsewhere=elsewhere
            )
            self.out.write(text.encode("utf-8", "replace"))

    def end(self, watch: Watch, complete: bool) -> int:
        """The sum; gives the exit status."""
        from splitlock.report.watch_text import is_found, render_summary

        summary = watch.summary(complete=complete)
        status = 1 if is_found(summary) else 0 if summary.whole else 2
        if self.args.quiet and not status:
            return status
        if self.args.format == "json":
            from splitlock.report.document import encoded

            self.out.write(encoded(summary) + b"\n")
        else:
            self.out.write(render_summary(summary, verbose=self.args.verbose).encode("utf-8", "replace"))
        return status

    def _first(self, event: Event) -> bool:
        """Is it the first oops at its place?"""
        key = (event.kind, event.detail, event.host, event.speaker)
        first = key not in self._seen
        if first and len(self._seen) < self._MOST:
            self._seen.add(key)
        return first

    def _new(self, event: Event) -> bool:
        if event.kind in ("mode", "oops", "alignment"):
            return True
        if event.kind == "unknown":  # the sum tells how many, and the first
            return False
        place = event.place
        if place and place.offset:
            key: tuple[object, ...] = (event.kind, event.exception, event.host, event.comm, place.image, place.offset)
        elif event.address and not event.guest:  # under another name: the same code, most likely
            key = (event.kind, event.exception, event.host, event.address, event.speaker)
        else:
            key = (event.kind, event.exception, event.host, event.comm, event.address, event.detail)
        if key in self._seen:
            return False
        if len(self._seen) < self._MOST:
            self._seen.add(key)
        return True
