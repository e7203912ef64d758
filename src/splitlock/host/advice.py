"""What would each mode do on this machine, and what is to be looked at before one is chosen?

The rules are those of the kernel (Documentation/arch/x86/buslock.rst, arch/x86/kernel/cpu/intel.c) and of KVM's answer
to a guest's `#AC` (arch/x86/kvm/vmx/vmx.c, handle_exception_nmi), applied to what the report found.
"""

from __future__ import annotations

from splitlock.host.processor import usable
from splitlock.linux import versions
from splitlock.linux.versions import MISERY, RATELIMIT, SPLIT_LOCKS
from splitlock.report.lines import count
from splitlock.report.status import Advice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.report.status import Module, Report

MODES = ("off", "warn", "fatal", "ratelimit:N")


def modes(report: Report) -> list[Advice]:
    """What each mode would do here."""
    now = report.kernel.mode
    return [Advice(mode=mode, now=mode.partition(":")[0] == now, effect=_effect(mode, report)) for mode in MODES]


def _effect(mode: str, report: Report) -> str:
    release = report.kernel.release
    known = versions.release(release or "")
    since = known.series if known else None
    split, bus = usable(report.processor, since)
    if mode == "off":
        return "Nothing is detected: a split lock stalls all cores, and nobody is told."
    if since and since < SPLIT_LOCKS.since:
        return f"No effect: Linux {release} has no split-lock detection."
    if split == bus == "no":
        return "No effect: the processor has neither #AC nor #DB that the kernel could use."
    if mode == "ratelimit:N" and since and since < RATELIMIT.since:
        return f"Linux {release} does not know it, and takes its default, warn."
    unsure = "" if "yes" in (split, bus) else "If the processor can detect (it is not known): "
    who = _takers(report)
    if mode == "ratelimit:N":
        if bus == "no":
            return "No effect: only #DB can limit the rate, and the processor has none."
        unsure = "" if bus == "yes" else "If the processor has #DB (it is not known): "
        return (
            f"{unsure}At most N bus locks a second on the whole machine; tasks above it sleep in steps of 20 ms.{who}"
        )
    if split == "no":  # bus locks alone
        what = {
            "warn": "A log line for bus locks (rate limited); programs go on at their pace.",
            "fatal": "SIGBUS for each program that takes a bus lock; the lock has then happened.",
        }[mode]
        return f"{unsure}{what}{who}"
    misery = "slows it: 10 ms of sleep, then one such task at a time"
    if since and since < MISERY.since:
        misery = f"does not slow it (Linux {release})"
    if report.kernel.mitigate == 0:
        misery = "does not slow it (kernel.split_lock_mitigate=0)"
    what = {
        "warn": f"A log line for a program's first split lock; the kernel {misery}. In the kernel itself: oops.",
        "fatal": "SIGBUS for each program that takes a split lock. In the kernel itself: oops.",
    }[mode]
    return f"{unsure}{what}{who}{_guests(mode, report)}"


def _takers(report: Report) -> str:
    names = sorted({task.comm for task in report.log.tasks if task.exception})
    if not names:
        return ""
    return f" It would be felt by {', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}."


def _guests(mode: str, report: Report) -> str:
    kvm = any(module.aware and module.loaded != "no" for module in report.modules)
    said = ""
    if kvm or any(vmm.name == "QEMU" for vmm in report.vmms):
        said += {
            "warn": " KVM's guests are slowed as programs are.",
            "fatal": " KVM ends a guest (SIGBUS for its VMM) whose code takes a split lock and did not ask for #AC.",
        }[mode]
    if blind := _blind(report.modules):
        said += f" {', '.join(blind)}: may pass #AC on to guests that do not know it, which panic or kill programs."
    return said


def _blind(modules: list[Module]) -> list[str]:
    """Hypervisors that do not import KVM's answer and are loaded, or may be."""
    vmx = {
        "VMXON",
        "VMLAUNCH",
        "VMRESUME",
        "VMPTRLD",
        "FOREIGN-CODE",
    }  # #AC for split locks is Intel's: AMD's SVM has none
    found = {m.name for m in modules if not m.aware and m.loaded != "no" and (vmx & set(m.evidence) or not m.path)}
    return sorted(name for name in found if name not in ("kvm_amd", "kvm"))


def checks(report: Report) -> list[str]:
    """What to look at first, the gravest first."""
    found = []
    cpu = report.processor
    detects = "yes" in (cpu.split_lock.supported, cpu.bus_lock.supported)
    blind = _blind(report.modules)
    if blind:
        found.append(
            f"{', '.join(blind)}: not known to handle #AC of guests. Run `splitlock probe` in one, or keep it out with "
            "`splitlock guard`"
        )
    installed = sorted({m.name for m in report.modules if not m.aware and m.loaded == "no" and m.verdict == "refuse"})
    if installed:
        found.append(
            f"installed, not loaded, and refused by the policy `refuse`: {', '.join(installed)} (splitlock scan)"
        )
    guests = [vmm for vmm in report.vmms if detects]
    if guests:
        names = ", ".join(vmm.vm or f"{vmm.name} {vmm.pid}" for vmm in guests[:4])
        found.append(
            f"{count(len(guests), 'virtual machine')} running ({names}): try their images with `splitlock guest --sld`"
        )
    for task in report.log.tasks[:3]:
        tool = "splitlock guest" if task.guest else "splitlock run"
        found.append(
            f"{task.comm} takes them ({count(task.lines, 'line')}): which code, says `splitlock watch`, or `{tool}`"
        )
    if report.log.source is None:
        found.append(f"the kernel's log: {report.log.why}")
    elif report.log.lost or report.log.suppressed:
        found.append("the log is not whole: more programs than those named may take split locks")
    if report.kernel.mode == "warn" and report.log.source and not report.log.tasks and detects:
        found.append("nothing was logged since boot: run what matters here, then look again before you choose fatal")
    if not detects and cpu.hypervisor:
        found.append(
            f"this is a guest of {cpu.hypervisor}: what comes of its split locks is its host's to say (splitlock probe)"
        )
    if cpu.split_lock.supported == cpu.bus_lock.supported == "no":
        found.append("the processor detects nothing: `splitlock run` and `splitlock guest` find split locks without it")
    elif not detects:
        found.append("whether the processor can detect is not known: run this on it, as root")
    if report.scanned is None:
        found.append("modules were not scanned")
    if report.interrupted:
        found.append("the scan was interrupted: not all modules were looked into")
    if report.unscanned:
        found.append(f"{count(len(report.unscanned), 'module')} could not be looked into")
    return found
