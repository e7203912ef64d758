"""The report of `splitlock advise` as text, 80 columns wide."""

from __future__ import annotations

from splitlock.report.judgement_text import modes
from splitlock.report.lines import named, page, wrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.report.advise import Report
    from splitlock.report.judgement import Use

_USES = {"yes": "can use", "no": "does not use", "unknown": "may use"}


def render(report: Report, *, verbose: bool = False) -> str:
    """The report, with a newline at the end; with each rule's source where `verbose`."""
    found = report.judgement
    lines = (
        ["interrupted: what follows knows only the modules that were scanned until then"] if report.interrupted else []
    )
    lines += wrap(_answer(report))
    for step in found.first:
        lines += wrap(step, "- ", "  ")
    lines += ["", *wrap(_host(report))]
    for one in found.hypervisors:
        loaded = {"yes": "loaded", "no": "not loaded", "unknown": "may be loaded"}[one.loaded]
        lines += wrap(f"hypervisor {named(one.name)}: {loaded}; {one.why}")
    for guest in report.guests:
        clean = "not known: not all of it was watched" if guest.unwatched else "no split locks seen"
        lines += wrap(f"guest {named(guest.path)}: {', '.join(map(named, guest.takers)) or clean}")
    lines += ["", "what each mode would do here:", *modes(found, verbose=verbose)]
    if found.unknown:
        lines += ["", "not known:"]
        for what in found.unknown:
            lines += wrap(what, "  ", "    ")
    return page(lines)


def _host(report: Report) -> str:
    found = report.judgement
    inside = f"; inside {report.inside}" if report.inside else ""
    mode = "not known" if report.mode == "unknown" else report.mode
    return (
        f"host {report.source}: Linux {report.linux or 'of unknown version'}, mode {mode}{inside}; "
        f"{_use('split-lock detection (#AC)', found.split_locks)}; "
        f"{_use('bus-lock detection (#DB)', found.bus_locks)}"
    )


def _use(title: str, use: Use) -> str:
    return f"it {_USES[use.known]} {title}: {use.why}"


def _answer(report: Report) -> str:
    found = report.judgement
    if found.recommended:
        return f"boot with {report.command_line}: {found.because}"
    return found.because
