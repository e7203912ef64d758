"""What comes of one split lock on a whole machine: who traps, who handles it, who dies?"""

from __future__ import annotations

from typing import Literal, NamedTuple

from splitlock.linux.detection import used
from splitlock.model.cpu import Access, Core, Processor, Trap, raises
from splitlock.model.guest import Guest, takes
from splitlock.model.hypervisor import TITLES, Kind, decide, guest_core, in_guest, kind_on
from splitlock.model.kernel import Answer, Linux, Locks, alignment_check, boot, bus_lock, core, guest_split_lock
from splitlock.report.simulate import Fate, Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.linux.detection import Armed

Victim = Literal["", "program", "host kernel", "guest program", "guest kernel", "virtual machine"]


class Host(NamedTuple):
    """A physical machine."""

    processor: Processor
    linux: Linux
    disabled: bool = False  #: a module turned split-lock detection off, for good

    @property
    def armed(self) -> Armed:
        """What is in effect."""
        found = boot(self.linux, self.processor)
        if not self.disabled:
            return found
        return found._replace(mode="off", trap=None if found.trap == "#AC" else found.trap)

    @property
    def core(self) -> Core:
        """Each core's switches."""
        return core(self.armed)

    @property
    def used(self) -> Processor:
        """Of what the processor can do, what the kernel uses."""
        return used(self.linux.kernel, self.processor)


class VM(NamedTuple):
    """A virtual machine: its hypervisors from the host up (more than one: nested), and its guest."""

    layers: tuple[Kind, ...]
    guest: Guest


class Result(NamedTuple):
    """What came of it."""

    fate: Fate
    victim: Victim
    steps: list[Step]
    raised: Trap | None = None  #: by the processor

    @property
    def executed(self) -> bool:
        """Did a split lock execute, and lock the bus?"""
        return self.fate in ("executed", "slowed") or self.raised == "#DB"

    @property
    def harmed(self) -> bool:
        """Did anybody die, or get stuck?"""
        return bool(self.victim)


def native(host: Host, access: Access, locks: Locks) -> Result:
    """A split lock of a program's, or of the host's kernel."""
    raised = raises(host.processor, host.core, access)
    steps = [_raised(raised, host.processor, host.core, access, "the host's")]
    if raised is None:
        return Result("executed", "", steps)
    if raised == "#AC":
        answer = alignment_check(host.linux, host.processor, access, locks)
    else:
        answer = bus_lock(host.linux, host.processor, locks)
    steps.append(_step("host kernel", answer))
    return Result(answer.fate, _victim(answer, "program" if access.user else "host kernel"), steps, raised)


def inside(host: Host, vm: VM, access: Access, locks: Locks) -> Result:
    """A split lock in a guest; `locks` names the host's task that runs the virtual CPU."""
    lowest = kind_on(vm.layers[0], host.linux)
    if access.emulated and lowest in ("kvm", "kvm-before"):
        return _emulated(host, lowest, locks)
    raised = in_guest(host.processor, host.core, lowest, host.linux, access)
    ran = guest_core(host.core, lowest, host.processor, host.linux)
    steps = [_raised(raised, host.processor, ran, access, "the guest's")]
    if raised is None:
        return Result("executed", "", steps)
    if raised == "#AC":
        shown = host.used
        for number, kind in enumerate((lowest, *vm.layers[1:])):
            top = number == len(vm.layers) - 1
            # a hypervisor that is itself a guest is shown no detection
            below = shown if number == 0 else shown._replace(split_locks=False)
            decision = decide(kind, below, access, vm.guest.shown and top)
            steps.append(Step(who=_name(kind, number), what=decision.what, source=decision.source))
            if decision.does == "emulate":
                return Result("emulated", "", steps, raised)
            if decision.does == "ask":
                answer = guest_split_lock(host.linux, host.processor, locks)
                steps.append(_step("host kernel", answer))
                return Result(answer.fate, _victim(answer, "virtual machine"), steps, raised)
    else:
        what = "runs the guest with the host's DEBUGCTL, and does not intercept #DB"
        steps.append(Step(who=_name(lowest, 0), what=what, source="svm.c before 6.14: commit 433265870ab3"))
    inner = locks._replace(comm="program", pid=1, reported=False)
    answer = takes(vm.guest, raised, access, inner, host.processor.amd)
    steps.append(_step("guest kernel", answer))
    return Result(answer.fate, _victim(answer, "guest program" if access.user else "guest kernel"), steps, raised)


def _emulated(host: Host, kind: Kind, locks: Locks) -> Result:
    """KVM's instruction emulator performs the access itself, in the host's kernel."""
    source = "x86.c: emulator_cmpxchg_emulated()"
    if kind == "kvm" and host.used.split_locks:
        what = "performs it as a plain write, so that the host does not trap"
        return Result("emulated", "", [Step(who="KVM's emulator", what=what, source=source)])
    step = Step(who="KVM's emulator", what="performs it as a locked access, in the host's kernel", source=source)
    found = native(host, Access("kernel"), locks)
    return Result(
        "emulated" if found.fate == "executed" else found.fate, found.victim, [step, *found.steps], found.raised
    )


def _raised(raised: Trap | None, processor: Processor, core: Core, access: Access, whose: str) -> Step:
    where = "real mode" if access.bits == 16 else f"CPL {3 if access.user else 0}"
    lock = f"a split lock at {where}, {access.bits}-bit"
    if raised == "#DB":
        return Step(
            who="processor", what=f"{lock}: executes, then #DB (DEBUGCTL bit 2)", source="SDM 3, Bus-Lock Detection"
        )
    if raised == "#AC":
        why = "TEST_CTRL bit 29" if processor.split_locks and core.test_ctrl else "CR0.AM and EFLAGS.AC"
        return Step(who="processor", what=f"{lock}: #AC, not executed ({why})", source="SDM 3, interrupt 17")
    what = f"{lock}: executes, and locks the bus for every core; {whose} kernel hears nothing of it"
    return Step(who="processor", what=what, source="SDM 3, Locked Atomic Operations")


def _step(who: str, answer: Answer) -> Step:
    return Step(
        who=who, what=answer.what, source=answer.source, log=answer.log if answer.lines else "",
        lines=answer.lines, milliseconds=answer.milliseconds, alone_milliseconds=answer.alone_ms,
    )  # fmt: skip


def _victim(answer: Answer, who: Victim) -> Victim:
    return "" if answer.fate in ("executed", "slowed") else who


def _name(kind: Kind, number: int) -> str:
    return TITLES[kind] + (f", level {number}" if number else "")
