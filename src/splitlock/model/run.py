"""What happens in a scenario, step by step?"""

from __future__ import annotations

from collections.abc import Callable

from splitlock.linux.detection import LIMITS_NOTHING
from splitlock.linux.hypervisors import UNRELEASED
from splitlock.linux.often import Heard
from splitlock.linux.versions import AMD_BUS_LOCKS, MISERY, MITIGATE
from splitlock.model.cpu import SPLIT_NS, Trap
from splitlock.model.kernel import Locks, asked, boot
from splitlock.model.loader import NONE, Module, admit, read
from splitlock.model.machine import Host, Result, inside, native, single_step
from splitlock.model.scenario import Event, Scenario, Virtual, host, virtual
from splitlock.report.simulate import SCHEMA, Report, Step
from splitlock.report.simulate import Event as Told

Finder = Callable[[str], bytes]  #: the contents of the module or file of that name

_RESTORE = "arch/x86/power/cpu.c: __restore_processor_state()"
_ONLINE = "identify_secondary_cpu()"


def run(scenario: Scenario, path: str, find: Finder) -> Report:
    """All of its events. Raises SplitlockError where a module cannot be had."""
    return Report(
        schema=SCHEMA, scenario=path, title=scenario.title, tells=scenario.tells, host=_described(scenario),
        events=_Run(scenario, find).events(),
    )  # fmt: skip


def _described(scenario: Scenario) -> str:
    given = scenario.host
    detection = " and ".join(given.detects) or "no detection"
    unreleased = any(kind in UNRELEASED for machine in scenario.vm for kind in machine.layers)
    release = f"Linux {given.linux}" + (" as it was in April 2020, never released" if unreleased else "")
    mode = f"split_lock_detect={given.mode}"
    return f"{given.vendor} processor with {detection}, {release}, {mode}, policy {given.policy}"


