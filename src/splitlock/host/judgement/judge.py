"""What does each mode do on this machine, and which one should it boot with? One judgement, for `status` and `advise`.

What comes of a split lock is the table's (linux/detection.py). Where something is not known, the table is asked for
each possibility: only what is the same in all of them is said.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

from splitlock.host.judgement import words
from splitlock.host.judgement.words import programs
from splitlock.host.settings.audit import NOW
from splitlock.linux import detection, hypervisors, parameter, versions
from splitlock.linux.detection import AMD, Kernel, Processor
from splitlock.linux.parameter import MODES
from splitlock.report.judgement import Effect, Judgement, Mode, Use, Verdict
from splitlock.report.lines import count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.linux.detection import Armed, Place
    from splitlock.report.advise import Guest
    from splitlock.report.judgement import Fate, Hypervisor, Known, Who
    from splitlock.report.status import Report

_FATES: dict[detection.Fate, Fate] = {
    "executed": "goes-on", "slowed": "slowed", "limited": "limited", "sigbus": "killed", "oops": "oops",
    "panic": "oops", "livelock": "stuck",
}  # fmt: skip
#: What a hypervisor makes of `#AC` without its host, and whose DEBUGCTL holds in its guest: linux/hypervisors.py.
_DONE: dict[hypervisors.Does, Fate] = {"emulate": "goes-on", "inject": "killed", "unknown": "not-known"}
_HELD: dict[str, Fate] = {"guest": "nothing", "host": "killed", "unknown": "not-known"}
#: What a kernel is taken for that nobody knows: one of each kind of answer.
_ANY = ("5.10.0", "5.15.0", "6.1.100", "7.1.0")
_GRAVITY: dict[Fate, Verdict] = {
    "nothing": "nothing", "goes-on": "logs", "slowed": "slows", "limited": "slows", "not-known": "not-known",
    "killed": "breaks", "oops": "breaks", "stuck": "breaks",
}  # fmt: skip
_ORDER: tuple[Verdict, ...] = ("nothing", "logs", "slows", "not-known", "breaks")


class World(NamedTuple):
    """One possibility."""

    kernel: Kernel
    processor: Processor
    mitigate: bool  #: kernel.split_lock_mitigate

    def armed(self, mode: parameter.Mode) -> Armed:
        """What the kernel makes of a mode here."""
        return detection.boot(self.kernel, self.processor, "ratelimit:10" if mode == "ratelimit" else mode)


def judge(status: Report, found: list[Hypervisor], guests: list[Guest]) -> Judgement:
    """The judgement on a machine, of what `status` found. `guests`: those that were watched, and no others are run."""
    possible = worlds(status)
    modes = [_mode(mode, status, possible, found, guests) for mode in MODES]
    recommended, because = _recommended(status, {mode.mode.partition(":")[0]: mode for mode in modes})
    return Judgement(
        split_locks=status.processor.split_lock.used,
        bus_locks=status.processor.bus_lock.used,
        hypervisors=found,
        modes=modes,
        recommended=recommended,
        because=because,
        first=_first(status, found, recommended),
        unknown=_unknown(status, found, guests),
    )


def worlds(status: Report) -> list[World]:
    """All that may be, as far as is known."""
    cpu = status.processor
    release = None if status.kernel.foreign else versions.release(status.kernel.release or "")
    releases = [release] if release else [known for known in map(versions.release, _ANY) if known]
    shown = frozenset(
        {"SPLIT_LOCKS", "KVM_ASKS", "BUS_LOCKS", "AMD_BUS_LOCKS"} if release else ()
    )  # `used` has weighed these
    shown |= {"MISERY", "MITIGATE"} if status.kernel.mitigate is not None else set()
    return [
        World(Kernel(one, assume, shown), Processor(split, bus, cpu.vendor in AMD), mitigate)
        for one, assume, split, bus, mitigate in product(
            releases, (True, False), _either(cpu.split_lock.used), _either(cpu.bus_lock.used), _mitigate(status)
        )
    ]


def _mitigate(status: Report) -> tuple[bool, ...]:
    """What kernel.split_lock_mitigate may be now: 1 unless it is seen to be 0, or something sets it to that."""
    if status.kernel.mitigate is not None:
        return (status.kernel.mitigate != 0,)
    sets = [one for one in status.kernel.settings if "mitigat" in one.text and one.counts != "no"]
    return (True, False) if any(one.text.strip().endswith("0") for one in sets) else (True,)


def _either(use: Use) -> tuple[bool, ...]:
    known: dict[Known, tuple[bool, ...]] = {"yes": (True,), "no": (False,), "unknown": (True, False)}
    return known[use.known]


def _mode(
    mode: parameter.Mode, status: Report, possible: list[World], found: list[Hypervisor], guests: list[Guest]
) -> Mode:
    made = [_effect("program", "", mode, status, possible), _effect("kernel", "", mode, status, possible)]
    for one in found:
        # a guest that was not watched in full may take some, as one of which there is no report
        if not guests or any(guest.takers or guest.unwatched for guest in guests):
            made.append(_guest(one, mode, status, possible, guests))
    verdict = max((_verdict(effect) for effect in made if effect.counts), key=_ORDER.index)
    return Mode(
        mode="ratelimit:N" if mode == "ratelimit" else mode,
        now=mode == status.kernel.mode,
        verdict=verdict,
        what=words.mode(mode, verdict, status, certain=made[0].fate != "not-known"),
        effects=made,
    )


def _verdict(effect: Effect) -> Verdict:
    """Of what may be this or that, the graver; not known only where somebody might die of it."""
    grave = [_GRAVITY[fate] for fate in effect.possible]
    if effect.fate != "not-known" or not grave or "breaks" in grave or "not-known" in grave:
        return _GRAVITY[effect.fate]
    return max(grave, key=_ORDER.index)


def _effect(who: Who, place: str, mode: parameter.Mode, status: Report, possible: list[World]) -> Effect:
    """Of a program, or of the kernel itself."""
    fates: dict[Fate, detection.Effect | None] = {}
    trap = {world.armed(mode).trap for world in possible}
    for world in possible:
        made = _asked(world, mode, "program" if who == "program" else "kernel")
        fates.setdefault(_FATES[made.fate] if made else "nothing", made)
    fate: Fate = next(iter(fates)) if len(fates) == 1 else "not-known"
    if who == "program" and status.log.stuck:
        fate = "stuck"
    made = next(iter(fates.values()))
    logged = status.log.oopses if who == "kernel" else []
    names = programs(status.log)
    return Effect(
        who=who,
        where=place,
        fate=fate,
        possible=[*fates] if fate == "not-known" else [],
        what=words.effect(who, fate, trap, made, status, [*fates]),
        counts=who == "program" or bool(logged),
        names=names if who == "program" else sorted({oops for oops in logged if oops}),
        source=made.source if made else "",
    )


def _asked(world: World, mode: parameter.Mode, place: Place) -> detection.Effect | None:
    """The table's answer; None: nothing is detected."""
    armed = world.armed(mode)
    if armed.trap is None or (armed.trap == "#DB" and place != "program"):
        return None
    return detection.effect(world.kernel, armed.trap, armed.mode, place, mitigate=world.mitigate)


