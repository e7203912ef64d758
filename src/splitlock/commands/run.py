"""`splitlock run`: run a program and name every split lock it takes."""

from __future__ import annotations

import argparse
import os
import signal
import stat
import sys
import time

from splitlock._errors import NO_MEMORY, SplitlockError, failure, reserves
from splitlock.commands._options import report_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sys import UnraisableHookArgs

    from splitlock.commands import Parser
    from splitlock.process.agent.supervise import Supervisor
    from splitlock.process.policy import Policy
    from splitlock.process.tracer import Tracer

_EPILOG = """\
modes (as the kernel parameter split_lock_detect=):
  off          run it unwatched
  warn         a line for each task's first split lock; every one is counted
  fatal        the lock does not execute; the task gets SIGBUS (BUS_ADRALN)
  ratelimit:N  all watched tasks together take at most N (1..1000) a second

exit status: the program's own, 128 + signal when it was killed; 125 our own
failure or wrong usage, 126 not executable, 127 not found.

examples:
  splitlock run -- ./game -windowed
  splitlock run --split-lock-detect=fatal -- ./server
  splitlock run --format json -o report.json --error-exitcode 1 -- make test"""


PARSER = {
    "help": "run a program and name every split lock it takes",
    "usage": "splitlock run [options] -- PROGRAM [ARGS...]",
    "description": "Run a program, its threads and children, and name every split lock they take.",
    "epilog": _EPILOG,
}


def prepare_parser(parser: Parser) -> None:
    """Add this verb's options to its parser, made with `PARSER`."""
    parser.wrong_usage = 125
    parser.add_argument(
        "--split-lock-detect",
        metavar="MODE",
        default="warn",
        help="off, warn (default), fatal or ratelimit:N",
    )
    parser.add_argument(
        "--mitigate",
        action="store_true",
        help="with warn: the kernel's misery too, 10 ms of sleep, then one split-locking task at a time",
    )
    parser.add_argument(
        "--engine",
        choices=("auto", "agent", "ptrace"),
        default="auto",
        help="how to watch: by an agent in the program, by tracing, or (default) by the first where it can",
    )
    report_options(
        parser,
        "list all sites, and the images that were watched",
        which="of the report",
        output="write the report there, not to standard error",
        quiet="no lines while it runs, no report of nothing (on a terminal a line where not all was watched)",
    )
    parser.add_argument("--error-exitcode", metavar="N", type=_status, help="exit with N when split locks were taken")
    parser.add_argument(
        "--unmonitored-exitcode", metavar="N", type=_status, help="exit with N when not all that ran was watched"
    )
    parser.add_argument(
        "-D",
        "--keep-pid",
        action="store_true",
        help="the program gets splitlock's process; the report comes from one beside it, when all has ended",
    )
    parser.add_argument("--joined", type=_joined, help=argparse.SUPPRESS)  # by process/agent/front
    parser.add_argument("--traced", type=_joined, help=argparse.SUPPRESS)  # by process/agent/tracers.py
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="PROGRAM", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Do it; gives the exit status."""
    from splitlock.process.policy import Policy

    if args.traced:
        return _trace(args)
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise SplitlockError("run: no program given (splitlock run [options] -- PROGRAM [ARGS...])")
    if not command[0]:
        raise SplitlockError("run: the program's name is empty; is a variable of the shell not set?", 127)
    policy = Policy.parse(args.split_lock_detect, args.mitigate)
    output = 2
    if args.joined and args.joined[2] >= 0:
        output = args.joined[2]
    elif args.output:
        try:
            output = os.open(args.output, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise SplitlockError(f"-o {args.output}: {error.strerror}; name a file that can be written") from None
    sys.unraisablehook = _unraisable
    kept = reserves(3)
    if not args.joined:
        return _tell(_watch(policy, command, args), command, args, output, kept)
    from splitlock.process.agent.supervise import Supervisor

    supervisor = Supervisor(policy, args.quiet, args.verbose, memory=args.joined[0])
    supervisor.join(args.joined[1])
    status = _tell(supervisor, command, args, output, kept)
    supervisor.reported()
    return status


def _tell(
    tracer: Tracer | Supervisor, command: list[str], args: argparse.Namespace, output: int, kept: list[bytearray]
) -> int:
    while True:
        try:
            return _ended(tracer, command, args, output, kept)
        except MemoryError:
            if not kept:
                raise
            kept.pop()


def _trace(args: argparse.Namespace) -> int:
    """As a tracer of a run that another process supervises."""
    from splitlock.process.agent.memory import Memory
    from splitlock.process.agent.traced import trace
    from splitlock.process.policy import Policy

    memory, door, output = args.traced
    trace(Memory(memory), door, Policy.parse(args.split_lock_detect, args.mitigate), args.quiet, output)
    return 0


def _ended(
    tracer: Tracer | Supervisor, command: list[str], args: argparse.Namespace, output: int, kept: list[bytearray]
) -> int:
    """The program has ended: what is to be said is said. Gives the exit status."""
    _end_at_once()
    found, unmonitored = tracer.sites, tracer.unmonitored()
    if args.format == "json" or found or not args.quiet:
        text, whole = _report(tracer, command, args, kept)
        if not _delivered(output if whole else 2, text, args.output or "standard error"):
            return 125
    else:
        if output != 2 and not _delivered(output, b"", args.output):  # an old report is not this run's
            return 125
        if unmonitored and os.isatty(2):
            _say(_coverage(tracer))
    if found and args.error_exitcode is not None:
        return int(args.error_exitcode)
    if unmonitored and args.unmonitored_exitcode is not None:
        return int(args.unmonitored_exitcode)
    return tracer.exit_status or 0


def _unraisable(what: UnraisableHookArgs) -> None:
    """Python's own tidying up fails where there is no memory: that is not for the user. A mistake of ours is."""
    if not isinstance(what.exc_value, MemoryError | OSError | ImportError):
        sys.__unraisablehook__(what)


