"""`splitlock guard`: a gate in the kernel that judges modules before they link."""

from __future__ import annotations

import argparse
import os
import sys

from splitlock._errors import SplitlockError
from splitlock.commands import complain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from splitlock.commands import Parser
    from splitlock.report.guard import Decision

_EPILOG = """\
commands:
  start            load the gate, prove it live with a canary, pin it
  status           is it up, proved now; policy, counters, the list, what it
                   is blind to
  stop             take it down
  log              what it decided; --follow: as it decides
  allow MODULE     let this file in whatever is found in it (--remove)
  test MODULE...   what the gate says of a file, without loading it
  install          systemd units: the gate up before modules load (--uninstall)

exit status: 0 done, up, or let in; 1 not up (status), not let in (test); 2 it
could not be done, or wrong usage.

examples:
  splitlock guard start --audit            judge and log, refuse nothing
  splitlock guard test ./vboxdrv.ko
  splitlock guard log --follow --journal"""

PARSER = {
    "usage": "splitlock guard COMMAND [options]",
    "description": "Judge kernel modules as they load, in the kernel (BPF LSM), and keep out what\n"
    "the policy refuses, whichever way it comes.",
    "epilog": _EPILOG,
}
_POLICY = "refuse, disable, break:SYMBOL,... or FILE.toml (docs/policies.md; default: refuse)"


def prepare_parser(parser: Parser) -> None:
    """Add this verb's commands to its parser, made with `PARSER`."""
    command = parser.commands()
    start = command("start", "Load the gate, prove it live, pin it.")
    start.add_argument("--policy", default="refuse", help=_POLICY)
    start.add_argument("--audit", action="store_true", help="refuse nothing, log what would be")
    start.add_argument("--digests", action="store_true", help="a SHA-256 for modules that are let in, too")
    start.add_argument("--replace", action="store_true", help="in place of the gate that is up, without a gap")
    start.add_argument("--log", metavar="FILE", help="where decisions go (default: /var/log/splitlock/guard.jsonl)")
    start.add_argument(
        "--gate",
        choices=("auto", "bpf", "fanotify"),
        default="auto",
        help="bpf: that or nothing; fanotify: the weaker one that needs no BPF; auto (default): bpf, else fanotify",
    )
    start.add_argument(
        "--on",
        metavar="PATH",
        action="append",
        help="with fanotify: a file system to watch (default: all with modules)",
    )
    _formats(command("status", "Tell the gate's state, proved now."))
    command("stop", "Take the gate down.")
    log = _formats(command("log", "Show what the gate decided."))
    log.add_argument("-f", "--follow", action="store_true", help="go on until Ctrl-C, or until the gate is taken down")
    log.add_argument("--journal", action="store_true", help="with --follow: to systemd's journal as well")
    log.add_argument("--listen", metavar="HOST:PORT", help="with --follow: counters for Prometheus")
    log.add_argument("--log", metavar="FILE", help="the file (default: the running gate's)")
    log.add_argument("-q", "--quiet", action="store_true", help="only what is not allowed")
    log.add_argument("-v", "--verbose", action="store_true", help="findings, one of each kind, and how it was loaded")
    allow = command("allow", "Let a module in whatever is found in it.")
    allow.add_argument("--remove", action="store_true", help="take it off the list (its file, or its digest)")
    allow.add_argument("module", metavar="MODULE", help="the module's file")
    test = _formats(command("test", "Tell what the gate says of a file, without loading it."))
    test.add_argument("--policy", help="(default: that of the running gate, else refuse)")
    test.add_argument("-v", "--verbose", action="store_true", help="findings, one of each kind")
    test.add_argument("paths", nargs="+", metavar="MODULE", help="a module's file, compressed or not")
    install = command("install", "Have systemd bring the gate up before modules are loaded.")
    install.add_argument("--root", metavar="DIR", default="/", help="of an image (default: /)")
    install.add_argument("--policy", default="refuse", help=_POLICY)
    install.add_argument("--audit", action="store_true", help="refuse nothing, log what would be")
    install.add_argument("--digests", action="store_true", help="a SHA-256 for modules that are let in, too")
    install.add_argument("--uninstall", action="store_true", help="remove the units")