def _guest(one: Hypervisor, mode: parameter.Mode, status: Report, possible: list[World], guests: list[Guest]) -> Effect:
    """Of a guest in a hypervisor."""
    fates: dict[Fate, str] = {}
    for world in possible:
        fate, source = guest_fate(one.kind, world, mode)
        fates.setdefault(fate, source)
    fate = next(iter(fates)) if len(fates) == 1 else "not-known"
    running = sorted({vmm.vm or f"{vmm.name} {vmm.pid}" for vmm in status.vmms or []})
    logged = any(task.guest for task in status.log.tasks)
    names = [f"{guest.path} ({', '.join(guest.takers)})" for guest in guests if guest.takers]
    return Effect(
        who="guest",
        where=one.name,
        fate=fate,
        possible=[*fates] if fate == "not-known" else [],
        what=words.guest(one, fate, mode, [*fates]),
        counts=one.loaded != "no" or bool(guests),
        names=names or (running if logged else []),
        source=next(iter(fates.values())),
    )


def guest_fate(kind: hypervisors.AnyKind, world: World, mode: parameter.Mode) -> tuple[Fate, str]:
    """What becomes of a guest in such a hypervisor that splits a lock, and who says so."""
    armed = world.armed(mode)
    if armed.trap is None:
        return "nothing", "the processor does not trap"
    if armed.trap == "#DB":
        held = hypervisors.debugctl(kind, world.kernel, amd=world.processor.amd)
        return _HELD[held.whose], held.source
    decision = hypervisors.alignment_check(kind, hypervisors.Case(amd=world.processor.amd))
    if decision.does == "ask":
        made = detection.effect(world.kernel, armed.trap, armed.mode, "guest", mitigate=world.mitigate)
        return _FATES[made.fate], made.source
    return _DONE[decision.does], decision.source


