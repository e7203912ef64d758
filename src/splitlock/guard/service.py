"""The commands of `splitlock guard` that change or watch the running gate."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from splitlock._errors import SplitlockError
from splitlock.guard import config as configs
from splitlock.guard import gate, kernel, log, state, status
from splitlock.guard.state import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from splitlock.guard.log import LogFile
    from splitlock.modules.policy import Policy
    from splitlock.report.guard import Decision

_PATIENCE = 10.0  # seconds that a daemon has to end


def start(
    policy: Policy, *, audit: bool, digests: bool, replace: bool, log: str | None, kind: str, on: list[str]
) -> str:
    """Bring the gate up; what to say about it. Raises SplitlockError, and then there is no gate that was not before."""
    config = configs.build(policy, audit=audit, digests=digests)
    words = configs.words(policy)
    made = State(gate="bpf", started=status.now(), audit=audit, words=words, log=log or state.LOG)
    why = ""
    if kind != "fanotify":
        try:
            with gate.locked():
                _no_daemon()
                if replace and gate.is_up():
                    _keep_pending()
                gate.start(config, replace=replace)
                state.save(made)
            return _said(made)
        except kernel.Missing as error:
            if kind == "bpf":
                raise
            why = str(error)
    from splitlock.guard import daemon

    if gate.is_up():
        raise SplitlockError("the BPF gate is up: the fanotify gate adds nothing to it", 2)
    with gate.locked():
        _no_daemon()
        made.gate, made.why = "fanotify", why
        daemon.start(made, policy, on)
    return _said(state.load() or made)


def _no_daemon() -> None:
    found = state.load()
    if found and found.gate == "fanotify" and daemon_alive(found):
        raise SplitlockError("the fanotify gate is up; splitlock guard stop first", 2)


def daemon_alive(found: State) -> bool:
    """Is the process that is the fanotify gate still there?"""
    return bool(found.pid) and status.alive(found.pid) == found.pid_started


def _said(made: State) -> str:
    what = "BPF LSM, live (the canary was refused)" if made.gate == "bpf" else "fanotify"
    lines = [f"gate up: {what}; policy {made.words.policy}{', audit: nothing is refused' if made.audit else ''}"]
    if made.gate == "fanotify":
        from splitlock.guard.fallback import HOLES

        lines += [f"  no BPF gate: {made.why}"] if made.why else []
        lines += [f"  watches {', '.join(made.watched)}", "  does not see:", *(f"    - {hole}" for hole in HOLES)]
    lines.append(f"decisions: splitlock guard log (file {made.log})")
    return "\n".join(lines) + "\n"


def _keep_pending() -> None:
    """What a gate that is about to go has not handed out. The caller holds the lock."""
    draining = log.Drain(log.LogFile(log.path()))
    try:
        draining.consume()
    finally:
        draining.close()


def stop() -> str:
    """Take the gate down; what to say about it. Raises SplitlockError when none is up."""
    found = state.load()
    with gate.locked():
        if found and found.gate == "fanotify":
            if daemon_alive(found):
                _end(found.pid)
            state.forget()
            return "the fanotify gate is down\n"
        if not gate.pins():
            state.forget()
            raise SplitlockError("the gate is not up", 2)
        told = ""
        if gate.is_up():
            try:
                _keep_pending()
            except SplitlockError as error:
                told = f"what it had not handed out is lost: {error}\n"
        gate.take_down()
        gate.wait_until_gone()
        state.forget()
    return f"{told}the gate is down: modules load unjudged\n"


def _end(pid: int) -> None:
    started = status.alive(pid)
    os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + _PATIENCE
    while status.alive(pid) == started:
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            return
        time.sleep(0.02)


def logged(file: LogFile) -> tuple[list[Decision], str]:
    """All decisions, and what went wrong, as a line; empty for nothing.

    What was pending is in the file now; of what could not be written, what was taken comes last, and the rest is still
    pending.
    """
    unwritten, failed = log.drain(file)
    try:
        return [*file.read(), *unwritten], failed
    except SplitlockError as error:
        return unwritten, failed or str(error)


def told(file: LogFile) -> list[str]:
    """What the decisions of `logged` lack: what nobody read in time, lines of the file that are none."""
    lost = status.counters_text() if gate.is_up() else ""
    return [line for line in (lost, file.told()) if line]


def follow(file: LogFile, show: Callable[[Decision], None], *, journal: bool, listen: str | None) -> None:
    """Hand on decisions until Ctrl-C or until the gate is taken down."""
    import sys

    takers: list[Callable[[Decision], None]] = [show]
    if journal:
        from splitlock.guard.journal import Journal

        takers.append(Journal().send)
    if listen is not None:
        from splitlock.guard import metrics

        takers.append(metrics.serve(listen).count)

    def take(decision: Decision) -> None:
        for taker in takers:
            taker(decision)

    def tell(text: str) -> None:
        sys.stderr.write(f"splitlock: guard log: {text}\n")

    found = state.load()
    with contextlib.suppress(KeyboardInterrupt):
        if gate.is_up():
            log.follow(file, take, tell)
        elif found and found.gate == "fanotify":
            log.tail(file, take, lambda: daemon_alive(found))
        else:
            raise SplitlockError("log --follow: the gate is not up; splitlock guard start", 2)
    if file.passed:
        tell(file.told())
