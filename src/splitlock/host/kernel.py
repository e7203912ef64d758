"""Which mode does the kernel run in, how is that known, and what has it logged?"""

from __future__ import annotations

import re
from collections import Counter
from contextlib import ExitStack

from splitlock._errors import SplitlockError
from splitlock.host import sources, tasks
from splitlock.host.processor import usable
from splitlock.linux import log, versions
from splitlock.linux.versions import RATELIMIT, SPLIT_LOCKS
from splitlock.report.status import Kernel, Log, Logged

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from splitlock.host.root import Root
    from splitlock.host.sources import Record
    from splitlock.report.status import Mode, Processor

PARAMETER = re.compile(r"(?:^|\s|\")split_lock_detect=(\S+?)(?=[\s\"']|$)")
_MODE = re.compile(r"off|warn|fatal|ratelimit:(\d+)")
_RELEASE = re.compile(r"Linux version (\S+)")
_TASKS = 50  # kept in the report
#: The kernel's log as files have it: dmesg saved by an sosreport, by distributions, by syslog daemons.
_LOGS = (
    "sos_commands/kernel/dmesg", "sos_commands/kernel/dmesg_-T", "sos_commands/general/dmesg", "dmesg", "var/log/dmesg",
    "var/log/kern.log", "var/log/messages", "var/log/syslog", "sos_commands/logs/journalctl_--no-pager_--boot",
)  # fmt: skip
#: Where boot parameters are configured: GRUB, systemd's kernel-install, Proxmox, boot loader entries.
_BOOT = ("etc/default/grub", "etc/default/grub.d", "etc/kernel/cmdline", "boot/loader/entries", "boot/grub/grub.cfg",
         "boot/grub2/grub.cfg")  # fmt: skip
_JOURNAL = (".journal", ".journal~")
_SET = re.compile(r"kernel[./]split_lock_mitigate\s*=\s*\d")
_AROUND = ' \t"'
MODULES = ("lib/modules", "usr/lib/modules")
_SYSCTL = ("etc/sysctl.conf", "etc/sysctl.d", "usr/lib/sysctl.d", "run/sysctl.d")


class Heard:
    """The kernel's log, read once: the whole of it where it is a short one, for other questions, and what it says."""

    def __init__(self, root: Root) -> None:
        self.source: str | None = None
        self.why = ""
        self.lost = self.suppressed = self.lines = 0
        self.mode: str | None = None
        self.boot = ""  #: the lines of the boot that others ask for
        self._tasks: Counter[tuple[str, str, bool]] = Counter()
        if root.live:
            self._hear("/dev/kmsg", sources.kmsg(follow=False))
            if self.source is None and root.exists("var/log/journal"):
                self._hear("the journal", sources.journal(follow=False, boot=True))
        else:
            for name in _LOGS:
                if root.is_filled(name):
                    self._hear_files(root, name, [name], lambda paths: sources.file(paths[0], follow=False))
                    break
            else:
                kept = [name for name in root.files("var/log/journal") if name.endswith(_JOURNAL)]
                if kept:
                    self._hear_files(
                        root, "var/log/journal", kept, lambda paths: sources.journal(follow=False, files=paths)
                    )
        if self.source is None and not self.why:
            self.why = "no log is there"

    def _hear_files(
        self, root: Root, name: str, files: list[str], records: Callable[[list[str]], Iterator[Record]]
    ) -> None:
        with ExitStack() as stack:
            try:
                paths = [stack.enter_context(root.held(file)) for file in files]
            except OSError as error:
                self.why = f"{error.filename or name}: {error.strerror}"
                return
            self._hear(name, records(paths))

    def _hear(self, name: str, records: Iterator[Record]) -> None:
        try:
            for record in records:
                self.lost += record.lost
                self._take(record.text or "")
        except SplitlockError as error:
            self.why = str(error)
            return
        self.source, self.why = name, "its beginning was overwritten" if self.lost else ""

    def _take(self, text: str) -> None:
        line = log.parse(text)
        if line is None:
            if any(word in text for word in ("Linux version", "Command line:", "Hypervisor detected")):
                if "Linux version" in text:  # another boot begins: what was before is not of this one
                    self.boot, self.mode = "", None
                    self._tasks.clear()
                    self.lines = self.suppressed = self.lost = 0
                self.boot += text + "\n"
        elif line.kind == "mode":
            self.mode = line.detail or self.mode
        elif line.kind == "suppressed":
            self.suppressed += line.number
        elif line.kind == "lost":
            self.lost += line.number
        elif line.kind in ("trap", "guest", "killed", "oops"):
            self.lines += 1
            self._tasks[
                line.comm or "the kernel",
                line.exception,
                line.kind == "guest" or tasks.vmm_by_name(line.comm) is not None,
            ] += 1

    def report(self) -> Log:
        """What it said."""
        found = [Logged(comm=c, exception=e, lines=n, guest=g) for (c, e, g), n in self._tasks.most_common(_TASKS)]
        return Log(
            source=self.source, why=self.why, lines=self.lines, suppressed=self.suppressed, lost=self.lost, tasks=found
        )


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