def _formats(parser: Parser) -> Parser:
    parser.add_argument("--format", choices=("text", "json"), default="text", help="(default: text)")
    return parser


def run(args: argparse.Namespace) -> int:
    """Do it; gives the exit status."""
    commands: dict[str, Callable[[argparse.Namespace], int]] = {
        "start": _start,
        "status": _status,
        "stop": _stop,
        "log": _log,
        "allow": _allow,
        "test": _test,
        "install": _install,
    }
    return commands[args.command](args)


def _start(args: argparse.Namespace) -> int:
    from splitlock.guard import kernel, service
    from splitlock.modules.policy import load

    policy = load(args.policy)
    kernel.check_root("start")
    started = service.start(
        policy,
        audit=args.audit,
        digests=args.digests,
        replace=args.replace,
        log=os.path.abspath(args.log) if args.log else None,
        kind=args.gate,
        on=args.on or [],
    )
    _write(started)
    return 0


def _status(args: argparse.Namespace) -> int:
    import msgspec

    from splitlock.guard import kernel
    from splitlock.guard.status import status
    from splitlock.report.document import encoded
    from splitlock.report.guard_text import render_status

    kernel.check_root("status")
    found = status()
    if args.format == "json":
        _write(msgspec.json.format(encoded(found), indent=2).decode() + "\n")
    else:
        _write(render_status(found))
    return 0 if found.live else 1


def _stop(_: argparse.Namespace) -> int:
    from splitlock.guard import kernel, service

    kernel.check_root("stop")
    _write(service.stop())
    return 0


def _log(args: argparse.Namespace) -> int:
    from splitlock.guard import kernel, log, service

    if not args.follow:
        for option in ("journal", "listen"):
            if getattr(args, option):
                raise SplitlockError(f"log --{option}: only with --follow", 2)
    kernel.check_root("log")
    file = log.LogFile(args.log or log.path())
    shown = _Shown(args)
    if args.follow:
        shown.begin()
        service.follow(file, shown.show, journal=args.journal, listen=args.listen)
        return 0
    found, failed = service.logged(file)
    shown.begin()
    for decision in found:
        shown.show(decision)
    for line in service.told(file):
        complain(f"splitlock: guard log: {line}")
    if failed:
        raise SplitlockError(failed, 2)
    return 0


class _Shown:
    """Decisions on standard output, as asked for."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")

    def begin(self) -> None:
        """The table's head."""
        from splitlock.report.guard_text import head

        if self.args.format == "text":
            _write(head() + "\n")

    def show(self, decision: Decision) -> None:
        """One decision, now."""
        from splitlock.report.guard_text import render

        if self.args.quiet and (decision.verdict == "allow" or decision.listed):
            return
        if self.args.format == "json":
            _write(decision.to_json().decode())
        else:
            _write(render(decision, verbose=self.args.verbose, colour=self.colour))


def _allow(args: argparse.Namespace) -> int:
    from splitlock.guard import allowed, kernel

    kernel.check_root("allow")
    digests = allowed.change(args.module, args.remove)
    what = "taken off the list" if args.remove else "let in from now on"
    _write("".join(f"{digest}  {args.module}: {what}\n" for digest in digests))
    return 0


def _test(args: argparse.Namespace) -> int:
    from splitlock.guard.testing import Rules
    from splitlock.report.guard_text import render_test

    rules = Rules(args.policy)
    status = 0
    for path in args.paths:
        try:
            decision = rules.judge(path)
        except SplitlockError as error:
            complain(f"splitlock: {error}")
            status = 2
            continue
        if args.format == "json":
            _write(decision.to_json().decode())
        else:
            _write(render_test(decision, path, verbose=args.verbose))
        if decision.verdict != "allow" and not decision.listed:
            status = max(status, 1)
    return status


def _install(args: argparse.Namespace) -> int:
    from splitlock.guard import install

    if args.uninstall:
        _write(install.uninstall(args.root))
    else:
        from splitlock.guard.config import build
        from splitlock.modules.policy import load

        build(load(args.policy))  # what the gate cannot judge is better known now than at boot
        _write(install.install(args.root, args.policy, audit=args.audit, digests=args.digests))
    return 0


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:  # of a reader that has seen enough, such as head(1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