class _Run:
    """The machine as it goes on."""

    def __init__(self, scenario: Scenario, find: Finder) -> None:
        self.scenario, self.find = scenario, find
        self.host = host(scenario.host)
        self.loaded: dict[str, bool] = {}
        self.heard = Heard()  #: what the host's kernel has said since it booted
        self.free: set[int] = set()  #: tasks that have detection turned off for good
        self.stepped: set[str] = set()  #: CPUs that had a #DB since they came online
        self.lost: dict[str, frozenset[Trap]] = {}  #: by CPU: what it does not detect any more
        self.down = False

    def events(self) -> list[Told]:
        """One after the other; the boot is the first."""
        told = [self._boot()]
        for event in self.scenario.event:
            told.append(self._event(event))
            self.down |= any(step.who == "host kernel" for step in told[-1].steps) and told[-1].fate == "panic"
        return told

    def _event(self, event: Event) -> Told:
        if self.down:
            step = Step(who="host", what="is down: its kernel has panicked", source="the event before")
            return _told("on the host, which is down", Result("not-started", "", [step]))
        if event.load is not None:
            return self._load(event, event.load)
        if event.unload is not None:
            return self._unload(event.unload)
        if event.resume is not None:
            return self._resume(event.resume)
        if event.online is not None:
            return self._online(event.online)
        return self._step(event) if event.step is not None else self._lock(event)

    def _boot(self) -> Told:
        linux = self.host.linux
        armed = boot(linux, self.host.processor)
        what = f"boots; mode in effect: {armed.mode}"
        if armed.mode == "off" and armed.line and asked(linux).mode != "off":
            what += f". What it says is not so: before {AMD_BUS_LOCKS.first} it switches nothing on but Intel's"
        elif armed.mode == "off" and not (self.host.used.split_locks or self.host.used.bus_locks):
            what += ": it has nothing to detect with"
        elif armed.ignored:
            what += f": {asked(linux).ignored}"
        elif armed.trap is None and armed.mode != "off":
            what += f", which {LIMITS_NOTHING}"
        if not linux.mitigate and not linux.knows(MITIGATE):
            what += "; it has no kernel.split_lock_mitigate"
        step = Step(
            who="host kernel", what=what, source="sld_state_setup()", log=armed.line, lines=int(bool(armed.line))
        )
        return _told("the host boots", Result("executed", "", [step]))

    def _load(self, event: Event, name: str) -> Told:
        steps = []
        policy = self.scenario.host.policy
        module = read(name, self.find(name), policy)
        if policy != NONE:
            kinds = sorted({found.kind for found in module.scan.findings if found.evidence == "instruction"})
            what = f"{name}: {', '.join(kinds) or 'no privileged instruction'}; intree: {_has(module, 'intree')}, "
            what += f"sld_safe: {_has(module, 'sld_safe')}"
            steps.append(Step(who="scanner", what=what, source="splitlock scan"))
        found = admit(module, policy, self.host.core.test_ctrl)
        steps.append(
            Step(who="module loader", what=f"{found.outcome}: {found.reason}", source=found.source, log=found.log,
                 lines=int(bool(found.log)))
        )  # fmt: skip
        self.loaded[name] = found.outcome != "refused"
        if found.outcome == "disables":
            self.host = self.host._replace(disabled=True)
            steps.append(Step(who="host kernel", what="clears TEST_CTRL bit 29 on every CPU, for good",
                              source="LWN 816918: disable"))  # fmt: skip
        for file in event.loads if self.loaded[name] else []:
            inner = read(file, self.find(file), policy)
            kinds = sorted({f.kind for f in inner.scan.findings if f.kind.startswith("VM")})
            what = f"brings {file} into the kernel, which no loader sees; in it: {', '.join(kinds)}"
            steps.append(Step(who=name, what=what, source="LWN 816918: VirtualBox"))
        return _told(f"load {name}", Result(found.outcome, "", steps))

    def _unload(self, name: str) -> Told:
        """No release does anything about detection here, and the patch of 2020 turned it off for good."""
        if not self.loaded.get(name):
            step = Step(who="module loader", what=f"{name} is not loaded", source="the scenario")
            return _told(f"unload {name}", Result("not-started", "", [step]))
        self.loaded[name] = False
        what = "detection stays as it is: no Linux asks for it when a module leaves"
        if self.host.disabled:
            what = "detection stays off: it was turned off for good, and nothing turns it on again but a reboot"
        step = Step(who="host kernel", what=what, source="kernel/module/main.c: free_module()")
        return _told(f"unload {name}", Result("unloaded", "", [step]))

    def _resume(self, kind: str) -> Told:
        """What is set anew on the CPU that the machine booted on, and on the others: docs/linux.md, "Later"."""
        title = f"the machine wakes from {'hibernation' if kind == 'disk' else f'suspend to {kind}'}"
        if kind == "idle":
            what = "every CPU was on all the time: its MSRs are as they were"
            return _told(title, Result("resumed", "", [Step(who="host kernel", what=what, source="cpuidle")]))
        steps = []
        if kind == "disk":
            what = "the boot CPU is as the kernel set it that loaded the image, at its boot: taken to be the same"
            steps.append(Step(who="host kernel", what=what, source=_RESTORE))
        else:
            what = (
                "does not set the boot CPU's TEST_CTRL and DEBUGCTL: they are as the firmware left them, as a rule off"
            )
            steps.append(Step(who="host kernel", what=what, source=_RESTORE))
            self.lost["boot"] = frozenset(("#AC", "#DB"))
        what = "takes the other CPUs online, and sets detection on each by its mode"
        steps.append(Step(who="host kernel", what=what, source=_ONLINE))
        self.stepped -= {"sibling", "other"}
        if self.scenario.host.threads == 2 and self.host.processor.split_locks:
            steps.append(self._sibling_sets())
        return _told(title, Result("resumed", "", steps))

    def _sibling_sets(self) -> Step:
        """TEST_CTRL is the core's, DEBUGCTL each thread's."""
        if "boot" in self.lost:
            self.lost["boot"] -= {"#AC"}
        what = "one of them shares the boot CPU's core, and TEST_CTRL with it: #AC is there as on the others"
        return Step(who="processor", what=what, source="SDM 4, MSR 0x33; sld_update_msr()")

    def _online(self, cpu: str) -> Told:
        steps = [Step(who="host kernel", what="sets detection on this CPU anew, by its mode", source=_ONLINE)]
        self.stepped -= {cpu}
        if cpu == "sibling" and self.host.processor.split_locks:
            steps.append(self._sibling_sets())
        which = "the boot CPU's sibling" if cpu == "sibling" else "another CPU"
        return _told(f"{which} goes offline and comes online again", Result("online", "", steps))

    def _step(self, event: Event) -> Told:
        first = event.cpu not in self.stepped
        self.stepped.add(event.cpu)
        found = single_step(self._here(event, event.pid), Locks(1, 0.0, event.comm, event.pid, int(event.address, 16),
                            self.heard), first=first)  # fmt: skip
        return _told(f"a debugger steps a program on the host, {_on(event)}", found)

    def _here(self, event: Event, pid: int) -> Host:
        """The host, as the CPU and the task are that the event is about."""
        return self.host._replace(lost=self.lost.get(event.cpu, frozenset()), free=pid in self.free)

    def _lock(self, event: Event) -> Told:
        machine = next((one for one in self.scenario.vm if one.name == event.lock), None)
        pid = machine.pid if machine else event.pid
        here = self._here(event, pid)
        locks = Locks(
            event.number, event.every_ms, machine.comm if machine else event.comm, pid, int(event.address, 16),
            self.heard,
        )  # fmt: skip
        if machine is None:
            found = native(here, event.access, locks)
        elif machine.module is not None and not self.loaded.get(machine.module):
            what = f"{machine.module} is not loaded: the virtual machine does not run"
            found = Result("not-started", "", [Step(who="hypervisor", what=what, source="the scenario")])
        else:
            found = inside(here, virtual(machine), event.access, locks)
        self._remember(found, pid)
        locked = event.number if found.fate in ("executed", "slowed") else int(found.executed)
        return _told(_title(event, machine), found, round(locked * SPLIT_NS, 1))

    def _remember(self, found: Result, pid: int) -> None:
        """What the host's kernel knows from now on."""
        for step in found.steps:
            if step.who != "host kernel":
                continue
            if step.source == "split_lock_warn()" and not self.host.linux.knows(MISERY):
                self.free.add(pid)
        if found.victim in ("virtual machine", "program", "host kernel"):  # an oops ends the task that runs
            self.heard.ended(pid)
            self.free.discard(pid)


def _told(title: str, found: Result, locked: float = 0) -> Told:
    return Told(event=title, fate=found.fate, victim=found.victim, bus_locked_nanoseconds=locked, steps=found.steps)


def _on(event: Event) -> str:
    return {"boot": "on the boot CPU", "sibling": "on its sibling", "other": "on another CPU"}[event.cpu]


def _title(event: Event, machine: Virtual | None) -> str:
    whose = "on the host" if machine is None else f"in {machine.name}"
    times = "a split lock" if event.number == 1 else f"{event.number:,} split locks"
    what = [event.where, f"{event.bits}-bit"]
    if event.asks:
        what.insert(0, "asks for #AC")
    if event.emulated:
        what.append("by KVM's emulator")
    if event.prefixed:
        what.append("a prefix before LOCK")
    if event.cpu != "other":
        what.append(_on(event))
    return f"{times} {whose}: {', '.join(what)}"


def _has(module: Module, key: str) -> str:
    return "yes" if key in module.scan.modinfo else "no"
