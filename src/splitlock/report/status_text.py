"""The report of `splitlock status` as text: one page, 80 columns wide."""

from __future__ import annotations

import math

from splitlock.report.judgement_text import modes
from splitlock.report.lines import count, cut, named, page, wrap
from splitlock.report.oops_text import cause_title

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.report.status import Detection, Kernel, Log, Measured, Module, Processor, Report

_LABEL = 12  # columns
_TASKS, _MODULES = 5, 8  # shown without --verbose
_RUNNING = "proc/cmdline"
_BAR = 40  # columns of the plot


def render(report: Report, *, verbose: bool = False) -> str:
    """The report, with a newline at the end."""
    lines: list[str] = []
    where = f"{named(report.machine or 'a machine')}" + (
        f" (files below {named(report.root)})" if report.root != "/" else ""
    )
    lines += _field("machine", where)
    lines += _processor(report.processor)
    lines += _kernel(report.kernel)
    lines += _log(report.log, verbose)
    lines += _modules(report, verbose)
    lines += _field("VMs", _vms(report))
    lines += _field(
        "guard", {"yes": "up", "no": "not up", "unknown": "not known"}[report.guard.up] + _also(report.guard.why)
    )
    if report.measured:
        lines += _measured(report.measured)
    lines += ["", "what each mode would do here:"]
    lines += modes(report.judgement, verbose=verbose)
    if report.checks:
        lines += ["", "look at this first:"]
        for number, check in enumerate(report.checks, 1):
            lines += wrap(f"{number:>2}. {check}", "", "    ")
    return page(lines)


def _vms(report: Report) -> str:
    if report.vmms is None:
        return f"not known: {report.vmms_why}"
    running = (f"{named(v.name)} {v.pid}{f' ({named(v.vm)})' if v.vm else ''}" for v in report.vmms)
    found = ", ".join(running) or "none running"
    return f"{found}; whether there are more is not known: {report.vmms_why}" if report.vmms_why else found


def _field(label: str, text: str) -> list[str]:
    return wrap(f"{label:<{_LABEL}}{text}", "", " " * _LABEL)


def _also(why: str) -> str:
    return f": {why}" if why else ""


def _processor(cpu: Processor) -> list[str]:
    model = f", family {cpu.family} model {cpu.model:#x}" if cpu.family is not None and cpu.model is not None else ""
    number = f", {count(cpu.count, 'processor')}" if cpu.count else ""
    lines = _field("processor", f"{named(cpu.name or 'not known')}{model}{number}")
    lines += _field("", f"inside {named(cpu.hypervisor)}") if cpu.hypervisor else []
    lines += _detection("split-lock detection (#AC)", cpu.split_lock)
    return lines + _detection("bus-lock detection (#DB)", cpu.bus_lock)


def _detection(title: str, found: Detection) -> list[str]:
    can = {"yes": "yes", "no": "none", "unknown": "not known"}[found.supported]
    on = {"yes": ", on", "no": ", off", "unknown": ""}[found.enabled] if found.supported != "no" else ""
    more = f"; {found.registers}" if found.registers else ""
    lines = _field("", f"{title}: {can}{on} ({found.source}{more})")
    if found.used.known != found.supported or found.used.why != found.source:
        used = {"yes": "used", "no": "not used", "unknown": "not known whether used"}[found.used.known]
        lines += _field("", f"  {used} by this kernel: {found.used.why}")
    return lines


def _kernel(kernel: Kernel) -> list[str]:
    installed = f"none is known to run; installed: {', '.join(kernel.installed)}" if kernel.installed else "not known"
    lines = _field("kernel", kernel.release or installed)
    mode = f"{kernel.mode}{f':{kernel.rate}' if kernel.rate else ''}" if kernel.mode != "unknown" else "not known"
    lines += _field("mode", f"{mode}: {kernel.why}")
    lines += _field("", f"split_lock_detect={kernel.parameter}" if kernel.parameter else "no split_lock_detect= given")
    if kernel.mitigate is not None:
        lines += _field("", f"kernel.split_lock_mitigate={kernel.mitigate}")
    for setting in kernel.settings:
        if setting.where != _RUNNING or setting.counts != "yes":
            counts = {"yes": "set", "no": "set in vain", "unknown": "set"}[setting.counts]
            lines += _field("", f"{counts}: {named(setting.where)}: {named(setting.text)}{_also(setting.why)}")
    return lines


