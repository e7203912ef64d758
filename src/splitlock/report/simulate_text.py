"""The reports of `splitlock simulate` as text, 80 columns wide."""

from __future__ import annotations

from splitlock.report.lines import count, page, wrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.report.simulate import Cell, Event, Matrix, Report, Step

_MODES = ("off", "warn", "fatal", "ratelimit")
_COLUMN, _NAME, _LEGEND = 12, 30, 17
_OUTCOMES = {"executed": "-", "not-started": "not started"}
#: Of a matrix in which such a hypervisor stands.
UNRELEASED = (
    "KVM of April 2020 was never released: it is Linux 5.7 while it was made, without one or both of the two fixes "
    "that 5.7 itself then had."
)
#: The words of a matrix, and what they mean.
FATES = (
    ("-", "it executes, locks the bus for all, and nobody notices; on #DB a line is logged"),
    ("slowed", "it executes, after its program or virtual CPU has waited for 10 ms or more"),
    ("emulated", "the hypervisor performs it without a lock; the bus is not locked"),
    ("sigbus!", "whoever took it is ended by the signal SIGBUS"),
    ("VM killed!", "SIGBUS for the program that runs the virtual machine: all of the guest is gone"),
    ("oops!", "the kernel that took it oopses; often the whole machine hangs"),
    ("panic!", "the kernel that took it stops"),
    ("livelock!", "it traps for ever: whoever took it never gets any further"),
    ("not started", "the policy keeps the hypervisor's module out"),
    ("loaded, refused", "the module is let in, or not"),
    ("disables", "the module is let in, and split-lock detection is off from then on"),
)


def render(report: Report) -> str:
    """A scenario, with a newline at the end."""
    lines = [*wrap(report.title), *(wrap(report.tells) if report.tells else []), "", *wrap(report.host)]
    for number, event in enumerate(report.events):
        lines += ["", *_event(number, event)]
    harmed = [event for event in report.events if event.victim]
    lines += ["", *wrap(f"{count(len(harmed), 'event')} did harm" if harmed else "nobody was harmed")]
    return page(lines)


def _event(number: int, event: Event) -> list[str]:
    end = f"{event.fate}{f': {event.victim}' if event.victim else ''}"
    lines = wrap(f"{number}. {event.event} -> {end}", "", "   ")
    for step in event.steps:
        lines += wrap(f"{step.who}: {step.what} [{step.source}]", "   ", "     ")
        if step.log:
            lines += wrap(f"log{_times(step)}: {step.log}", "     ", "       ")
        if cost := _cost(step):
            lines += wrap(f"cost: {cost}", "     ", "       ")
    if event.bus_locked_nanoseconds:
        lines += wrap(f"the bus is locked for {_time(event.bus_locked_nanoseconds)}", "   ", "     ")
    return lines


def _times(step: Step) -> str:
    """How often a line is logged, where that is not once."""
    held = f", {step.held_back:,} more held back by the kernel's rate limit" if step.held_back else ""
    return f" ({count(step.lines, 'time')}{held})" if step.lines > 1 or held else ""


def _cost(step: Step) -> str:
    parts = [f"the task waits {_time(step.milliseconds * 1e6)}"] if step.milliseconds else []
    if step.alone_milliseconds:
        parts.append(f"other cores' split locks up to {_time(step.alone_milliseconds * 1e6)}")
    return ", ".join(parts)


def _time(nanoseconds: float) -> str:
    for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if nanoseconds >= size:
            return (
                f"{nanoseconds / size:.3g} {unit}" if nanoseconds < 1000 * size else f"{nanoseconds / size:,.0f} {unit}"
            )
    return f"{nanoseconds:.3g} ns"


def render_matrix(report: Matrix, *, verbose: bool = False) -> str:
    """The matrix, with a newline at the end; a table for each policy where `verbose`, else for `none`."""
    lines = wrap(f"Linux {report.linux} on a processor with {' and '.join(report.processor) or 'no detection'}")
    lines += ["", "What each policy says to a hypervisor's module, with detection on:", *_admissions(report)]
    if report.unreleased:
        lines += ["", *wrap(UNRELEASED)]
    policies = list(dict.fromkeys(cell.policy for cell in report.cells))
    for policy in policies if verbose else policies[:1]:
        title = "Linux as it is (no policy)" if policy == "none" else f"policy {policy}"
        lines += ["", f"{title}: what comes of a split lock in each mode", *_table(report, policy)]
    lines += ["", "What the words mean (!: somebody dies or is stuck):"]
    for word, meaning in FATES:
        lines += wrap(f"{word:<{_LEGEND}}{meaning}", "  ", " " * (_LEGEND + 2))
    lines += wrap(f"{len(report.cells):,} cells{'' if verbose else '; -v shows a table for each policy'}")
    return page(lines)


def _admissions(report: Matrix) -> list[str]:
    policies = [policy for policy in dict.fromkeys(one.policy for one in report.admissions) if policy != "none"]
    found = {(one.policy, one.hypervisor): one.outcome for one in report.admissions}
    words = "".join(f"{policy.partition(':')[0]:<{_COLUMN}}" for policy in policies)
    lines = [f"{'':<{_NAME}}{words}".rstrip()]
    for name in dict.fromkeys(one.hypervisor for one in report.admissions):
        words = "".join(f"{found[policy, name]:<{_COLUMN}}" for policy in policies)
        lines.append(f"{name:<{_NAME}}{words}".rstrip())
    return lines


def _table(report: Matrix, policy: str) -> list[str]:
    """A line for each hypervisor, guests and accesses that fare alike; a column a mode."""
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for cell in report.cells:
        if cell.policy == policy:
            rows.setdefault((cell.hypervisor, cell.guest, cell.access), {})[cell.mode] = outcome(cell)
    lines: list[str] = []
    for name in dict.fromkeys(row[0] for row in rows):
        alike: dict[tuple[str, ...], dict[str, list[str]]] = {}
        for (hypervisor, guest, access), words in rows.items():
            if hypervisor == name:
                key = tuple(words[mode] for mode in _MODES)
                alike.setdefault(key, {}).setdefault(guest, []).append(access)
        lines += [
            "",
            f"{name if name != 'none' else 'on the host':<{_NAME}}" + "".join(f"{m:<{_COLUMN}}" for m in _MODES),
        ]
        for outcomes, guests in alike.items():
            cells = "".join(f"{word:<{_COLUMN}}" for word in outcomes)
            lines += [*_names(guests), f"{'':<{_NAME}}{cells}".rstrip()]
    return [line.rstrip() for line in lines]


def _names(guests: dict[str, list[str]]) -> list[str]:
    """Which guests and accesses: those of guests that fare alike together."""
    together: dict[tuple[str, ...], list[str]] = {}
    for guest, accesses in guests.items():
        together.setdefault(tuple(accesses), []).append(guest)
    lines = []
    for alike, names in together.items():
        who = "" if names == ["none"] else f"{', '.join(names)}: "
        lines += wrap(f"{who}{'; '.join(alike)}", "  ", "    ")
    return lines


def outcome(cell: Cell) -> str:
    """A cell in a word; `!` where somebody dies or is stuck."""
    word = _OUTCOMES.get(cell.fate, cell.fate)
    if cell.victim == "virtual machine":
        word = "VM killed"
    return word + ("!" if cell.victim else "")
