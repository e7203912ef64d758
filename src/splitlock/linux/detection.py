"""What does Linux do about a split lock? One table: exception, mode, place and version, to what comes of it.

Sources: arch/x86/kernel/cpu/bus_lock.c (intel.c before 6.13), arch/x86/kernel/traps.c, arch/x86/kvm/vmx/vmx.c; each
entry names its function. The versions are linux/versions.py's; docs/linux.md lists them with their commits.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from splitlock.linux import sentences, versions
from splitlock.linux.delays import JIFFIES, SLEEP_MS, STEP_MS
from splitlock.linux.parameter import MODES, Mode, setting
from splitlock.linux.sentences import Sentence
from splitlock.linux.versions import Change, Release, has

Trap = Literal["#AC", "#DB"]
#: asking: a program that has set EFLAGS.AC, and so asked for alignment checks itself. guest: as KVM asks its host.
Place = Literal["program", "asking", "kernel", "interrupt", "guest"]
Fate = Literal["executed", "slowed", "limited", "sigbus", "oops", "panic", "livelock"]
#: How often so many locks of one task trap. once: the first one ends the task, or detection for it. each window: what
#: follows while detection is off does not trap. for ever: the same instruction, again and again
Traps = Literal["once", "each lock", "each window", "for ever"]

#: /proc/cpuinfo's vendor_id of AMD's processors and their kin: no `#AC` for split locks
AMD = ("AuthenticAMD", "HygonGenuine")
INTEL = "GenuineIntel"  #: vendor_id of those that have it
FATES: tuple[Fate, ...] = ("executed", "slowed", "limited", "sigbus", "oops", "panic", "livelock")
PLACES: tuple[Place, ...] = ("program", "asking", "kernel", "interrupt", "guest")


class Kernel(NamedTuple):
    """A kernel, and what is taken of it where nobody can know: stable releases have some changes, others more."""

    release: Release
    assume: bool = True  #: has it what it may have?
    shown: frozenset[str] = frozenset()  #: names of changes that it is seen to have, whatever its version says

    def knows(self, change: Change) -> bool:
        """Does it have this change?"""
        if change.name in self.shown:
            return True
        known = has(change, self.release)
        return self.assume if known == "unknown" else known == "yes"


class Processor(NamedTuple):
    """What a processor can do, as far as who runs on it is shown."""

    split_locks: bool = False  #: `#AC` for split locks: TEST_CTRL bit 29
    bus_locks: bool = False  #: `#DB` for bus locks: DEBUGCTL bit 2
    amd: bool = False  #: AMD's or Hygon's; these have no `#AC` for split locks
    alignment: bool = True  #: raises `#AC` for who asks for alignment checks; QEMU's TCG does not


class Armed(NamedTuple):
    """What a kernel made of its processor at boot."""

    mode: Mode  #: in effect: `off` where there is nothing that could be used
    trap: Trap | None  #: by which it detects; None: it does not
    rate: int  #: bus locks a second, in mode `ratelimit`
    sentence: Sentence | None  #: what it says at boot; None: nothing
    ignored: str  #: why the parameter's value counts for nothing; empty: it counts

    @property
    def line(self) -> str:
        """What it says at boot; empty: nothing."""
        return self.sentence.format(rate=self.rate) if self.sentence else ""


class Effect(NamedTuple):
    """What comes of one split lock."""

    fate: Fate
    what: str  #: in words
    source: str  #: the kernel's function
    sentence: Sentence | None = None  #: what is logged at a trap; linux/often.py says how often
    traps: Traps = "once"
    sleep_ms: int = 0  #: that the task waits, each time it traps
    alone_jiffies: int = 0  #: for which no other task may have detection turned off


class Rule(NamedTuple):
    """An entry. Of those that fit, the last one holds."""

    trap: Trap
    modes: tuple[Mode, ...]
    places: tuple[Place, ...]
    since: Change | None  #: None: every Linux
    effect: Effect
    mitigate: bool | None = None  #: kernel.split_lock_mitigate; None: whatever it is


def _sigbus(why: str, source: str, sentence: Sentence) -> Effect:
    return Effect("sigbus", f"{why}: SIGBUS, BUS_ADRALN, si_addr 0", source, sentence)


_TRAPS = "traps.c: exc_alignment_check()"
_OLD_TRAPS = "traps.c: do_alignment_check()"
_WARN, _USER, _GUEST, _BUS = (
    "split_lock_warn()", "handle_user_split_lock()", "handle_guest_split_lock()", "handle_bus_lock()",
)  # fmt: skip
#: Of `ratelimit` where `#DB` is not used: split_lock_init() turns `#AC` off, and bus_lock_init() turns nothing on.
LIMITS_NOTHING = "detects nothing here, just as off: to limit the rate the kernel needs bus-lock detection (#DB)"
_OFF_FOR = f"turns detection off on this core for {JIFFIES} jiffies"

RULES = (
    # -- before there was detection: any #AC is an alignment check -------------------------------------------------
    Rule("#AC", MODES, ("program", "asking"), None,
         _sigbus("takes it for a failed alignment check", _OLD_TRAPS, sentences.KILLED)),
    Rule("#AC", MODES, ("kernel",), None,
         Effect("oops", "the kernel oopses", _OLD_TRAPS, sentences.ALIGNMENT)),
    Rule("#AC", MODES, ("interrupt",), None,
         Effect("panic", "an oops in an interrupt: panic", _OLD_TRAPS, sentences.ALIGNMENT)),
    # -- #AC ------------------------------------------------------------------------------------------------------
    Rule("#AC", MODES, ("kernel",), versions.SPLIT_LOCKS,
         Effect("oops", "the kernel oopses", _TRAPS, sentences.OOPS_5_7)),
    Rule("#AC", MODES, ("kernel",), versions.OOPS_PREFIX,
         Effect("oops", "the kernel oopses", _TRAPS, sentences.OOPS)),
    Rule("#AC", MODES, ("interrupt",), versions.SPLIT_LOCKS,
         Effect("panic", "an oops in an interrupt: panic", _TRAPS, sentences.OOPS_5_7)),
    Rule("#AC", MODES, ("interrupt",), versions.OOPS_PREFIX,
         Effect("panic", "an oops in an interrupt: panic", _TRAPS, sentences.OOPS)),
    # a kernel that detects nothing, and gets it all the same: from its hypervisor
    Rule("#AC", ("off", "ratelimit"), ("program",), versions.SPLIT_LOCKS,
         Effect("livelock", "warns, writes a TEST_CTRL that it does not have, and runs the instruction again: it traps "
                "for ever", _WARN, sentences.TOOK_SPLIT, "for ever")),
    Rule("#AC", ("warn",), ("program", "guest"), versions.SPLIT_LOCKS,
         Effect("executed", "detection is off while this task runs, for good", _WARN, sentences.TOOK_SPLIT)),
    Rule("#AC", ("warn",), ("program", "guest"), versions.MISERY,
         Effect("slowed", f"sleeps {SLEEP_MS} ms, waits until no other core runs split locks, {_OFF_FOR}", _WARN,
                sentences.TOOK_SPLIT, "each window", SLEEP_MS, JIFFIES)),
    Rule("#AC", ("warn",), ("program", "guest"), versions.MITIGATE,
         Effect("executed", _OFF_FOR, _WARN, sentences.TOOK_SPLIT, "each window"), mitigate=False),
    Rule("#AC", ("fatal",), ("program",), versions.SPLIT_LOCKS, _sigbus("not handled", _USER, sentences.KILLED)),
    Rule("#AC", MODES, ("asking",), versions.SPLIT_LOCKS,
         _sigbus("the task set EFLAGS.AC", _USER, sentences.KILLED)),
    Rule("#AC", ("fatal",), ("guest",), versions.KVM_ASKS,
         Effect("sigbus", "SIGBUS to the program that runs the virtual machine", _GUEST, sentences.GUEST_FATAL)),
    Rule("#AC", ("off", "ratelimit"), ("guest",), versions.KVM_ASKS,
         Effect("sigbus", "SIGBUS to the program that runs the virtual machine", _GUEST, sentences.GUEST_BOGUS)),
    # -- #DB: in user mode alone, behind the instruction ------------------------------------------------------------
    Rule("#DB", MODES, ("program", "asking"), None,
         Effect("executed", "nothing: the bus-lock bit of DR6 alone sends no signal", "traps.c: exc_debug_user()")),
    Rule("#DB", ("off",), ("program", "asking"), versions.BUS_LOCKS, Effect("executed", "nothing", _BUS)),
    Rule("#DB", ("warn",), ("program", "asking"), versions.BUS_LOCKS,
         Effect("executed", "a line each time, rate limited; goes on", _BUS, sentences.TOOK_BUS, "each lock")),
    Rule("#DB", ("fatal",), ("program", "asking"), versions.BUS_LOCKS,
         Effect("sigbus", "SIGBUS, BUS_ADRALN; the lock has executed", _BUS)),
    Rule("#DB", ("ratelimit",), ("program", "asking"), versions.RATELIMIT,
         Effect("limited", f"waits in steps of {STEP_MS} ms until the limit of all tasks lets it go on", _BUS,
                sentences.TOOK_BUS, "each lock", STEP_MS)),
)  # fmt: skip


def effect(kernel: Kernel, trap: Trap, mode: Mode, place: Place, *, mitigate: bool = True) -> Effect:
    """What comes of a split lock that raised `trap`. `mode`: in effect, as `boot()` has it.

    Raises LookupError where the exception does not happen: a `#DB` in the kernel.
    """
    found = None
    for rule in RULES:
        fits = rule.trap == trap and mode in rule.modes and place in rule.places
        if fits and rule.mitigate in (None, mitigate) and (rule.since is None or kernel.knows(rule.since)):
            found = rule.effect
    if found is None:
        raise LookupError(f"{trap} in mode {mode}, {place}")
    return found


def false_bus_locks(release: Release) -> Literal["yes", "no", "unknown"]:
    """Does it take the first `#DB` of any kind on a core for a bus lock, on a processor that has bus-lock detection?

    DR6 says "no bus lock" only once a first `#DB` has set its bits, before DR6_BUS_LOCK; docs/linux.md, "False lines".
    """
    asks, fixed = has(versions.BUS_LOCKS, release), has(versions.DR6_BUS_LOCK, release)
    if asks == "no" or fixed == "yes":
        return "no"
    return "yes" if asks == "yes" and fixed == "no" else "unknown"


def used(kernel: Kernel, processor: Processor) -> Processor:
    """Of what a processor can do, what this kernel uses."""
    bus = versions.AMD_BUS_LOCKS if processor.amd else versions.BUS_LOCKS
    return processor._replace(
        split_locks=processor.split_locks and not processor.amd and kernel.knows(versions.SPLIT_LOCKS),
        bus_locks=processor.bus_locks and kernel.knows(bus),
    )


def boot(kernel: Kernel, processor: Processor, value: str | None) -> Armed:
    """What a kernel makes of a processor and its parameter's value (None: not given).

    sld_state_setup(), split_lock_init(), bus_lock_init(), sld_state_show(); split_lock_setup() before 5.13.
    """
    has_ = used(kernel, processor)
    asked = setting(value, ratelimit=kernel.knows(versions.RATELIMIT))
    if not has_.split_locks and not has_.bus_locks:
        # AMD's, 5.13 to 6.12: sld_setup() is every vendor's and speaks of it; only init_intel() switches it on
        spoken = processor.bus_locks and kernel.knows(versions.BUS_LOCKS)
        return Armed("off", None, 0, _said(kernel, asked.mode, "#DB") if spoken else None, "")
    trap: Trap | None = None
    if asked.mode in ("warn", "fatal"):
        trap = "#AC" if has_.split_locks else "#DB"
    elif asked.mode == "ratelimit" and has_.bus_locks:
        trap = "#DB"
    return Armed(asked.mode, trap, asked.rate, _said(kernel, asked.mode, trap), asked.ignored)


def _said(kernel: Kernel, mode: Mode, trap: Trap | None) -> Sentence | None:
    if mode == "off":
        return None if kernel.knows(versions.OFF_SAYS_NOTHING) else sentences.OFF
    if mode == "ratelimit":
        return sentences.DB_RATELIMIT if trap else None
    if not kernel.knows(versions.BUS_LOCKS):
        return sentences.FATAL_5_7 if mode == "fatal" else sentences.WARN_5_7
    if trap == "#AC":
        return sentences.AC_FATAL if mode == "fatal" else sentences.AC_WARN
    return sentences.DB_FATAL if mode == "fatal" else sentences.DB_WARN
