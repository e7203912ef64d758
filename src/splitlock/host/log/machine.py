"""Is a log of the boot that a machine is in, and would its kernel say there what happens?"""

from __future__ import annotations

import re

from splitlock.host.log.wrappings import LOCAL
from splitlock.linux import parameter, versions
from splitlock.linux.detection import INTEL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.host.log.heard import Log
    from splitlock.host.root import Root

_CUT = 900  # characters; a record of the kernel's has some 1,000 (printk.c: PRINTKRB_RECORD_MAX)
UNTRACED = "debug.exception-trace=0: programs get SIGBUS, and no line says so"
_NONE = ("localhost", "localhost.localdomain", "(none)", "-")
_ADDRESS = re.compile(r"[\d.]+|.*:.*")
_SECONDS = re.compile(r"(\d{1,12})\.")


class Machine:
    """What a machine says of its own boot: /proc/version, osrelease, cmdline, uptime; empty where it says nothing."""

    def __init__(self, root: Root) -> None:
        self._version = _words(root.text("proc/version"))
        #: its name, without the domain; empty: not known
        name = label(root.text("proc/sys/kernel/hostname", "etc/hostname", "hostname"))
        self.host = "" if name == LOCAL else name
        self._release = _words(root.text("proc/sys/kernel/osrelease"))
        self._command_line = _words(root.text("proc/cmdline"))
        ran = _SECONDS.match(root.text("proc/uptime") or "")
        self.ran = int(ran[1]) if ran else 0  #: seconds; 0: not known
        self._untraced = _words(root.text("proc/sys/debug/exception-trace")) == "0"
        cpu = root.text("proc/cpuinfo") or ""
        flags = re.search(r"^flags\s*:(.*)", cpu, re.M)
        found = set(flags[1].split()) if flags else set()
        self._detects = "split_lock_detect" in found or ("bus_lock_detect" in found and INTEL in cpu)

    def other(self, log: Log) -> str:
        """Why a log is of another boot; empty: it is of this one, as far as it tells."""
        if self._version and log.banner and not _same(_words(log.banner), self._version):
            return f"{log.source.name} is of another boot, of Linux {log.release}"
        if self._release and log.release and log.release != self._release:
            return f"{log.source.name} is of another boot, of Linux {log.release}"
        if self.host and log.hosts and not log.own and log.release is None and not log.found:
            return f"{log.source.name} is of another machine, {', '.join(log.hosts)}"
        found = re.search(r"Command line: (.*)", log.boot)
        logged = _words(found[1]) if found else ""
        if self._command_line and logged and not _given(logged, self._command_line):
            return f"{log.source.name} is of another boot, with another command line"
        return ""

    def silent(self, log: Log) -> list[str]:
        """What of its kernel's words a log cannot have, though nothing is missing in it."""
        said = []
        value = parameter.find(self._command_line)
        known = versions.release(log.release or "")
        knows = known is None or versions.has(versions.RATELIMIT, known) != "no"
        # off since OFF_SAYS_NOTHING; ratelimit without #DB for bus locks
        silent = parameter.setting(value, ratelimit=knows).mode in ("off", "ratelimit")
        if log.release is not None and log.mode is None and not log.found and self._detects and not silent:
            said.append(
                "the kernel detects here, and its words about that are not in it: some levels were filtered out"
            )
        if not self.host and log.hosts:
            names = ", ".join([log.named, *log.hosts])
            said.append(f"several machines are in it, and which is this one is not known: {names}")
        if self._untraced and (log.mode == "fatal" or (log.mode is None and value == "fatal")):
            said.append(UNTRACED)
        return said


def _words(text: str | None) -> str:
    return " ".join((text or "").split())


def label(name: str | None) -> str:
    """A host's name without its domain; of one that was not told its own, and of an address, as it is."""
    whole = _words(name).lower()
    return whole if _ADDRESS.fullmatch(whole) else LOCAL if whole in _NONE else whole.partition(".")[0]


def _same(banner: str, version: str) -> bool:
    """Is a kernel's first line that of /proc/version? Ubuntu and Proxmox put a version of their own behind it there
    (init/main.c of theirs: CONFIG_VERSION_SIGNATURE)."""
    return banner == version or banner.startswith(f"{version} (")


def _given(logged: str, command_line: str) -> bool:
    """Is a command line, as logged, that of /proc/cmdline? Bootconfig's part stands before it there, or behind `--`."""
    plain, whole = logged.replace("\\", ""), f" {command_line} ".replace("\\", "")
    return f" {plain} " in whole or (len(logged) > _CUT and f" {plain}" in whole)
