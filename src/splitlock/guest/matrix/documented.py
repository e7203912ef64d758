"""What does the kernel's documentation say about a kind of split lock, and does what was observed agree?

Source: Documentation/arch/x86/buslock.rst of Linux 7.2 (of 6.12 to 7.3: they say the same of what is here), and
"split_lock_mitigate" in Documentation/admin-guide/sysctl/kernel.rst. Nothing here has a say in what is observed.
"""

from __future__ import annotations

from statistics import median

from splitlock.report.lines import count
from splitlock.report.matrix import Cell, Documented

SOURCE = "Linux 7.2, Documentation/arch/x86/buslock.rst"
NOTES = {
    "ac": "ac: the emulated processor raises no ordinary alignment checks, as a real one does while EFLAGS.AC is set; "
    "where split locks are not detected these cells say nothing about a real one",
    "repeat": "times are the guest's clock in QEMU: they show waiting, not what a split lock costs",
}
KERNEL = ("module", "kthread", "interrupt")  # kinds that the kernel takes
_DELAY, _STEP = 10_000_000, 20_000_000  # ns: of warn, and the step in which ratelimit waits
_TURN = 1_000_000  # ns: for which one processor is kept back by another, two jiffies, of at most 1,000 a second
_ENOUGH = 5  # measurements: on a busy host a clock that was late makes up for it, and a single one says little


def documented(processor: str, mode: str, kind: str) -> Documented | None:
    """What the documentation says, None where nothing."""
    trap = _trap(processor, mode)
    if kind in KERNEL:
        return Documented(outcome="oops" if trap == "#AC" else "completed")
    if kind == "ac" and trap != "#AC":
        return None
    if trap is None:
        return Documented(outcome="completed", warned="never", delayed=False, serialised=False)
    if mode == "fatal" or kind == "ac":  # who asked for alignment checks gets them (arch/x86/kernel/traps.c)
        return Documented(outcome="sigbus")
    if mode.startswith("ratelimit:"):
        return Documented(outcome="completed", warned="always", limited=int(mode.partition(":")[2]))
    mitigated = trap == "#AC" and mode == "warn"
    return Documented(outcome="completed", warned="once", delayed=mitigated, serialised=mitigated)


def _trap(processor: str, mode: str) -> str | None:
    """The exception that the kernel uses; where it could use both, `warn` and `fatal` are by #AC."""
    if mode == "off":
        return None
    if mode.startswith("ratelimit:"):
        return None if processor == "ac" else "#DB"
    return "#DB" if processor == "db" else "#AC"


def differences(cell: Cell) -> list[str]:
    """In what a cell is not as documented; an oops in an interrupt is a panic."""
    said = cell.documented
    if said is None or cell.outcome == "not-tried":
        return []
    oops = cell.outcome in ("oops", "panic")
    if oops if said.outcome != "oops" else not oops:
        return [f"{cell.outcome}, not {said.outcome}"]
    if said.outcome not in ("oops", cell.outcome):
        return [f"{cell.outcome}, not {said.outcome}"]
    if said.outcome != "completed":
        return []
    found = [] if cell.executed is not False else ["the operand has a wrong value"]
    found += _warned(cell, said) + _waited(cell, said)
    if said.serialised and cell.kind == "together" and len(cell.apart) < _ENOUGH:
        found.append(
            f"two processors at once {count(len(cell.apart), 'time')} only: too seldom to tell whether one is kept back"
        )
    elif said.serialised and cell.kind == "together" and median(cell.apart) < _TURN:
        found.append("not one processor at a time")
    if said.serialised is False and len(cell.apart) >= _ENOUGH and min(cell.apart) >= _TURN:
        found.append("one processor at a time")
    return found


def _warned(cell: Cell, said: Documented) -> list[str]:
    tasks = 2 if cell.kind in ("together", "after") else 1
    # of two lines at one moment the kernel drops one (lib/ratelimit.c: who does not get the lock is not to log)
    least = 1 if cell.kind == "together" else tasks
    if said.warned == "never" and cell.warnings:
        return [f"logged {count(cell.warnings, 'time')}, not never"]
    if said.warned == "once" and (cell.warnings > tasks or (cell.warnings < least and not cell.muted)):
        return [f"logged {count(cell.warnings, 'time')}, not once a task"]
    if said.warned == "always" and not cell.warnings and not cell.muted:
        return ["not logged"]
    return []


def _waited(cell: Cell, said: Documented) -> list[str]:
    times = cell.nanoseconds
    if said.delayed and len(times) >= _ENOUGH and median(times) < _DELAY:
        return ["no delay of 10 ms"]
    if said.delayed is False and len(times) >= _ENOUGH and min(times) >= _DELAY:  # a busy host delays some
        return ["delayed"]
    # the limit counts in windows of a second (lib/ratelimit.c): where one ends among them, as many again pass
    if said.limited is not None and len(times) > 2 * said.limited and max(times) < _STEP:
        return ["not limited"]
    return []
