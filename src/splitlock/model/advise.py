"""Which modes are safe on a real machine, and what breaks in the others? The model, fed with what was found there."""

from __future__ import annotations

from splitlock.linux.parameter import MODES
from splitlock.model.cpu import Access, Processor
from splitlock.model.guest import Guest as Unwatched
from splitlock.model.hypervisor import TITLES, kind_on
from splitlock.model.kernel import Linux, Locks
from splitlock.model.machine import VM, Result, inside, native
from splitlock.model.machine import Host as Modelled
from splitlock.model.scenario import linux
from splitlock.report.advise import SCHEMA, Guest, Host, Hypervisor, Kind, Mode, Reason, Report, Verdict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.report.guest import Report as Watched
    from splitlock.report.status import Module
    from splitlock.report.status import Report as Status

_GRAVITY: dict[Verdict, int] = {"safe": 0, "slows": 1, "breaks": 2}
_RECENT = "6.12"  # what a kernel that nobody knows is taken for
_RATE = 100  # bus locks a second, where ratelimit is tried
_ENTERS = {"VMLAUNCH", "VMRESUME", "VMXON"}
_DIES = {"sigbus": "is killed", "oops": "oopses", "panic": "panics", "livelock": "is stuck for ever"}
#: Any guest may be run, as long as nobody says which. Who asks for alignment checks gets them on every processor.
_ANY = [Unwatched(Linux.of("6.1")), Unwatched(Linux.of("4.19")), Unwatched(None)]
_ACCESSES = [Access(), Access("kernel"), Access("kernel", bits=16)]


def host(status: Status, source: str) -> Host:
    """What advice needs of `splitlock status`. In a guest Linux leaves `#AC` alone: intel.c, split_lock_setup()."""
    return Host(
        source=source,
        split_locks="no" if status.processor.hypervisor else status.processor.split_lock.supported,
        bus_locks=status.processor.bus_lock.supported,
        amd=status.processor.vendor in ("AuthenticAMD", "HygonGenuine"),
        linux=status.kernel.release,
        mode=status.kernel.mode,
        mitigate=status.kernel.mitigate != 0,
        inside=status.processor.hypervisor,
    )


def hypervisors(modules: list[Module], machine: Host) -> list[Hypervisor]:
    """Those among modules that run guests on such a processor, and how each treats a guest's `#AC`."""
    found = []
    for module in modules:
        evidence = set(module.evidence)
        kind: Kind
        if machine.amd and "VMRUN" in evidence and module.intree:
            kind, why = "kvm", "the kernel's own, for AMD"
        elif machine.amd and "VMRUN" in evidence:
            kind, why = "unmarked", "has VMRUN, and is not the kernel's"
        elif not machine.amd and evidence & _ENTERS and module.aware:
            kind, why = "kvm", "imports handle_guest_split_lock: it asks the host"
        elif not machine.amd and evidence & _ENTERS and module.intree:
            kind, why = "kvm-before", "the kernel's own, without handle_guest_split_lock: forwards #AC"
        elif not machine.amd and evidence & _ENTERS:
            kind, why = "unmarked", "does not import handle_guest_split_lock: taken to forward #AC"
        elif module.path is None and module.name == ("kvm_amd" if machine.amd else "kvm_intel"):
            kind, why = "kvm", "by its name: its file was not seen"
        elif module.path is None and not module.name.startswith("kvm"):
            kind, why = "unmarked", "by its name: its file was not seen; taken to forward #AC"
        elif "FOREIGN-CODE" in evidence and module.verdict == "refuse":
            kind, why = "virtualbox", "can bring a hypervisor that no module loader sees"
        else:
            continue
        kind = "kvm-before" if kind_on(kind, linux(machine.linux or _RECENT, "warn", "linux")) == "kvm-before" else kind
        refused = module.verdict == "refuse"
        found.append(
            Hypervisor(name=module.name, path=module.path, kind=kind, loaded=module.loaded, why=why, refused=refused)
        )
    return found


def guest(path: str, watched: Watched) -> Guest:
    """What advice needs of a guest report. Firmware counts: the host detects before the guest has a kernel."""
    takers = []
    for site in watched.sites:
        if site.hits or site.traps:
            who = site.comm if site.where == "user" else site.image
            takers.append(f"{site.where} {who}" if who else site.where)
    return Guest(path=path, hits=watched.hits, takers=list(dict.fromkeys(takers)), unwatched=watched.unwatched)


