"""How is a judgement said in plain English? One sentence for each effect; nothing is decided here."""

from __future__ import annotations

from splitlock.linux import versions
from splitlock.linux.delays import SLEEP_MS, STEP_MS
from splitlock.linux.detection import AMD, LIMITS_NOTHING, false_bus_locks
from splitlock.linux.versions import has
from splitlock.report.status import KERNEL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

    from splitlock.linux import detection
    from splitlock.linux.detection import Trap
    from splitlock.linux.parameter import Mode
    from splitlock.report.judgement import Fate, Hypervisor, Verdict, Who
    from splitlock.report.status import Log, Report

_FATES: dict[Fate, str] = {
    "nothing": "nothing is detected", "goes-on": "it goes on", "slowed": "it is slowed", "limited": "it has to wait",
    "killed": "it is killed", "oops": "the kernel oopses", "stuck": "it is stuck", "not-known": "not known",
}  # fmt: skip


def programs(log: Log, exception: str = "") -> list[str]:
    """The programs that a log names; `exception`: for this one alone."""
    found = {t.comm for t in log.tasks if not t.guest and t.comm != KERNEL and exception in t.exception}
    return sorted(found)


#: Of mode fatal where nothing is armed, and the kernel takes another #DB for a bus lock.
FALSE_SIGBUS = (
    "yet the first #DB of any kind on a core (a debugger's single step, say) may be taken for a bus lock, and kill its "
    "program (SIGBUS)"
)


def false_traps(status: Report) -> bool:
    """May this kernel take another #DB for a bus lock though it detects none? docs/linux.md, "False lines"."""
    cpu, release = status.processor, versions.release(status.kernel.release or "")
    if status.kernel.foreign or release is None or cpu.bus_lock.supported != "yes":
        return False
    if cpu.split_lock.used.why == cpu.bus_lock.used.why:  # built without it: there is no handle_bus_lock()
        return False
    return false_bus_locks(release) != "no"


def mode(mode: Mode, verdict: Verdict, status: Report, *, certain: bool) -> str:
    """A whole mode in a sentence. `certain`: what it does to a program is known."""
    split, bus = status.processor.split_lock.used.known, status.processor.bus_lock.used.known
    if status.kernel.foreign:
        return f"is not to be set here: {status.kernel.foreign} answers in Linux's place, and its host's mode holds"
    if status.log.stuck:
        return "programs are stuck here in every mode: the host's #AC comes straight into this guest"
    if mode == "off":
        return "detects nothing: any program can stall the whole machine, and nobody is told"
    if split == bus == "no":
        may = f"; {FALSE_SIGBUS}" if mode == "fatal" and false_traps(status) else ""
        return f"has no effect here: this kernel has nothing to detect with{may}"
    if mode == "ratelimit" and bus == "no" and verdict == "nothing":
        return LIMITS_NOTHING
    said: dict[Verdict, str] = {
        "nothing": "detects nothing here", "logs": "names programs in the log, and lets them go on",
        "slows": "names programs in the log, and makes them wait", "breaks": "breaks what is named below",
        "not-known": "what it does here is not known in full",
    }  # fmt: skip
    return said[verdict] if certain else said["not-known"]


def effect(
    who: Who, fate: Fate, traps: Collection[Trap | None], made: detection.Effect | None, status: Report,
    possible: list[Fate],
) -> str:  # fmt: skip
    """Of a program, or of the kernel itself."""
    subject = "a program" if who == "program" else "the kernel itself"
    by_fault = "#AC" in traps
    if fate == "not-known":
        either = " or ".join(dict.fromkeys(_FATES[one] for one in possible))
        return f"{subject}: not known: {either}, by what this processor and kernel can do"
    if fate == "stuck":
        return f"{subject}: traps for ever at its first split lock, and does not get on; the log shows one"
    if fate == "nothing":
        return f"{subject}: goes on; nothing is detected"
    if fate == "oops":
        return (
            f"{subject}: crashes (an oops) at a split lock of its own, which is a bug in that code; often the machine "
            "hangs"
        )
    if fate == "killed":
        when = "before its first split lock" if by_fault else "after its first bus lock, and without a word in the log"
        return f"{subject}: is killed (SIGBUS) {when}"
    if fate == "limited":
        return (
            f"{subject}: waits, in steps of {STEP_MS} ms, when the whole machine has taken N bus locks within a second"
        )
    if fate == "slowed":
        return (
            f"{subject}: a log line for its first split lock; each that traps costs it {SLEEP_MS} ms of sleep, and a "
            "wait while another program's turn lasts"
        )
    return f"{subject}: {_goes_on(by_fault, made, status)}"


