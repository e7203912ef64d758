"""What is set about split-lock detection for the next boot, and what is set in vain?

The kernel's side: arch/x86/lib/cmdline.c, fs/proc/proc_sysctl.c do_sysctl_args(), init/main.c setup_boot_config().
Where settings are kept: command_lines.py, sysctl.py.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from splitlock.host import config
from splitlock.host.settings import sysctl
from splitlock.host.settings.command_lines import Line, bootconfig, booted, command_lines
from splitlock.linux import parameter, versions
from splitlock.linux.versions import has

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.host.root import Root
    from splitlock.linux.versions import Change, Release

Known = Literal["yes", "no", "unknown"]

MITIGATE = "kernel.split_lock_mitigate"
_KEY = MITIGATE.replace(".", "/")
#: Whatever looks as if somebody meant one of the two.
_MEANT = re.compile(r"split[-_.]?lock[-_.]?(detect|mitigat)", re.I)
#: kernel/sysctl.c, proc_get_long(): strtoul() of base 0, so that 00 and 0x1 are numbers; what stands behind a blank is
#: not looked at; a number has at most 20 characters.
_NUMBER = re.compile(r"\s*(0[xX]0*[01]|0*[01])(?:\s.*)?", re.S)
_DIGITS = 20
_RUNNING = "proc/cmdline"
_LOGGED = "the log of the boot, Command line"
NOW = (_RUNNING, _LOGGED)  #: of the kernel that runs; all other places are for the next boot
_SYSCTL = re.compile(r"sysctl[./]kernel[./]split_lock_mitigate")


class Setting(NamedTuple):
    """One setting, where it was found."""

    where: str  #: the file, by its name on that machine; proc/cmdline: of the kernel that runs
    text: str
    counts: Known  #: at the next boot; of proc/cmdline: now
    why: str  #: why not, or why that is not known; may be empty


class Unused(NamedTuple):
    """Why a machine has no use for a setting, whatever it says; empty: it has."""

    detect: str = ""  #: for either: nothing is detected there
    mitigate: str = ""  #: for kernel.split_lock_mitigate: nobody is delayed there


def settings(root: Root, release: Release | None, unused: Unused, logged: str = "") -> list[Setting]:
    """All that is set, what is given to the running kernel first. `release`: of that kernel; None: not known.

    `logged`: its command line as its log has it, which counts where /proc/cmdline is not there.
    """
    running = booted(root)
    lines = [
        Line(_RUNNING, running, "yes") if running else Line(_LOGGED, logged, "yes"),
        *_built_in(root, release),
        *command_lines(root),
    ]
    read = [line for line in lines[1:] if not line.builds and line.used == "yes"]
    found = []
    for line in lines:
        for setting in _in_line(line, release, unused):
            if line.builds and setting.counts == "yes":
                setting = _built(setting, line, read, lines[0].text)
            found.append(setting)
    found += _bootconfig(root, release, unused)
    found += [_sysctl(one, unused) for one in sysctl.assignments(root, _KEY, _MEANT)]
    return list(dict.fromkeys(found))


def _in_line(line: Line, release: Release | None, unused: Unused) -> list[Setting]:
    """The words of a command line that are meant for us."""
    words = re.split("[\0- ]+", line.text)
    ours = [number for number, word in enumerate(words) if _MEANT.search(word)]
    last = {name: max((n for n in ours if _name(words[n]) == name), default=-1) for name in ("detect", "mitigate")}
    found = []
    for number in ours:
        word, name = words[number], _name(words[number])
        why = _wrong(word, release)
        if not why and name and number != last[name]:
            why = f"a later word of the same line counts: {words[last[name]]}"
        if not why:
            why = unused.detect if name == "detect" else unused.detect or unused.mitigate
        counts: Known = "no" if why else line.used
        found.append(Setting(line.where, word, counts, why or line.why))
    return found


def _name(word: str) -> str:
    """Which of the two the kernel takes a word for; empty: neither."""
    if word.startswith(parameter.NAME + "="):
        return "detect"
    return "mitigate" if _SYSCTL.match(word.strip('"')) else ""


def _wrong(word: str, release: Release | None) -> str:
    """Why the kernel does not know a word; empty: it does."""
    name = _name(word)
    key, _, value = word.partition("=")
    if name == "detect":
        return parameter.setting(value, ratelimit=not _lacks(release, versions.RATELIMIT)).ignored
    if name == "mitigate" and _lacks(release, versions.SYSCTL_ON_COMMAND_LINE):
        return "this kernel takes no sysctls from its command line (5.8 is the first that does)"
    if name == "mitigate":
        return _out_of_range(value.strip('"'))
    if key.strip("\"'") == parameter.NAME and key != parameter.NAME:
        return "the kernel takes the quote for a part of the name, and knows no such parameter"
    if re.search("mitigat", key, re.I):
        return f"it is no parameter of the kernel but a sysctl: sysctl.{MITIGATE}=0 would do it there"
    return f"the kernel knows no parameter of this name: it is {parameter.NAME}="


def _out_of_range(value: str) -> str:
    taken = _NUMBER.fullmatch(value)
    return "" if taken and len(taken[1]) <= _DIGITS else f"{value or 'nothing'} is not taken: the kernel allows 0 and 1"


def _built(setting: Setting, line: Line, read: list[Line], running: str) -> Setting:
    """Of a file that a loader's file is made of: was that done since?"""
    for one in read:
        if setting.text in one.text.split():
            return setting._replace(why=f"{one.where} has it")
    if read:
        return setting._replace(counts="no", why=f"{read[0].where} does not have it yet: {line.builds}")
    if setting.text in running.split():
        return setting._replace(why="the running kernel was given it")
    return setting._replace(counts="unknown", why=f"whether this was done is not known: {line.builds}")


