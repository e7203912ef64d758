"""What should somebody look at first on this machine? By the judgement and the log, the gravest first."""

from __future__ import annotations

from splitlock.linux import versions
from splitlock.linux.detection import false_bus_locks
from splitlock.report.lines import count
from splitlock.report.status import KERNEL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.report.status import Log, Report

_NAMED = 4  # names in a sentence


def checks(report: Report) -> list[str]:
    """In sentences."""
    found = [*_oopses(report.log), *_logged(report)]
    unknown = [
        one.name for one in report.judgement.hypervisors if one.kind in ("unknown", "svm") and one.loaded != "no"
    ]
    detects = "yes" in (report.processor.split_lock.used.known, report.processor.bus_lock.used.known)
    if unknown and detects:
        found.append(f"{_some(unknown)}: what it makes of a guest's #AC is not known: run `splitlock probe` in a guest")
    refused = sorted({one.name for one in report.judgement.hypervisors if one.refused and one.loaded == "no"})
    if refused:
        found.append(f"installed, not loaded, and refused by the policy `refuse`: {_some(refused)} (`splitlock scan`)")
    running = [vmm.vm or f"{vmm.name} {vmm.pid}" for vmm in report.vmms or []]
    if running and detects:
        found.append(
            f"{count(len(running), 'virtual machine')} running ({_some(running)}): try their images with "
            "`splitlock guest --sld`"
        )
    return found + _false_lines(report) + _unseen(report)


def _oopses(log: Log) -> list[str]:
    where = _some(sorted({oops for oops in log.oopses if oops}))
    if not log.oopses:
        return []
    return [
        f"the kernel itself took a split lock and oopsed{f', in {where}' if where else ''}: a bug in this code, not in "
        "the machine; `splitlock watch` explains it, `splitlock guest --sld` shows it again"
    ]


def _logged(report: Report) -> list[str]:
    found = []
    if report.log.stuck:
        found.append(
            "this virtual machine's host sends #AC straight into it, and a program here is stuck for ever: the host "
            "must turn split-lock detection off"
        )
    machines = [vmm.vm or f"{vmm.name} {vmm.pid}" for vmm in report.vmms or []]
    guests = [task for task in report.log.tasks if task.guest]
    if guests:
        whose = f" of {_some(machines)}" if machines else ""
        lines = sum(task.lines for task in guests)
        found.append(
            f"virtual machines take split locks: {_some([task.comm for task in guests])}{whose} "
            f"({count(lines, 'line')}): `splitlock guest` on their images names the code"
        )
    if any(task.guest and task.exception == "#AC" for task in guests) and report.kernel.mode == "fatal":
        found.append("the kernel says this once a boot: more virtual machines may have been killed without a word")
    for task in [task for task in report.log.tasks if not task.guest and task.comm != KERNEL][:_NAMED]:
        found.append(
            f"{task.comm} takes them ({count(task.lines, 'line')}): `splitlock watch` or `splitlock run` names the code"
        )
    return found


def _false_lines(report: Report) -> list[str]:
    """Lines about bus locks that were none."""
    release = versions.release(report.kernel.release or "")
    false = false_bus_locks(release) if release else "unknown"
    if false == "no" or not any(task.exception == "#DB" for task in report.log.tasks):
        return []
    may = "is of those that" if false == "yes" else "may be of those that"
    return [
        f"a #DB line may be false: this kernel {may} take the first #DB of any kind on a core (a single step, say) "
        "for a bus lock"
    ]


def _unseen(report: Report) -> list[str]:
    found = []
    log, cpu = report.log, report.processor
    detects = "yes" in (cpu.split_lock.used.known, cpu.bus_lock.used.known)
    if log.source is None:
        found.append(f"the kernel's log was not read: {log.why}")
    elif log.suppressed:
        found.append(
            f"the kernel held back {count(log.suppressed, 'line')} about split or bus locks: more programs than those "
            "named may take them"
        )
    elif not log.whole and log.why:
        found.append(f"the log does not tell all since boot: {log.why}")
    elif report.kernel.mode == "warn" and detects and not log.lines:
        found.append("no program was named since boot: run what matters here, then look again before you choose fatal")
    if not detects and cpu.hypervisor:
        found.append(
            f"this is a guest of {cpu.hypervisor}: what comes of its split locks is its host's to say "
            "(`splitlock probe`)"
        )
    if cpu.split_lock.used.known == cpu.bus_lock.used.known == "no":
        found.append(
            "this kernel detects nothing here: `splitlock run` and `splitlock guest` find split locks without it"
        )
    elif report.kernel.foreign:
        found.append(f"{report.kernel.foreign} answers in Linux's place: run `splitlock status` on its host, as root")
    elif not detects:
        found.append("whether this kernel can detect is not known: run `splitlock status` on it, as root")
    if report.scanned is None:
        found.append("modules were not scanned")
    if report.interrupted:
        found.append("the scan was interrupted: not all modules were looked into")
    if report.unscanned:
        found.append(f"{count(len(report.unscanned), 'module')} could not be looked into")
    return found


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