def _log(log: Log, verbose: bool) -> list[str]:
    if log.source is None:
        return _field("log", f"not read: {log.why}")
    more = [f"{count(log.suppressed, 'line')} held back"] if log.suppressed else []
    more += [f"{count(log.lost, 'record')} lost"] if log.lost else []
    more += [log.why] if log.why else []
    nothing = "no split or bus lock logged since boot" if log.whole else "no split or bus lock in what was read"
    said = f"{count(log.lines, 'split or bus lock')} logged since boot" if log.lines else nothing
    lines = _field("log", f"{said} ({'; '.join([log.source, *more])})")
    if log.deaf and not log.lines:
        lines += _field("", f"and none would be: {log.deaf}")
    most = len(log.tasks) if verbose else _TASKS
    for task in log.tasks[:most]:
        lines += _field(
            "", f"{task.lines:,} {task.exception} by {named(task.comm)}{' (of a guest)' if task.guest else ''}"
        )
    if len(log.tasks) > most:
        lines += _field("", f"and {count(len(log.tasks) - most, 'more program')} (-v lists all)")
    for cause in log.causes:
        lines += _field("", f"{cause_title(cause)}: {cause.what} What helps: {cause.fix} {' '.join(cause.links)}")
    return lines


def _modules(report: Report, verbose: bool) -> list[str]:
    scanned = (
        "not scanned"
        if report.scanned is None
        else f"{count(report.scanned, 'file')} scanned{' until interrupted' if report.interrupted else ''}"
    )
    if not report.modules:
        if report.scanned is None:
            return _field("modules", scanned)
        some = report.scanned or report.interrupted
        nothing = "not known" if report.unscanned else "none are there"
        lines = _field("modules", f"{scanned}: no hypervisor" if some else nothing)
    else:
        lines = _field("modules", f"{scanned}: {count(len(report.modules), 'hypervisor')}")
    most = len(report.modules) if verbose else _MODULES
    for module in report.modules[:most]:
        lines += _field("", _module(module))
    if len(report.modules) > most:
        lines += _field("", f"and {len(report.modules) - most:,} more (-v lists all)")
    if report.unscanned:
        number = count(len(report.unscanned), "file or directory", "files or directories")
        lines += _field("", f"could not be looked into: {number}")
        lines += [cut(f"{'':{_LABEL}}  {line}") for line in report.unscanned] if verbose else []
    return lines


def _module(module: Module) -> str:
    state = {"yes": "loaded", "no": "installed", "unknown": "installed, perhaps loaded"}[module.loaded]
    aware = "not known to be ready for split-lock detection"
    if module.aware:
        aware = "asks Linux what to do with a guest's split lock"
    elif module.marked:
        aware = "marked sld_safe"
    elif "VMRUN" in module.evidence:
        aware = "AMD's, which have no split-lock detection"
    return f"{named(module.name)}: {state}, {aware} ({', '.join(module.evidence)})"


def _measured(found: Measured) -> list[str]:
    lines = _field("measured", f"{count(found.split_locks, 'split lock')} taken; medians")
    bars = [("aligned lock", found.aligned), ("split lock", found.split)]
    if found.neighbour_core is not None:
        bars.append((f"core {found.neighbour_core}'s read", found.neighbour_quiet))
    if found.neighbour_during is not None:
        bars.append(("  during one", found.neighbour_during))
    top = max(value for _, value in bars)
    for label, value in bars:  # a logarithmic scale from 1 ns
        width = round(_BAR * math.log(max(value, 1.0)) / math.log(max(top, 2.0)))
        lines.append(f"{'':{_LABEL}}{label:<15}{value:>9,.0f} ns {'#' * width}".rstrip())
    if found.aligned and found.neighbour_core is not None and found.neighbour_during and found.neighbour_quiet:
        lines += _field(
            "",
            f"split: as long as {count(round(found.split / found.aligned), 'aligned lock')}; a neighbour's read takes "
            f"{found.neighbour_during / found.neighbour_quiet:,.1f} times as long "
            f"({count(found.neighbour_met, 'split lock')} met it)",
        )
    elif found.neighbour_core is None:
        lines += _field("", "one processor: no neighbour to feel it")
    elif found.neighbour_during is None:
        lines += _field("", "the neighbour was not at work during any of them")
    return lines