def _built_in(root: Root, release: Release | None) -> list[Line]:
    """CONFIG_CMDLINE: words that the kernel was built with."""
    text = config.config(root, release)
    if not release or "CONFIG_CMDLINE_BOOL=y" not in text:
        return []
    words = re.findall(r'^CONFIG_CMDLINE="(.*)"$', text, re.M)
    known = has(versions.BUILT_IN_COMMAND_LINE, release)
    why = {"no": "this kernel looks for it in the boot loader's words alone",
           "unknown": "whether this kernel looks there for it is not known"}.get(known, "")  # fmt: skip
    return [Line(config.where(root, release), line.replace("\\", ""), known, why) for line in words]


def _lacks(release: Release | None, change: Change) -> bool:
    return release is not None and has(change, release) == "no"


def _bootconfig(root: Root, release: Release | None, unused: Unused) -> list[Setting]:
    """The kernel looks for split_lock_detect before it reads its bootconfig; sysctls are set later.

    From 7.3 on an embedded bootconfig may be read before (CONFIG_CMDLINE_FROM_BOOTCONFIG).
    """
    found = []
    early = (
        release
        and has(versions.BOOTCONFIG_COMMAND_LINE, release) == "yes"
        and "CONFIG_CMDLINE_FROM_BOOTCONFIG=y" in config.config(root, release)
    )
    for key, value in bootconfig(root):
        if not _MEANT.search(key):
            continue
        detect = key == f"kernel.{parameter.NAME}"
        if key == f"kernel.sysctl.{MITIGATE}":
            why = unused.detect or unused.mitigate or _out_of_range(value)
        elif detect and early:
            why = unused.detect or parameter.setting(value).ignored
        else:
            why = (
                "the kernel reads its bootconfig too late for it"
                if detect
                else _wrong(key.removeprefix("kernel."), release)
            )
        counts: Known = "no" if why else "unknown" if detect else "yes"  # it counts if it is the embedded one
        found.append(Setting("proc/bootconfig", f"{key} = {value}", counts, why))
    return found


def _sysctl(one: sysctl.Assignment, unused: Unused) -> Setting:
    why = one.why
    if one.counts == "yes":
        why = unused.detect or unused.mitigate or _out_of_range(one.text.partition("=")[2].strip())
    return Setting(one.where, one.text, "no" if why else "yes", why)
