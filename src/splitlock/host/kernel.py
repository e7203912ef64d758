"""Which mode does the kernel run in, how is that known, and what has it logged?"""

from __future__ import annotations

import re

from splitlock.host.log import Heard
from splitlock.host.processor import usable
from splitlock.linux import versions
from splitlock.linux.versions import RATELIMIT, SPLIT_LOCKS
from splitlock.report.status import Kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.host.root import Root
    from splitlock.report.status import Mode, Processor

PARAMETER = re.compile(r"(?:^|\s|\")split_lock_detect=(\S+?)(?=[\s\"']|$)")
_MODE = re.compile(r"off|warn|fatal|ratelimit:(\d+)")
_RELEASE = re.compile(r"Linux version (\S+)")
#: Where boot parameters are configured: GRUB, systemd's kernel-install, Proxmox, boot loader entries.
_BOOT = ("etc/default/grub", "etc/default/grub.d", "etc/kernel/cmdline", "boot/loader/entries", "boot/grub/grub.cfg",
         "boot/grub2/grub.cfg")  # fmt: skip
_SET = re.compile(r"kernel[./]split_lock_mitigate\s*=\s*\d")
_AROUND = ' \t"'
MODULES = ("lib/modules", "usr/lib/modules")
_SYSCTL = ("etc/sysctl.conf", "etc/sysctl.d", "usr/lib/sysctl.d", "run/sysctl.d")


def kernel(root: Root, heard: Heard, processor: Processor) -> Kernel:
    """The kernel, and its mode: as it said at boot, else as its command line and the processor leave no other."""
    release = (root.text("proc/sys/kernel/osrelease") or "").strip() or _release(root, heard)
    command_line = root.text("proc/cmdline") or heard.boot
    given = PARAMETER.findall(command_line)
    parameter = given[-1] if given else None
    mitigate = (root.text("proc/sys/kernel/split_lock_mitigate") or _sos_sysctl(root) or "").strip()
    said = heard.mode
    if said:
        mode, why = said, f"the kernel said so at boot ({heard.source})"
    else:
        mode, why = _inferred(root, command_line, parameter, processor, release)
    match = _MODE.fullmatch(mode)
    name: Mode = mode.partition(":")[0] if match else "unknown"  # type: ignore[assignment]
    return Kernel(
        release=release,
        installed=list(
            dict.fromkeys(n for top in MODULES for n in root.names(top) if root.exists(f"{top}/{n}/kernel"))
        ),
        parameter=parameter,
        configured=_configured(root),
        mode=name,
        rate=int(match[1]) if match and match[1] else None,
        why=why,
        mitigate=int(mitigate) if mitigate.isdigit() else None,
    )


def _inferred(
    root: Root, command_line: str, parameter: str | None, processor: Processor, release: str | None
) -> tuple[str, str]:
    known = versions.release(release or "")
    since = known.series if known else None
    split, bus = usable(processor, since)
    if since and since < SPLIT_LOCKS.since:
        return "off", f"{release} has no split-lock detection (5.7 is the first)"
    if split == bus == "no":
        if processor.split_lock.supported == processor.bus_lock.supported == "no":
            return "off", "the processor has neither #AC nor #DB for it"
        return "off", f"this kernel uses neither #AC nor #DB here{', in a guest' if processor.hypervisor else ''}"
    if not command_line:
        return "unknown", "it is not running: no command line, no log"
    if "yes" not in (split, bus):
        return "unknown", "whether the processor can detect is not known"
    if parameter and parameter.startswith("ratelimit") and since and since < RATELIMIT.since:
        return "warn", f"the default; {release} knows no ratelimit"
    if parameter and _MODE.fullmatch(parameter):
        if parameter.startswith("ratelimit") and bus != "yes":
            return (
                "unknown",
                f"split_lock_detect={parameter}, without bus-lock #DB: the kernel takes off, or its default",
            )
        return parameter, "its command line; the log of the boot is not there"
    return "warn", "the default; the log of the boot is not there"


def _release(root: Root, heard: Heard) -> str | None:
    found = _RELEASE.search(root.text("proc/version") or heard.boot)
    if found:
        return found[1]
    words = (root.text("sos_commands/kernel/uname_-a", "uname") or "").split()
    return words[2] if len(words) > 2 else None


def _sos_sysctl(root: Root) -> str | None:
    found = re.search(r"^kernel\.split_lock_mitigate = (\d)", root.text("sos_commands/kernel/sysctl_-a") or "", re.M)
    return found[1] if found else None


def _configured(root: Root) -> list[str]:
    """What is set for the next boot."""
    found = []
    for place, pattern in [*((p, PARAMETER) for p in _BOOT), *((p, _SET) for p in _SYSCTL)]:
        names = [f"{place}/{name}" for name in root.names(place)] if root.is_directory(place) else [place]
        for name in names:
            for line in (root.text(name) or "").splitlines():
                if not line.lstrip().startswith("#"):
                    found += [f"{name}: {match[0].strip(_AROUND)}" for match in pattern.finditer(line)]
    return list(dict.fromkeys(found))


def effective_mode() -> Mode:
    """This machine's mode now."""
    from splitlock.host.processor import processor
    from splitlock.host.root import Root

    root = Root("/")
    heard = Heard(root)
    return kernel(root, heard, processor(root, heard.boot)).mode