def _recommended(status: Report, modes: dict[str, Mode]) -> tuple[str, str]:
    """A mode, and why this one."""
    split, bus = status.processor.split_lock.used, status.processor.bus_lock.used
    if status.log.stuck:
        return "", "a program is stuck here: the hypervisor's host must turn split-lock detection off (see below)"
    if split.known == bus.known == "no":
        why = split.why if split.why == bus.why else f"{split.why}; {bus.why}"
        return "", f"nothing to turn on: this kernel cannot detect split locks on this processor ({why})"
    if status.kernel.foreign:
        return "", f"nothing is to be set here: {status.kernel.foreign} answers in Linux's place, its host's mode holds"
    if "yes" not in (split.known, bus.known):
        return "", "whether this kernel can detect anything here is not known"
    if status.log.oopses:
        where = (
            ", ".join(sorted({oops for oops in status.log.oopses if oops})) or "a function that the log does not name"
        )
        why = (
            f"the kernel itself took a split lock, in {where}, and oopsed. That is a bug in this code: report it, and "
            "take warn again when it is fixed. Until then "
        )
        if bus.known == "yes":
            return "ratelimit:100", why + "ratelimit does not trap in the kernel; it hides the bug, as off would"
        return "off", why + "off keeps the machine up; it hides the bug"
    if modes["warn"].verdict == "breaks":
        return "off", "warn breaks guests here"
    return "warn", "programs that take split locks are named in the log, and none is killed"


def _first(status: Report, found: list[Hypervisor], recommended: str) -> list[str]:
    """What to do before, or besides."""
    first = []
    unknown = [one.name for one in found if one.kind in ("unknown", "svm") and one.loaded != "no"]
    if unknown and recommended in ("warn", "fatal"):
        first.append(f"run `splitlock probe` in a guest of {', '.join(unknown)}: what it does with #AC is not known")
    waiting = [one.name for one in found if one.refused and one.loaded == "no"]
    if waiting and recommended:
        first.append(f"{', '.join(waiting)}: installed, and refused by policy refuse; `splitlock guard` keeps it out")
    first += words.remedies(status)
    first += [
        f"{one.where}: {one.text} has no effect: {one.why}" for one in status.kernel.settings if one.counts == "no"
    ]
    first += [
        f"{one.where}: {one.text} is set for the next boot: change it there, too"
        for one in status.kernel.settings
        if recommended and one.counts != "no" and one.where not in NOW
        and (value := parameter.find(one.text)) is not None and value != recommended
    ]  # fmt: skip
    return first


def _names(status: Report) -> bool:
    """Would the log name every program that takes split locks here?"""
    if not status.log.whole or status.log.deaf:
        return False
    if status.kernel.mode == "fatal":  # by #DB it kills without a word: handle_bus_lock(); else show_signal() says it
        return status.processor.split_lock.used.known == "yes" and not status.kernel.silent
    return status.kernel.mode == "warn"


def _unknown(status: Report, found: list[Hypervisor], guests: list[Guest]) -> list[str]:
    """What is not known, and the way to know it."""
    lines = []
    for name, use in (("#AC", status.processor.split_lock.used), ("#DB", status.processor.bus_lock.used)):
        if use.known == "unknown":
            where = "its host" if status.kernel.foreign else "it"
            lines.append(
                f"whether this kernel can use {name}: {use.why}; `splitlock status` on {where}, as root, tells"
            )
    if status.log.source is None or status.log.why:
        lines.append(f"what was logged since boot: {status.log.why or 'no log is there'}")
    if status.kernel.release is None:
        lines.append("which kernel runs there: name its files with --root, or a report of it with --status")
    if status.log.suppressed:
        held = count(status.log.suppressed, "line")
        lines.append(f"who else takes them: the kernel held back {held} by its rate limit")
    if not _names(status) and not programs(status.log):
        lines.append("which of this host's programs take split locks: `splitlock run` tells, on any processor")
    if status.vmms_why:
        more = "other " if status.vmms else ""
        lines.append(f"whether {more}virtual machines run: {status.vmms_why}")
    if found and not guests:
        lines.append(
            "which guests take split locks: `splitlock guest --disk IMAGE --format json -o FILE`, then "
            "--guest-report FILE"
        )
    if status.interrupted:
        lines.append("which other modules are hypervisors: the scan was interrupted")
    if status.processor.hypervisor and not status.log.stuck:
        lines.append(f"what {status.processor.hypervisor}, in which this machine runs, does: `splitlock probe` in it")
    lines += [f"{guest.path}: {what}" for guest in guests for what in guest.unwatched]
    if status.unscanned:
        lines.append(f"{count(len(status.unscanned), 'module')} could not be looked into")
    return lines