def _goes_on(by_fault: bool, made: detection.Effect | None, status: Report) -> str:
    if not by_fault:
        return "a log line for each bus lock, as far as the kernel's rate limit lets it; goes on at its pace"
    why = " (kernel.split_lock_mitigate=0)" if made and made.alone_jiffies == 0 and status.kernel.mitigate == 0 else ""
    return f"a log line for its first split lock; goes on at its pace{why}"


def guest(one: Hypervisor, fate: Fate, mode: Mode, possible: list[Fate]) -> str:
    """Of a guest."""
    subject = f"a guest in {one.name}"
    if fate == "nothing":
        return f"{subject}: goes on; the host does not trap it"
    if fate == "goes-on" and one.kind == "virtualbox":
        return f"{subject}: goes on; its hypervisor executes the instruction without the lock"
    if fate == "goes-on":
        return f"{subject}: a log line for each virtual processor; goes on at its pace"
    if fate == "slowed":
        return f"{subject}: waits as a program does, {SLEEP_MS} ms or more for each that traps"
    if fate == "killed" and mode == "fatal" and one.kind == "kvm":
        return f"{subject}: the whole virtual machine is killed (SIGBUS to the program that runs it)"
    if fate == "killed":
        return f"{subject}: gets a #DB that it did not ask for: its programs or its kernel die"
    if len(possible) > 1:
        either = " or ".join(dict.fromkeys(_FATES[one] for one in possible))
        return f"{subject}: not known: {either}, by what this processor and kernel can do"
    return f"{subject}: not known: {one.why}"


def remedies(status: Report) -> list[str]:
    """What helps with what was logged here, and what does not."""
    said = []
    bus, split = status.processor.bus_lock.used.known, status.processor.split_lock.used.known
    waiting = programs(status.log, "#AC")
    guests = any(task.guest for task in status.log.tasks)
    release = versions.release(status.kernel.release or "")
    if status.log.stuck:
        said.append(
            "on the host of this virtual machine: split_lock_detect=off or ratelimit:N, which turn #AC off; in a TDX "
            f"guest nothing else helps before the bus-lock exits of Linux {versions.TDX_BUS_LOCK_EXIT.first}"
        )
    if status.kernel.mode == "ratelimit" and split == "yes" and bus == "no":
        said.append(f"split_lock_detect={status.kernel.parameter or 'ratelimit:N'} {LIMITS_NOTHING}")
    if split == bus == "no" and status.kernel.parameter == "fatal" and false_traps(status):
        said.append(f"take split_lock_detect=fatal off: it detects nothing here, {FALSE_SIGBUS}")
    if split == "yes" and (waiting or guests) and status.kernel.mode == "warn":
        who = ", ".join([*waiting[:4], *(["the virtual machines"] if guests else [])])
        if status.kernel.mitigate:
            said.append(
                f"{who} wait at each trap: kernel.split_lock_mitigate=0 in /etc/sysctl.d takes the delay away and "
                "keeps the log line; it does not help VirtualBox's KVM backend"
            )
        elif release and status.kernel.mitigate is None and has(versions.MISERY, release) == "yes":
            first = versions.MITIGATE.first
            said.append(
                f"{who} wait at each trap; a kernel from {first} on has kernel.split_lock_mitigate=0 against it"
            )
    if any(task.exception == "#DB" for task in status.log.tasks):
        said.append(
            "kernel.split_lock_mitigate changes nothing about #DB: the program is not slowed by the kernel but by its "
            "locks. `splitlock run` names them; report them to its maker"
        )
    vmms = status.vmms or []
    if bus == "yes" and any(vmm.name == "QEMU" for vmm in vmms):
        change = versions.KVM_AMD_BUS_LOCK_EXIT if status.processor.vendor in AMD else versions.KVM_BUS_LOCK_EXIT
        if release and has(change, release) != "no":
            said.append("one virtual machine alone: QEMU's -machine bus-lock-ratelimit=N limits its bus locks")
    return said
