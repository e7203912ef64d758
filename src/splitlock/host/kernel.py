"""Which kernel runs, in which mode, and how is that known?"""

from __future__ import annotations

import re

from splitlock.host.log.heard import Heard
from splitlock.host.settings import audit as settings
from splitlock.host.settings.audit import Unused
from splitlock.host.settings.command_lines import given
from splitlock.linux import parameter, versions
from splitlock.linux.detection import LIMITS_NOTHING
from splitlock.linux.text import number
from splitlock.report import status as report

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.host.root import Root
    from splitlock.report.status import Kernel, Mode, Processor

_MODE = re.compile(rf"({'|'.join(parameter.MODES)})(?::(\d{{1,9}}))?")
_RELEASE = re.compile(r"Linux version (\S+)")
MODULES = ("lib/modules", "usr/lib/modules")


def running(root: Root, heard: Heard) -> str | None:
    """The release of the kernel that runs there, as `uname -r` has it; None: none is known to run."""
    found = (root.text("proc/sys/kernel/osrelease") or "").strip()
    if found:
        return found
    banner = _RELEASE.search(root.text("proc/version") or heard.boot)
    if banner:
        return banner[1]
    words = (root.text("sos_commands/kernel/uname_-a", "uname") or "").split()
    return words[2] if len(words) > 2 else None


def foreign(root: Root, heard: Heard, release: str | None) -> str:
    """What answers in Linux's place, and is none; empty: a Linux."""
    return versions.foreign(release or "", root.text("proc/version") or heard.boot)


def kernel(root: Root, heard: Heard, release: str | None, processor: Processor) -> Kernel:
    """The kernel, and its mode: as it said at boot, else what its command line and the processor come to."""
    command_line = given(root, heard.boot)
    mitigate = _sysctl(root, "kernel.split_lock_mitigate")
    known = versions.release(release or "")
    other = foreign(root, heard, release)
    mode, rate, why = _mode(heard, release, other, processor, command_line)
    return report.Kernel(
        release=release,
        foreign=other,
        installed=list(
            dict.fromkeys(n for top in MODULES for n in root.names(top) if root.exists(f"{top}/{n}/kernel"))
        ),
        parameter=parameter.find(command_line or ""),
        settings=[report.Setting(where=s.where, text=s.text, counts=s.counts, why=s.why)
                  for s in settings.settings(root, known, _unused(processor), command_line or "")],
        mode=mode,
        rate=rate or None,
        why=why,
        mitigate=number(mitigate),
        silent=_sysctl(root, "debug.exception-trace") == "0",
    )  # fmt: skip


def _mode(
    heard: Heard, name: str | None, other: str, processor: Processor, command_line: str | None
) -> tuple[Mode, int, str]:
    """In effect now: the mode, bus locks a second in `ratelimit`, and how it is known.

    `name`: the kernel's release; `other`: what answers in Linux's place.
    """
    if other:
        return "unknown", 0, f"{other} answers in Linux's place: the mode is that of the system below it"
    mode, rate, why = _asked(heard, name, processor, command_line)
    if mode == "ratelimit" and processor.bus_lock.used.known == "no":
        why += f"; it {LIMITS_NOTHING}"
    return mode, rate, why


def _asked(heard: Heard, name: str | None, processor: Processor, command_line: str | None) -> tuple[Mode, int, str]:
    """As `_mode`, of a Linux."""
    split, bus = processor.split_lock.used, processor.bus_lock.used
    if split.known == bus.known == "no":
        why = split.why if split.why == bus.why else f"{split.why}; {bus.why}"
        return "off", 0, f"this kernel detects nothing here ({why})"
    said = _MODE.fullmatch(heard.mode or "")
    if said:
        rate = number(said[2] or "") or 0
        return said[1], rate, f"the kernel said so at boot ({heard.told_by})"  # type: ignore[return-value]
    if command_line is None and name is None:
        return "unknown", 0, "no kernel is known to run there: no command line, no log"
    if command_line is None:
        return "unknown", 0, "neither its command line (/proc/cmdline) nor a log of its boot is there"
    value = parameter.find(command_line)
    if "yes" not in (split.known, bus.known) and value != "off":
        return "unknown", 0, "whether this kernel can use #AC or #DB is not known"
    release = versions.release(name or "")
    asked = {
        parameter.setting(value, ratelimit=knows)
        for knows in ((True, False) if release is None else (versions.has(versions.RATELIMIT, release) != "no",))
    }
    if len(asked) > 1:
        return "unknown", 0, "which kernel runs is not known, and not all know ratelimit"
    (found,) = asked
    if value is None:
        return "warn", 0, "the default: its command line names no other"
    if found.ignored:
        return found.mode, 0, f"split_lock_detect={value}: {found.ignored}"
    return found.mode, found.rate, "its command line"


def _unused(processor: Processor) -> Unused:
    """Why this machine has no use for a setting."""
    split, bus = processor.split_lock.used, processor.bus_lock.used
    if split.known == bus.known == "no":
        return Unused(detect=f"nothing is detected here: {split.why}")
    if split.known == "no":
        return Unused(mitigate="it is about #AC, which this kernel does not use here; #DB knows no delay")
    return Unused()


def _sysctl(root: Root, name: str) -> str:
    """A sysctl's value, by its file or by an sosreport's list; empty: not known."""
    if text := root.text(f"proc/sys/{name.replace('.', '/')}"):
        return text.strip()
    found = re.search(rf"^{re.escape(name)} = (\S+)", root.text("sos_commands/kernel/sysctl_-a") or "", re.M)
    return found[1] if found else ""


def effective_mode() -> Mode:
    """This machine's mode now."""
    from splitlock.host.processor import processor
    from splitlock.host.root import Root

    root = Root("/")
    heard = Heard(root)
    release = running(root, heard)
    cpu = processor(root, heard, versions.release(release or ""), foreign(root, heard, release))
    return kernel(root, heard, release, cpu).mode
