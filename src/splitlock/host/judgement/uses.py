"""Does this kernel make use of what the processor has? By what it shows; by its version only where nothing else tells.

The rules, with their sources: docs/linux.md, "At boot" and "What holds on which machine".
"""

from __future__ import annotations

from typing import NamedTuple

from splitlock.linux import parameter, versions
from splitlock.linux.detection import AMD, INTEL
from splitlock.linux.models import UNANNOUNCED, looked_at
from splitlock.linux.sentences import NO_MSR, STEAMOS_OFF
from splitlock.linux.versions import has
from splitlock.report.judgement import Use

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.linux.log import Line
    from splitlock.linux.versions import Change, Release
    from splitlock.report.judgement import Known

#: arch/x86/Kconfig: the option by itself since versions.BUS_LOCK_CONFIG; before, a part of the support of Intel's.
_OPTION, _BEFORE = "CONFIG_X86_BUS_LOCK_DETECT", "CONFIG_CPU_SUP_INTEL"


class Facts(NamedTuple):
    """What is known of a machine that bears on this."""

    vendor: str | None  #: as /proc/cpuinfo has it; None: not known
    family: int | None
    model: int | None
    flags: frozenset[str] | None  #: of /proc/cpuinfo; None: there is none
    x86: bool  #: is it one, as far as is known?
    hypervisor: str | None  #: this machine is a guest of
    foreign: str  #: what answers in Linux's place and is none; empty: a Linux
    release: Release | None
    command_line: str | None  #: that this kernel was given; None: not known
    said: list[Line]  #: the kernel's words about detection, at boot
    booted: bool  #: its log of the boot was read from the first line on
    config: str  #: the kernel's configuration; empty: not known
    no_sysctl: bool  #: the kernel's sysctls are there, and kernel.split_lock_mitigate is not among them

    @property
    def linux(self) -> str:
        """The kernel, in words."""
        return f"Linux {self.release.text}" if self.release else "this kernel"

    @property
    def value(self) -> str | None:
        """Of split_lock_detect=; None: not given, or not known."""
        return parameter.find(self.command_line or "")

    @property
    def said_off_by_steamos(self) -> bool:
        """Did SteamOS's kernel say that it turned TEST_CTRL's bit off? It does where the processor has it."""
        return any(line.text == STEAMOS_OFF.template for line in self.said)

    def known(self, change: Change) -> Known:
        """Has the kernel this change?"""
        return has(change, self.release) if self.release else "unknown"


def split_locks(facts: Facts) -> Use:
    """`#AC`: split_lock_setup()."""
    if none := _nowhere(facts):
        return Use(known="no", why=none)
    if facts.foreign:
        return _elsewhere(facts)
    if any(line.text == NO_MSR.template for line in facts.said):
        return Use(known="no", why="the kernel could not write TEST_CTRL (its log: MSR access failed)")
    if any(line.kind == "mode" and line.exception != "#DB" and line.detail != "off" for line in facts.said):
        return Use(known="yes", why="the kernel said so at boot")
    if facts.vendor in AMD:
        return Use(known="no", why="AMD's processors have no split-lock detection")
    if facts.hypervisor:
        return Use(known="no", why=f"inside {facts.hypervisor} Linux leaves it alone: that is its host's to say")
    if facts.flags is not None and "split_lock_detect" in facts.flags:
        return Use(known="yes", why="/proc/cpuinfo's flag split_lock_detect")
    if facts.known(versions.SPLIT_LOCKS) == "no":
        return Use(
            known="no", why=f"{facts.linux} has no split-lock detection: {versions.SPLIT_LOCKS.first} is the first"
        )
    if facts.flags is None:
        return Use(known="unknown", why="there is no /proc/cpuinfo, and the log does not tell")
    if facts.release and facts.release.steamos:
        return _steamos(facts, facts.flags)
    return _without_the_flag(facts)


def _steamos(facts: Facts, flags: frozenset[str]) -> Use:
    """No flag split_lock_detect on SteamOS: it is there in no mode without bus-lock detection, else in all but off."""
    if "bus_lock_detect" not in flags:
        return Use(
            known="no",
            why="SteamOS's kernel turns it off on every processor without bus-lock detection, whatever "
            "split_lock_detect= says",
        )
    if facts.said_off_by_steamos:
        return Use(known="yes", why="SteamOS's kernel turned it off at boot, as it was told to (its log)")
    if facts.command_line is not None and parameter.setting(facts.value).mode != "off":
        return Use(known="no", why="/proc/cpuinfo has no flag split_lock_detect, and the kernel was not told `off`")
    if facts.release and facts.family == 6 and facts.model and looked_at(facts.release, facts.model) == "yes":
        return Use(known="yes", why="its model; in mode off SteamOS's kernel does not show it")
    return Use(known="unknown", why="in mode off SteamOS's kernel does not show it")