def _watch(policy: Policy, command: list[str], args: argparse.Namespace) -> Tracer | Supervisor:
    from splitlock.process.launch import Child

    aside = _aside(args)
    if args.engine == "ptrace" or policy.mode == "off":
        reason = "a tracer has to be its parent" if policy.mode != "off" else "with off, nobody watches it"
    else:
        from splitlock.process.agent.judged import why_not
        from splitlock.process.agent.supervise import Supervisor

        reason = why_not(command[0])
        try:
            supervisor = None if reason else Supervisor(policy, args.quiet, args.verbose)
        except OSError as error:  # no shared memory
            reason = failure(error)
        else:
            if supervisor is not None:
                supervisor.run_aside(command) if aside else supervisor.run(command)
                return supervisor
        if args.verbose:
            _say(f"splitlock: {command[0]} is traced, since the agent has no place in it: {reason}")
    if args.keep_pid:
        raise SplitlockError(f"-D: {command[0]} cannot have this process: {reason}")
    if aside:
        _say(f"splitlock: {command[0]} gets another process than {aside} counts on: {reason}")
    child = Child(command, watched=policy.mode != "off")
    from splitlock.process.tracer import Tracer  # while the child gets ready

    tracer = Tracer(policy, quiet=args.quiet)
    tracer.run(child)
    return tracer


def _joined(text: str) -> tuple[int, int, int]:
    """The number of a run's memory, the descriptor of a pipe, or a door; and that of -o's file, or -1."""
    memory, at, output = map(int, text.split(":"))
    return memory, at, output


def _aside(args: argparse.Namespace) -> str:
    """Why the program keeps our process: asked for, or the variable that shows that it is counted on; "" where not."""
    exits = next((n for n in ("error", "unmonitored") if getattr(args, f"{n}_exitcode") is not None), "")
    if args.keep_pid and exits:
        raise SplitlockError(f"-D: the program's exit status is its own: leave out --{exits}-exitcode")
    if not args.keep_pid and (exits or not os.environ.keys() & {"LISTEN_PID", "NOTIFY_SOCKET"}):
        return ""
    from splitlock.process.agent.aside import is_counted_on, why_not

    if args.keep_pid and (reason := why_not()):
        raise SplitlockError(f"-D: {reason}; leave it out")
    return "-D" if args.keep_pid else is_counted_on() * (not why_not())


