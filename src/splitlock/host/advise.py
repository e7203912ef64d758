"""Should split-lock detection be on here, and how? The judgement on a machine, with what else somebody knows of it."""

from __future__ import annotations

from splitlock.host.judgement.hypervisors import hypervisors, kvm_runs
from splitlock.host.judgement.judge import judge
from splitlock.linux.delays import RATES
from splitlock.report.advise import Guest, Report
from splitlock.report.lines import count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.report.guest import Report as Watched
    from splitlock.report.status import Module
    from splitlock.report.status import Report as Status


#: How a guest ends whose watch was as long as somebody wanted it.
_ENDS = ("power off", "duration", "until", "interrupted")


def guest(path: str, watched: Watched) -> Guest:
    """What advice needs of a guest report. Firmware counts: the host detects before the guest has a kernel."""
    takers = []
    for site in watched.sites:
        if site.hits or site.traps:
            who = site.comm if site.where == "user" else site.image
            takers.append(f"{site.where} {who}" if who else site.where)
    traps = watched.detection.traps if watched.detection else 0
    unnamed = max(watched.hits, watched.unnamed) - sum(site.hits for site in watched.sites)
    unnamed = max(unnamed, traps - sum(site.traps for site in watched.sites))
    if unnamed > 0:
        takers.append(f"{count(unnamed, 'split lock')} that no site names")
    unseen = _unseen(watched)
    return Guest(path=path, hits=watched.hits, takers=list(dict.fromkeys(takers)), unwatched=unseen)


def _unseen(watched: Watched) -> list[str]:
    """Why it may take split locks that the report does not have; empty: what was to be watched was watched."""
    found = list(watched.unwatched)
    if watched.watched.end not in _ENDS:
        found.append(f"it ended by itself ({watched.watched.end}): what it would have done later was not seen")
    if watched.watched.kernel is None and not any("Linux" in what for what in found):
        found.append("no Linux kernel was seen in it")
    return found


def contradiction(status: Status) -> str:
    """What cannot be true of one machine in a report that somebody gives us; empty: nothing."""
    kernel, log = status.kernel, status.log
    split, bus = status.processor.split_lock.used.known, status.processor.bus_lock.used.known
    if split == bus == "no" and kernel.mode not in ("off", "unknown"):
        return f"it says mode {kernel.mode} of a kernel that detects nothing"
    if kernel.rate is not None and (kernel.mode != "ratelimit" or kernel.rate not in RATES):
        return f"it says a rate of {kernel.rate} in mode {kernel.mode}"
    if min(log.lines, log.suppressed, log.lost, log.unknown, *(task.lines for task in log.tasks)) < 0:
        return "it counts less than no lines of the log"
    if sum(task.lines for task in log.tasks) > log.lines:
        return "it has more lines of its tasks than lines"
    return ""


def advise(
    status: Status, named: list[Module], guests: list[Guest], source: str, *, interrupted: bool = False
) -> Report:
    """The report. `named`: modules that may be loaded, besides those found; `interrupted`: there may be more."""
    for module in named:
        module.loaded = "unknown" if module.loaded == "no" else module.loaded
    modules = {module.path or module.name: module for module in (*status.modules, *named)}
    judgement = judge(status, hypervisors(modules.values(), status.processor.vendor, kvm_runs(status)), guests)
    rate = f":{status.kernel.rate}" if status.kernel.rate else ""
    return Report(
        source=source,
        linux=status.kernel.release,
        mode=status.kernel.mode + rate,
        inside=status.processor.hypervisor,
        judgement=judgement,
        guests=guests,
        command_line=f"split_lock_detect={judgement.recommended}" if judgement.recommended else "",
        unscanned=status.unscanned,
        interrupted=interrupted or status.interrupted,
    )