def advise(machine: Host, found: list[Hypervisor], watched: list[Guest], *, interrupted: bool = False) -> Report:
    """The report. Where nobody knows whether the processor detects, it is taken to.

    `interrupted`: there may be hypervisors that are not among those found.
    """
    modes = [_mode(name, machine, found, watched) for name in MODES]
    detects = machine.split_locks != "no" or machine.bus_locks != "no"
    best, guard = _best(modes) if detects else (modes[0], False)
    first = ["splitlock guard install --policy refuse: modules that forward #AC stay out"] if guard else []
    first += [
        f"rmmod {one.name}: it is loaded already" for one in found if guard and one.refused and one.loaded == "yes"
    ]
    return Report(
        schema=SCHEMA, host=machine, hypervisors=found, guests=watched, modes=modes, recommended=best.mode,
        guard=guard, command_line=f"split_lock_detect={best.mode}" if detects else "", first=first,
        unwatched=_unwatched(machine, found, watched, interrupted), interrupted=interrupted,
    )  # fmt: skip


def _best(modes: list[Mode]) -> tuple[Mode, bool]:
    """`warn` where it breaks nothing, or nothing that the guard would let in; else `ratelimit`; else `off`."""
    by_name = dict(zip(MODES, modes, strict=True))
    for mode in (by_name["warn"], by_name["ratelimit"]):
        if mode.effective == "off":
            continue
        if mode.verdict != "breaks" or mode.guarded != "breaks":
            return mode, mode.verdict == "breaks"
    return by_name["off"], False


def _mode(name: str, machine: Host, found: list[Hypervisor], watched: list[Guest]) -> Mode:
    words = f"ratelimit:{_RATE}" if name == "ratelimit" else name
    kernel = linux(machine.linux or _RECENT, words, "linux", machine.mitigate)
    modelled = Modelled(Processor(machine.split_locks != "no", machine.bus_locks != "no", machine.amd), kernel)
    core = modelled.core
    reasons = [_reason("a program that takes a split lock", [native(modelled, Access(), Locks())])]
    guarded = list(reasons)
    for one in found:
        some = _guests_of(one, modelled, watched)
        reasons += some
        guarded += [] if one.refused else some
    kernels = _reason("the kernel, should it take one", [native(modelled, Access("kernel"), Locks())])
    return Mode(
        mode=words,
        effective=modelled.armed.mode if core.test_ctrl or core.debugctl else "off",
        verdict=_worst(reasons),
        guarded=_worst(guarded),
        reasons=[reason for reason in (*reasons, kernels) if reason.verdict != "safe"],
    )


def _worst(reasons: list[Reason]) -> Verdict:
    return max((reason.verdict for reason in reasons), key=_GRAVITY.__getitem__, default="safe")


def _guests_of(one: Hypervisor, machine: Modelled, watched: list[Guest]) -> list[Reason]:
    """What its guests come to: those that were watched and take split locks, or any where none was watched."""
    takers = [f"{guest.path} ({', '.join(guest.takers)})" for guest in watched if guest.takers]
    if watched and not takers:
        return []
    who = f"in {one.name} ({TITLES[one.kind]}): {'; '.join(takers) or 'any guest that takes one'}"
    results = [inside(machine, VM((one.kind,), guest), access, Locks()) for guest in _ANY for access in _ACCESSES]
    return [
        _reason(who, [result for result in results if result.victim == victim])
        for victim in dict.fromkeys(result.victim for result in results)
    ]


def _reason(who: str, results: list[Result]) -> Reason:
    """What may come of it, all to the same victim."""
    rules = [f"{step.who}: {step.what} [{step.source}]" for step in (result.steps[-1] for result in results)]
    verdict: Verdict = "slows" if any(result.fate == "slowed" for result in results) else "safe"
    what = "waits 10 ms or more" if verdict == "slows" else "goes on"
    if victim := results[0].victim:
        verdict = "breaks"
        what = f"the {victim} {' or '.join(dict.fromkeys(_DIES[result.fate] for result in results))}"
    return Reason(verdict=verdict, who=who, what=what, rules=list(dict.fromkeys(rules)))


def _unwatched(machine: Host, found: list[Hypervisor], watched: list[Guest], interrupted: bool) -> list[str]:
    lines = ["which of this host's programs take split locks: splitlock run, or splitlock watch in mode warn"]
    if interrupted:
        lines.insert(0, "which other modules are hypervisors: the scan was interrupted")
    if found and not watched:
        lines.append("which guests take split locks: splitlock guest --disk IMAGE -o FILE, then --guest-report FILE")
    if "unknown" in (machine.split_locks, machine.bus_locks):
        lines.append("whether the processor detects: taken to do so")
    if machine.linux is None:
        lines.append(f"which kernel runs there: taken to be {_RECENT}")
    if machine.inside:
        lines.append(f"what {machine.inside}, in which this machine runs, does with split locks: splitlock probe")
    return lines + [f"{guest.path}: {what}" for guest in watched for what in guest.unwatched]