def _end_at_once() -> None:
    """The program has ended: what would end one is for us now. libdw may take its time over the names."""
    from splitlock.process.launch import WAITED

    while signal.sigtimedwait(WAITED, 0) is not None:
        pass
    ours = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    for number in ours:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ours)


def _report(
    tracer: Tracer | Supervisor, command: list[str], args: argparse.Namespace, kept: list[bytearray]
) -> tuple[bytes, bool]:
    """The report, and whether it is the one that was asked for: without memory or descriptors it is a plainer one."""
    try:
        return _render(tracer, command, args), True
    except MemoryError:
        why = NO_MEMORY
    except KeyboardInterrupt:
        why = "interrupted"
    except Exception as error:
        why = failure(error)
    while True:  # what the calls held is free again
        try:
            return _plain(tracer, why), False
        except MemoryError:
            if not kept:
                return b"splitlock: out of memory: no report; hits: %d\n" % sum(s.hits for s in tracer.sites), False
            kept.pop()


def _plain(tracer: Tracer | Supervisor, why: str) -> bytes:
    lines = [f"splitlock: the report cannot be made as asked for: {why}; what was found:"]
    lines += [f"hits: {s.hits} at {s.name}+{s.address:#x}: {s.instruction}" for s in tracer.sites]
    lines += [f"unmonitored: {name}: {reason}" for name, _, reason, _, _ in tracer.unmonitored()]
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")


def _render(tracer: Tracer | Supervisor, command: list[str], args: argparse.Namespace) -> bytes:
    images = []
    if args.verbose and args.format == "text":
        images = [f"  {count:>7,} sites  {name}" for name, count in sorted(tracer.watch.names.items())]
    if args.format == "text" and not tracer.sites:  # the usual case: without the imports a full report needs
        from splitlock.report.lines import page
        from splitlock.report.run_text import summary

        watch = tracer.watch
        sites, size = sum(watch.images.values()), sum(watch.sizes.values())
        return page(
            [*summary(False, sites, size, len(watch.images), tracer.processes, _rest(tracer)), *images]
        ).encode()
    from splitlock.process.describe import describe

    report = describe(tracer, command)
    if args.format == "json":
        return report.to_json()
    from splitlock.report.lines import page
    from splitlock.report.run_text import render

    return (render(report, *((len(report.sites),) if args.verbose else ())) + page(images)).encode()


def _rest(tracer: Tracer | Supervisor) -> list[tuple[str, str, int | None, int | None]]:
    return [(name, reason, size, held) for name, _, reason, size, held in tracer.unmonitored()]


def _coverage(tracer: Tracer | Supervisor) -> str:
    from splitlock.report.run_text import coverage

    sites, size = sum(tracer.watch.images.values()), sum(tracer.watch.sizes.values())
    return f"splitlock: {coverage(sites, size, _rest(tracer))} (without -q: what was not)"


def _delivered(output: int, text: bytes, name: str) -> bool:
    """Write the whole report, in place of what a file held before; to standard error where it does not go there.

    False when nobody has got it.
    """
    try:
        if output != 2:
            os.set_blocking(output, True)
            _replace(output, text)
        else:
            _write(output, text)
        return True
    except OSError as error:
        _say(f"splitlock: {name}: cannot write the report: {error.strerror}{'' if output == 2 else '; here it is:'}")
    return output != 2 and _delivered(2, text, "standard error")


def _replace(output: int, text: bytes) -> None:
    """Write a file anew. Raises OSError; a file then holds nothing, so that nobody takes a part for the whole."""
    file = stat.S_ISREG(os.fstat(output).st_mode)
    try:
        if file:
            os.ftruncate(output, 0)
        _write(output, text)
    except OSError:
        if file:
            os.ftruncate(output, 0)
        raise


def _write(output: int, text: bytes) -> None:
    while text:
        try:
            text = text[os.write(output, text) :]
        except BlockingIOError:  # the program has made our common terminal or pipe non-blocking
            time.sleep(0.01)


def _say(line: str) -> None:
    try:
        _write(2, line.encode("utf-8", "backslashreplace") + b"\n")
    except OSError:  # nobody listens
        pass


def _status(text: str) -> int:
    from splitlock.linux.text import number

    if (status := number(text)) is None or status > 255:
        raise argparse.ArgumentTypeError(f"{text}: not an exit status (0 to 255)")
    return status
