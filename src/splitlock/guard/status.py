"""What is up, proved now and not believed: the running gate's state."""

from __future__ import annotations

from splitlock._errors import SplitlockError
from splitlock.guard import allowed, gate, kernel, layout
from splitlock.guard.state import LOG, State, load
from splitlock.report.guard import Status

#: what a gate in the kernel does not see
BLIND = (
    "modules loaded before it, and what is built into the kernel",
    "code that a module already loaded brings in by itself, as VirtualBox's vboxdrv does with VMMR0.r0; the module "
    "that does is judged (FOREIGN-CODE)",
    "jumps into the middle of an instruction",
    "root, who may take the gate down: a safety catch, not a boundary",
)


def status() -> Status:
    """The state. Raises SplitlockError where it cannot be told."""
    state = load()
    if gate.is_up():
        number = kernel.canary(layout.CANARY)
        live = number == layout.CANARY_ERRNO
        config = gate.live_config()
        return Status(
            gate="bpf",
            live=live,
            why="" if live else kernel.why_dead(number),
            policy=config.policy.decode("utf-8", "replace"),
            audit=bool(config.audit),
            started=state.started if state else None,
            pins=[f"{gate.PINS}/{name}" for name in gate.pins()],
            counters=gate.counters(),
            allowed=allowed.listed(),
            holes=list(BLIND),
            log=state.log if state else LOG,
        )
    if state and state.gate == "fanotify":
        return _fanotify(state)
    pins = gate.pins()
    why = "not up; splitlock guard start"
    if pins:
        why = f"half of its pins are gone ({gate.PINS} has {', '.join(pins)}); splitlock guard stop, then start"
    elif state and state.gate == "bpf":
        why = "it was up and its pins are gone; splitlock guard start"
    return Status(
        gate="none",
        live=False,
        why=why,
        policy=None,
        audit=False,
        started=None,
        pins=[f"{gate.PINS}/{name}" for name in pins],
        counters={},
        allowed=[],
        holes=[],
        log=state.log if state else LOG,
    )


def _fanotify(state: State) -> Status:
    from splitlock.guard.fallback import HOLES

    live = alive(state.pid) == state.pid_started != 0
    why = [f"no BPF gate: {state.why}"] if state.why else []
    if not live:
        why.insert(0, f"its process, {state.pid}, is gone: everything is let in; splitlock guard start")
    return Status(
        gate="fanotify",
        live=live,
        why="; ".join(why),
        policy=state.words.policy,
        audit=state.audit,
        started=state.started,
        pins=[],
        counters={},
        allowed=[],
        holes=[*HOLES, *BLIND],
        log=state.log,
        watched=state.watched,
    )


def now() -> str:
    """UTC, ISO 8601."""
    import time

    from splitlock.linux.text import when

    return when(time.time())


def counters_text() -> str:
    """How many decisions were lost, as a line to tell; empty for none."""
    try:
        lost = gate.counters()["lost"]
    except (SplitlockError, KeyError, OSError):
        return ""
    return f"{lost:,} decisions were made and not logged: nobody read them in time" if lost else ""


def alive(pid: int) -> int:
    """When a process started, in ticks since boot, 0 when it is not there: tells it from a later one of its number."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return int(fields[19]) if fields[0] not in (b"Z", b"X") else 0
    except (OSError, ValueError, IndexError):
        return 0
