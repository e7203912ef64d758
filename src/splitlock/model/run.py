"""What happens in a scenario, step by step?"""

from __future__ import annotations

from collections.abc import Callable

from splitlock.model.cpu import SPLIT_NS, Access
from splitlock.model.guest import Guest
from splitlock.model.kernel import Locks, boot
from splitlock.model.loader import NONE, Module, admit, read
from splitlock.model.machine import VM, Host, Result, inside, native
from splitlock.model.scenario import Event, Scenario, Virtual, linux, processor
from splitlock.report.simulate import SCHEMA, Report, Step
from splitlock.report.simulate import Event as Told

Finder = Callable[[str], bytes]  #: the contents of the module or file of that name


def run(scenario: Scenario, path: str, find: Finder) -> Report:
    """All of its events. Raises SplitlockError where a module cannot be had."""
    return Report(
        schema=SCHEMA, scenario=path, title=scenario.title, tells=scenario.tells, host=_described(scenario),
        events=_Run(scenario, find).events(),
    )  # fmt: skip


def _described(scenario: Scenario) -> str:
    host = scenario.host
    detection = " and ".join(host.processor) or "no detection"
    return f"{host.vendor} processor with {detection}, Linux {host.linux}, {host.mode}, policy {host.policy}"


class _Run:
    """The machine as it goes on."""

    def __init__(self, scenario: Scenario, find: Finder) -> None:
        given = scenario.host
        self.scenario, self.find = scenario, find
        self.host = Host(
            processor(given, "host.processor"), linux(given.linux, given.mode, "host", given.mitigate, given.hz)
        )
        self.loaded: dict[str, bool] = {}
        self.reported: set[int] = set()

    def events(self) -> list[Told]:
        """One after the other; the boot is the first."""
        armed = boot(self.host.linux, self.host.processor)
        step = Step(
            who="host kernel", what=f"boots; mode in effect: {armed.mode}", source="sld_state_setup()",
            log=armed.line, lines=int(bool(armed.line)),
        )  # fmt: skip
        told = [Told(event="the host boots", fate="executed", victim="", bus_locked_nanoseconds=0, steps=[step])]
        for event in self.scenario.event:
            told.append(self._load(event, event.load) if event.load is not None else self._lock(event))
        return told

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
        return Told(event=f"load {name}", fate=found.outcome, victim="", bus_locked_nanoseconds=0, steps=steps)

    def _lock(self, event: Event) -> Told:
        access = Access(event.where, event.asks, True, event.bits, event.emulated)
        machine = next((one for one in self.scenario.vm if one.name == event.lock), None)
        pid = machine.pid if machine else event.pid
        locks = Locks(
            event.number, event.every_ms, machine.comm if machine else event.comm, pid, int(event.address, 16),
            pid in self.reported,
        )  # fmt: skip
        if machine is None:
            found = native(self.host, access, locks)
        elif machine.module is not None and not self.loaded.get(machine.module):
            what = f"{machine.module} is not loaded: the virtual machine does not start"
            found = Result("not-started", "", [Step(who="hypervisor", what=what, source="the scenario")])
        else:
            found = inside(self.host, _virtual(machine), access, locks)
        if any(step.who == "host kernel" and "#AC: " in step.log for step in found.steps):
            self.reported.add(pid)
        locked = event.number if found.fate in ("executed", "slowed") else int(found.executed)
        whose = "on the host" if machine is None else f"in {machine.name}"
        times = "a split lock" if event.number == 1 else f"{event.number:,} split locks"
        return Told(
            event=f"{times} {whose}: {'asks for #AC, ' if event.asks else ''}{event.where}, {event.bits}-bit",
            fate=found.fate, victim=found.victim, bus_locked_nanoseconds=round(locked * SPLIT_NS, 1), steps=found.steps,
        )  # fmt: skip


def _virtual(machine: Virtual) -> VM:
    layers = machine.hypervisor if isinstance(machine.hypervisor, list) else [machine.hypervisor]
    inner = linux(machine.linux, machine.mode, f"vm {machine.name!r}") if machine.linux is not None else None
    return VM(tuple(layers), Guest(inner, machine.shown))


def _has(module: Module, key: str) -> str:
    return "yes" if key in module.scan.modinfo else "no"
