"""Everything about one machine that bears on split-lock detection, gathered for a report."""

from __future__ import annotations

from splitlock.host import modules
from splitlock.host.judgement import checks
from splitlock.host.judgement.hypervisors import hypervisors, kvm_runs
from splitlock.host.judgement.judge import judge
from splitlock.host.kernel import foreign, kernel, running
from splitlock.host.log.heard import Heard
from splitlock.host.processor import processor
from splitlock.host.vmms import vmms
from splitlock.linux import versions
from splitlock.report.judgement import Judgement, Use
from splitlock.report.status import Report

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from splitlock.host.root import Root
    from splitlock.report.status import Guard, Measured

_UNJUDGED = Judgement(
    split_locks=Use(known="unknown", why=""), bus_locks=Use(known="unknown", why=""), hypervisors=[], modes=[],
    recommended="", because="", first=[], unknown=[],
)  # fmt: skip


def status(
    root: Root, guard: Guard, *, scan: bool = True, measured: Measured | None = None,
    advance: Callable[[int], None] | None = None,
) -> Report:  # fmt: skip
    """The report on a machine. `scan`: look into its modules; `advance`: told how many more files are done."""
    heard = Heard(root)
    release = running(root, heard)
    cpu = processor(root, heard, versions.release(release or ""), foreign(root, heard, release))
    system = kernel(root, heard, release, cpu)
    places = modules.directories(root, system.release) if scan else []
    loaded = modules.loaded(root)
    places += modules.foreign(root) if scan else []
    scanned = modules.hypervisors(root, places, loaded, advance) if scan else modules.Scanned([], 0, [], False)
    running_vmms = vmms(root)
    made = Report(
        root=root.directory,
        machine=(root.text("proc/sys/kernel/hostname", "etc/hostname", "hostname") or "").strip() or None,
        processor=cpu,
        kernel=system,
        log=heard.report(),
        modules=modules.unseen(root, system.release, loaded, scanned.modules) + scanned.modules,
        scanned=scanned.files if scan else None,
        unscanned=modules.hidden(root) + scanned.failed if scan else [],
        interrupted=scanned.interrupted,
        vmms=running_vmms.vmms,
        vmms_why=running_vmms.why,
        guard=guard,
        judgement=_UNJUDGED,
        checks=[],
        measured=measured,
    )
    made.judgement = judge(made, hypervisors(made.modules, cpu.vendor, kvm_runs(made)), [])
    made.checks = checks.checks(made)
    return made