def _without_the_flag(facts: Facts) -> Use:
    """5.13 on, the flag is there whenever the kernel can use it; before, only while it does."""
    shows = facts.known(versions.FLAG_IN_EVERY_MODE)
    if shows == "yes":
        what = "shows in every mode" if facts.known(versions.ONLY_ANNOUNCED) == "yes" else "shows for models it knows"
        return Use(known="no", why=f"/proc/cpuinfo has no flag split_lock_detect, which {facts.linux} {what}")
    if shows == "unknown":
        return Use(known="unknown", why=f"whether {facts.linux} has detection its name does not tell")
    if any(line.detail == "off" and line.exception != "#DB" for line in facts.said):
        return Use(known="yes", why=f"the kernel said at boot that it is off, which {facts.linux} says where it has it")
    looks = facts.release and facts.family == 6 and facts.model and looked_at(facts.release, facts.model) != "no"
    if facts.command_line is None and not facts.said and looks:
        return Use(known="unknown", why=f"in mode off {facts.linux} does not show it; nothing tells its command line")
    if parameter.setting(facts.value).mode != "off":
        return Use(known="no", why="/proc/cpuinfo has no flag split_lock_detect, and the kernel was not told `off`")
    if facts.family == 6 and facts.model in UNANNOUNCED:
        return Use(known="yes", why="its model")
    if facts.release and (facts.model is None or looked_at(facts.release, facts.model) == "no"):
        return Use(known="no", why=f"{facts.linux} does not look for it on this model")
    return Use(known="unknown", why=f"in mode off {facts.linux} does not show it")


def bus_locks(facts: Facts) -> Use:
    """`#DB`: bus_lock_init()."""
    if none := _nowhere(facts):
        return Use(known="no", why=none)
    if facts.foreign:
        return _elsewhere(facts)
    if facts.flags is None:
        if facts.known(versions.BUS_LOCKS) == "no":
            return Use(known="no", why=f"{facts.linux} knows none: {versions.BUS_LOCKS.first} is the first")
        said = any(line.exception == "#DB" and line.kind == "mode" for line in facts.said)
        if said and facts.known(versions.AMD_BUS_LOCKS) == "yes":
            return Use(known="yes", why="the kernel said so at boot")
        return Use(known="unknown", why="there is no /proc/cpuinfo, and the log does not tell")
    if "bus_lock_detect" not in facts.flags:
        return Use(known="no", why="/proc/cpuinfo has no flag bus_lock_detect")
    # on Intel the flag came with its use, so that it shows a kernel that took both back; on AMD it came long before
    built = f"{_OPTION}=y" in facts.config.splitlines()  # the option came with AMD's
    known = "yes" if facts.vendor == INTEL or built else facts.known(versions.AMD_BUS_LOCKS)
    if known == "no":
        first = f"{versions.AMD_BUS_LOCKS.first} is the first that does, though older ones say at boot they would"
        return Use(known="no", why=f"{facts.linux} does not use this processor's: {first}")
    if known == "unknown":
        return Use(
            known="unknown",
            why=f"the name of {facts.linux} does not tell whether it has what came with {versions.AMD_BUS_LOCKS.first}",
        )
    if facts.booted and not facts.said and facts.value is None:
        return Use(known="unknown", why="the kernel said nothing of it at boot, as one built without it does")
    return Use(known="yes", why="/proc/cpuinfo's flag bus_lock_detect")


def _elsewhere(facts: Facts) -> Use:
    return Use(known="unknown", why=f"{facts.foreign} answers in Linux's place, and the system below it decides")


def _nowhere(facts: Facts) -> str:
    """Why this kernel uses neither, whatever the processor; empty: it may."""
    if not facts.x86:
        return "this is no x86 processor: nothing of this applies"
    words = facts.config.splitlines()
    for option, asked in ((_OPTION, True), (_BEFORE, facts.known(versions.BUS_LOCK_CONFIG) == "no")):
        if asked and f"# {option} is not set" in words and f"{_OPTION}=y" not in words:
            return f"the kernel is built without it: {option} is not set"
    # sld_mitigate_sysctl_init(): whoever is built with it has the sysctl, whatever the processor
    shown = facts.said or "split_lock_detect" in (facts.flags or ())
    if facts.no_sysctl and not shown and not facts.foreign and facts.known(versions.MITIGATE) == "yes":
        return f"the kernel is built without it: it has no kernel.split_lock_mitigate, which {facts.linux} would have"
    return ""
