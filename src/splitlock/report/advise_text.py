"""The report of `splitlock advise` as text, 80 columns wide."""

from __future__ import annotations

from splitlock.report.lines import printable, wrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.report.advise import Host, Mode, Report

_DETECTS = {"yes": "detects", "no": "does not detect", "unknown": "may detect"}


def render(report: Report, *, verbose: bool = False) -> str:
    """The report, with a newline at the end; with each rule's source where `verbose`."""
    lines = (
        ["interrupted: what follows knows only the modules that were scanned until then"] if report.interrupted else []
    )
    lines += wrap(_answer(report))
    for step in report.first:
        lines += wrap(f"first: {step}", "  ", "    ")
    lines += ["", *wrap(_host(report.host))]
    for one in report.hypervisors:
        loaded = {"yes": "loaded", "no": "not loaded", "unknown": "may be loaded"}[one.loaded]
        refused = "; policy refuse keeps it out" if one.refused else ""
        lines += wrap(f"hypervisor: {one.name}, {loaded}: {one.why}{refused}")
    for guest in report.guests:
        lines += wrap(f"guest: {guest.path}: {', '.join(guest.takers) or 'no split locks seen'}")
    for mode in report.modes:
        lines += ["", *_mode(mode, verbose)]
    lines += ["", "not known:"]
    for what in report.unwatched:
        lines += wrap(what, "  ", "    ")
    return "\n".join(map(printable, lines)) + "\n"


def _host(host: Host) -> str:
    inside = f"; inside {host.inside}" if host.inside else ""
    return (
        f"host: {host.source}: {_DETECTS[host.split_locks]} split locks (#AC), {_DETECTS[host.bus_locks]} bus locks "
        f"(#DB); Linux {host.linux or 'of unknown version'}, mode {host.mode}{inside}"
    )


def _answer(report: Report) -> str:
    if not report.command_line:
        return "nothing to turn on: this processor detects neither split locks nor bus locks"
    return f"boot with {report.command_line}{', with splitlock guard' if report.guard else ''}"


def _mode(mode: Mode, verbose: bool) -> list[str]:
    effective = "" if mode.mode.startswith(mode.effective) else f" (nothing is detected: {mode.effective})"
    guarded = f", with the guard {mode.guarded}" if mode.guarded != mode.verdict else ""
    lines = wrap(f"{mode.mode}{effective}: {mode.verdict}{guarded}")
    for reason in mode.reasons:
        lines += wrap(f"{reason.verdict}: {reason.who}: {reason.what}", "  ", "    ")
        for rule in reason.rules if verbose else ():
            lines += wrap(rule, "    ", "      ")
    return lines
