"""The report of `splitlock matrix --vmx` as text, 80 columns wide."""

from __future__ import annotations

from splitlock.report.lines import count, page, wrap
from splitlock.report.matrix_layout import boots, details, ending, grouped, row

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.report.matrix_vmx import Cell, Report

_HEAD, _WHO = 22, 9
_OUTCOMES = {
    "sigbus": "SIGBUS", "gp": "#GP", "triple-fault": "triple fault", "other": "?", "not-tried": "-", "impossible": "-"
}  # fmt: skip
HYPERVISORS = {
    "kvm": "kvm-intel of the same kernel",
    "forward": "blind.ko: each #AC leads to a VM exit, and is injected into the guest",
    "through": "blind.ko: #AC leads to no VM exit, the guest gets it",
    "off": "blind.ko: turns detection off while its guest runs",
    "handle": "blind.ko: asks the kernel, by handle_guest_split_lock()",
}
GUESTS = {
    "real": "real mode, vectors empty", "kernel": "64-bit, CPL 0, no IDT", "kernel_idt": "the same with handlers",
    "user_idt": "CPL 3", "am_idt": "CPL 3, CR0.AM alone", "ac_idt": "CPL 3, EFLAGS.AC alone",
    "asked": "CPL 3, both: asks for alignment checks; no IDT", "asked_idt": "the same with handlers",
    "wrmsr_idt": "CPL 0: no split lock, writes TEST_CTRL bit 29",
    "linux_user": "the same Linux as a guest: in a program", "linux_module": "in a module of it",
}  # fmt: skip
_RESULTS = {
    "warned": "completed, with a line in the host's log; and by the host's clock",
    "handled": "the guest's handler got #AC",
    "triple fault": "the guest is dead: KVM_EXIT_SHUTDOWN, or VMX's exit by a triple fault",
    "derailed": "the guest went on behind an empty vector",
    "SIGBUS": "the VMM gets it, and the guest cannot go on",
    "livelock": "the guest tries the instruction again and again",
    "oops": "the guest's kernel",
    "#GP": "the guest's handler got a general protection",
}


def render(report: Report, *, verbose: bool = False) -> str:
    """The report, with a newline at the end; with every cell's details where `verbose`."""
    lines = []
    for kernel in report.kernels:
        cells = [cell for cell in report.cells if cell.kernel == kernel.release]
        lines += wrap(f"Linux {kernel.release} on a processor with VMX and split-lock #AC")
        logs = [(boot.mode, boot.log) for boot in report.boots if boot.kernel == kernel.release]
        lines += ["", *_table(cells), "", *boots(logs), *_remarks(cells)]
        if verbose:
            lines += _details(cells)
        lines.append("")
    tried = {cell.hypervisor for cell in report.cells}
    for legend in ({name: what for name, what in HYPERVISORS.items() if name in tried}, GUESTS, _RESULTS):
        for name, what in legend.items():
            lines += wrap(what, f"{name:<{_HEAD}}", " " * _HEAD)
        lines.append("")
    return page([*lines, *_summary(report)])


def _table(cells: list[Cell]) -> list[str]:
    """A line a guest, a column a mode; hypervisors' impossible guests are in a remark."""
    modes = list(dict.fromkeys(cell.mode for cell in cells))
    found = {(cell.hypervisor, cell.guest, cell.mode): cell for cell in cells if cell.outcome != "impossible"}
    lines = [row("", _HEAD, modes)]
    for hypervisor, guest in dict.fromkeys((hypervisor, guest) for hypervisor, guest, _ in found):
        words = [word(found.get((hypervisor, guest, mode))) for mode in modes]
        lines.append(row(f"{hypervisor:<{_WHO}}{guest}", _HEAD, words))
    return lines


def word(cell: Cell | None) -> str:
    """What happened; `!` where simulate says otherwise."""
    if cell is None:
        return ""
    text = _OUTCOMES.get(cell.outcome, cell.outcome)
    if cell.outcome == "completed" and cell.warnings:
        text = "warned" if cell.nanoseconds is None else f"warned {cell.nanoseconds / 1e6:.0f}ms"
    return text + ("!" if cell.differs else "")


def _remarks(cells: list[Cell]) -> list[str]:
    """Where it is not as simulated, and what was not tried or cannot be."""
    lines = []
    for reason, some in grouped(cells, _name, lambda cell: cell.differs):
        lines += wrap(f"! {some}: {reason}")
    untried = ("not-tried", "other")
    for reason, some in grouped(cells, _name, lambda cell: [cell.reason or ""] if cell.outcome in untried else []):
        lines += wrap(f"- {some}: {reason}")
    for reason in dict.fromkeys(cell.reason or "" for cell in cells if cell.outcome == "impossible"):
        names = dict.fromkeys(cell.hypervisor for cell in cells if cell.reason == reason)
        guests = dict.fromkeys(cell.guest for cell in cells if cell.reason == reason)
        lines += wrap(f"- {', '.join(names)}: not {', '.join(guests)}: {reason}")
    return ["", *lines] if lines else []


def _name(cell: Cell) -> str:
    return f"{cell.hypervisor} {cell.guest}"


def _details(cells: list[Cell]) -> list[str]:
    """What the kernel, the VMM and the processor say of each."""
    lines = []
    for cell in cells:
        if cell.outcome in ("impossible", "not-tried"):
            continue
        more = [*cell.log, *(f"guest: {line}" for line in cell.guest_log)]
        if cell.signal:
            more.append(f"VMM: signal {cell.signal.number}, si_code {cell.signal.code}, si_addr {cell.signal.address}")
        if cell.exit is not None:
            more.append(
                f"exit {cell.exit}"
                + (f", executed {count(cell.executed, 'time')}" if cell.executed is not None else "")
            )
        if cell.error is not None:
            at = {True: ", at the instruction", False: ", elsewhere", None: ""}[cell.at_instruction]
            more.append(f"error code {cell.error}{at}")
        if (side := cell.processor) is not None and side.traps:
            more.append(
                f"processor: {side.traps:,} #AC in {side.place} at CPL {side.cpl}: "
                f"{count(side.exits, 'VM exit')}, {side.injected} injected, {side.delivered} delivered at once, "
                f"{count(side.triple_faults, 'triple fault')}"
            )
        lines += details(cell, f"{_name(cell)}: {word(cell)}", more)
    return lines


def _summary(report: Report) -> list[str]:
    measured = [cell for cell in report.cells if cell.outcome not in ("not-tried", "impossible")]
    differ = sum(bool(cell.differs) for cell in measured)
    held = sum(cell.simulated is not None for cell in measured)
    as_said = f"{differ or 'none'} of the {held} that simulate knows not as it says"
    if held == 1:
        as_said = f"the only one that simulate knows is {'not ' * differ}as it says"
    return ending(
        f"{count(len(measured), 'cell')} measured in {count(len(report.boots), 'boot')} of Bochs {report.emulator}; "
        f"{as_said}",
        report,
    )
