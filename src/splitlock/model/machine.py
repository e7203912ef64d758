"""What comes of one split lock on a whole machine: who traps, who handles it, who dies?"""

from __future__ import annotations

from typing import Literal, NamedTuple

from splitlock.linux import hypervisors
from splitlock.linux.detection import used
from splitlock.linux.hypervisors import Case, Kind
from splitlock.linux.versions import FLAG_IN_EVERY_MODE, KVM_SWITCHES_DEBUGCTL
from splitlock.model.cpu import Access, Core, Processor, Trap, raises
from splitlock.model.guest import Guest, takes
from splitlock.model.hypervisor import TITLES, guest_core, in_guest
from splitlock.model.kernel import (
    Answer,
    Linux,
    Locks,
    alignment_check,
    boot,
    bus_lock,
    core,
    guest_split_lock,
    other_debug,
    throttled_ms,
)
from splitlock.report.simulate import Fate, Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.linux.detection import Armed

Victim = Literal["", "program", "host kernel", "guest program", "guest kernel", "virtual machine"]


class Host(NamedTuple):
    """A physical machine, as one of its CPUs is."""

    processor: Processor
    linux: Linux
    disabled: bool = False  #: a module turned split-lock detection off, for good
    lost: frozenset[Trap] = frozenset()  #: what this CPU does not detect any more, since it slept
    free: bool = False  #: the task that runs there has detection turned off for good (5.7 to 5.18, after its warning)

    @property
    def armed(self) -> Armed:
        """What is in effect."""
        found = boot(self.linux, self.processor)
        if not self.disabled:
            return found
        return found._replace(mode="off", trap=None if found.trap == "#AC" else found.trap)

    @property
    def core(self) -> Core:
        """Its switches."""
        on = core(self.armed)
        return Core(on.test_ctrl and "#AC" not in self.lost and not self.free, on.debugctl and "#DB" not in self.lost)

    @property
    def used(self) -> Processor:
        """Of what the processor can do, what the kernel uses."""
        return used(self.linux.kernel, self.processor)

    @property
    def flagged(self) -> bool:
        """Has its kernel set the flag split_lock_detect, by which KVM goes? Before 5.13 in warn and fatal only."""
        always = self.linux.knows(FLAG_IN_EVERY_MODE)
        return self.used.split_locks and (always or boot(self.linux, self.processor).mode != "off")


class VM(NamedTuple):
    """A virtual machine: its hypervisors from the host up (more than one: nested), and its guest."""

    layers: tuple[Kind, ...]
    guest: Guest
    cpus: int = 2
    bus_lock_ratelimit: int = 0  #: QEMU's, bus locks a second; 0: none


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


def single_step(host: Host, locks: Locks, *, first: bool) -> Result:
    """A debug exception of another kind in a program on the host. `first`: of this CPU since it came online."""
    step = Step(who="processor", what="a single step: #DB, and no bus lock", source="SDM 3, interrupt 1")
    answer = other_debug(host.linux, host.processor, locks, first=first)
    return Result(answer.fate, _victim(answer, "program"), [step, _step("host kernel", answer)])


def inside(host: Host, vm: VM, access: Access, locks: Locks) -> Result:
    """A split lock in a guest; `locks` names the host's task that runs the virtual CPU."""
    lowest = vm.layers[0]
    if access.emulated:
        return _emulated(host, lowest, locks)
    raised = in_guest(host.processor, host.core, lowest, host.linux, access)
    ran = guest_core(host.core, lowest, host.processor, host.linux)
    steps = [_raised(raised, host.processor, ran, access, "the guest's")]
    if raised == "#AC":
        found = _handled(host, vm, access, locks, steps)
        let_go_on = found.fate in ("executed", "slowed")  # by the host's kernel
        return _executes(vm, access, locks, steps, found.fate, raised) if let_go_on else found
    if raised == "#DB":
        what = "runs the guest with the host's DEBUGCTL, and does not intercept #DB"
        steps.append(
            Step(
                who=_name(lowest, 0),
                what=what,
                source=KVM_SWITCHES_DEBUGCTL.source,
            )
        )
        return _taken(host, vm, access, locks, steps, raised)
    return _executes(vm, access, locks, steps, "executed", raised)


def _handled(host: Host, vm: VM, access: Access, locks: Locks, steps: list[Step]) -> Result:
    """`#AC` goes up from hypervisor to hypervisor."""
    for number, kind in enumerate(vm.layers):
        top = number == len(vm.layers) - 1
        lowest = number == 0
        # a hypervisor that is itself a guest is shown no detection
        case = Case(
            split_locks=lowest and host.flagged, detecting=lowest and host.core.test_ctrl, amd=host.processor.amd,
            cpus=vm.cpus, asked=access.asked, prefixed=access.prefixed, own=vm.guest.own and top,
        )  # fmt: skip
        decision = hypervisors.alignment_check(kind, case)
        if lowest and not top:
            decision = hypervisors.goes_up(kind, host.linux.kernel, decision)
        steps.append(Step(who=_name(kind, number), what=decision.what, source=decision.source))
        if decision.does == "emulate":
            return Result("emulated", "", steps, "#AC")
        if decision.does == "ask":
            answer = guest_split_lock(host.linux, host.processor, locks)
            steps.append(_step("host kernel", answer))
            return Result(answer.fate, _victim(answer, "virtual machine"), steps, "#AC")
    return _taken(host, vm, access, locks, steps, "#AC")


def _taken(host: Host, vm: VM, access: Access, locks: Locks, steps: list[Step], raised: Trap) -> Result:
    """An exception has reached the guest's kernel."""
    inner = locks._replace(comm="program", pid=1, heard=None)
    answer = takes(vm.guest, raised, access, inner, host.processor.amd)
    steps.append(_step("guest kernel", answer))
    return Result(answer.fate, _victim(answer, "guest program" if access.user else "guest kernel"), steps, raised)


def _executes(vm: VM, access: Access, locks: Locks, steps: list[Step], fate: Fate, raised: Trap | None) -> Result:
    """The lock executes: KVM may leave to the VMM at it, and a guest that has `#DB` of its own takes it."""
    if vm.bus_lock_ratelimit:
        waited = throttled_ms(locks.number, vm.bus_lock_ratelimit, locks.every_ms)
        what = f"KVM leaves the guest at each bus lock; QEMU lets {vm.bus_lock_ratelimit:,} a second go on"
        source = "KVM_CAP_X86_BUS_LOCK_EXIT; QEMU: -machine bus-lock-ratelimit"
        steps.append(Step(who="QEMU", what=what, source=source, milliseconds=waited))
        fate = "slowed" if waited else fate
    own = core(boot(vm.guest.linux, vm.guest.processor)) if vm.guest.linux else Core()
    if not own.debugctl or not access.user:
        return Result(fate, "", steps, raised)
    what = "the guest has its own DEBUGCTL, with bit 2 set: #DB, after the lock"
    steps.append(Step(who="processor", what=what, source="SDM 3, Bus-Lock Detection"))
    assert vm.guest.linux is not None
    inner = locks._replace(comm="program", pid=1, heard=None)
    answer = bus_lock(vm.guest.linux, vm.guest.processor, inner)
    steps.append(_step("guest kernel", answer))
    worst = fate if answer.fate == "executed" else answer.fate
    return Result(worst, _victim(answer, "guest program"), steps, raised)


def _emulated(host: Host, kind: Kind, locks: Locks) -> Result:
    """KVM's instruction emulator performs the access itself, in the host's kernel."""
    source = "x86.c: emulator_cmpxchg_emulated()"
    if hypervisors.writes_plainly(kind, host.flagged):
        what = "performs it as a plain write, so that the host does not trap"
        return Result("emulated", "", [Step(who="KVM's emulator", what=what, source=source)])
    step = Step(who="KVM's emulator", what="performs it as a locked access, in the host's kernel", source=source)
    found = native(host, Access("kernel"), locks)
    return found._replace(steps=[step, *found.steps])


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
        who=who, what=answer.what, source=answer.source, log=answer.log if answer.lines else "", lines=answer.lines,
        held_back=answer.held_back, milliseconds=answer.milliseconds, alone_milliseconds=answer.alone_ms,
    )  # fmt: skip


def _victim(answer: Answer, who: Victim) -> Victim:
    return "" if answer.fate in ("executed", "slowed") else who


def _name(kind: Kind, number: int) -> str:
    return TITLES[kind] + (f", level {number}" if number else "")
