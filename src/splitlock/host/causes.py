"""Is the cause of a trap or of an oops a known one? causes.toml, and files of others in its form, checked strictly."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import msgspec

from splitlock._errors import SplitlockError
from splitlock.host.oops.words import foreign_caller
from splitlock.linux.versions import Change, Release, Version, has, release
from splitlock.report.oops import KnownCause

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from splitlock.report.oops import Oops
    from splitlock.report.watch import Event

SHIPPED = Path(__file__).with_name("causes.toml")
_LARGEST = 1 << 20  # bytes of a file


class _Entry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A [[cause]] as it is written. `since`: the first Linux that has it; `fixed`: those that no longer do, mainline's
    first, then the first of each stable series."""

    name: str
    what: str
    versions: str = ""
    since: str = ""
    fixed: list[str] = []
    fix: str
    links: list[str]
    comms: list[str] = []
    modules: list[str] = []
    functions: list[str] = []
    callers: list[str] = []


class _File(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    cause: list[_Entry]


class Causes:
    """The known causes; `paths`: more files of them. Raises SplitlockError where one does not hold together."""

    def __init__(self, paths: Iterable[str] = ()) -> None:
        self._entries: list[_Entry] = []
        for path in (str(SHIPPED), *paths):
            for entry in _read(path):
                if any(entry.name == other.name for other in self._entries):
                    raise SplitlockError(f"{path}: two causes are called {entry.name!r}; give one another name", 2)
                self._entries.append(entry)

    def of_event(self, event: Event) -> list[KnownCause]:
        """Those that a line's task, or an oops, has."""
        if event.oops is not None:
            return self.of_oops(event.oops)
        return self.of_task(event.comm) if event.kind in ("trap", "guest", "killed") else []

    def of_task(self, comm: str) -> list[KnownCause]:
        """Those that a task of that name has."""
        return [_shown(entry, "task") for entry in self._entries if _matches(entry.comms, comm)]

    def of_oops(self, oops: Oops) -> list[KnownCause]:
        """Those that an oops's function, module and callers fit. Callers marked as unreliable do not count. Where a
        module from outside Linux is among the callers, it is suspected first, and no fault of Linux's is shown."""
        if oops.place is None or oops.inferred:
            return []
        callers, kernel = [frame.function for frame in oops.frames if frame.reliable], release(oops.release)
        return [
            _shown(entry, "oops")
            for entry in self._entries
            if (entry.modules or entry.functions)
            and (not entry.functions or _matches(entry.functions, oops.place.function))
            and (not entry.modules or _matches(entry.modules, oops.place.module or ""))
            and (not entry.callers or any(_matches(entry.callers, caller) for caller in callers))
            and not (kernel and _excludes(entry, kernel))
            and (entry.modules or foreign_caller(oops) is None)
        ]


def _excludes(entry: _Entry, kernel: Release) -> bool:
    """Is it certain that a kernel does not have the cause? A kernel whose name does not tell may have it."""
    if entry.since and has(Change(entry.name, "the fault", _series(entry.since), ""), kernel) == "no":
        return True
    if not entry.fixed:
        return False
    mainline, *others = entry.fixed
    stable = {found.series: found.patch for each in others if (found := release(each)) and found.patch is not None}
    mended = Change(entry.name, "the fix", _series(mainline), "", stable=stable, fix=True)
    return has(mended, kernel) == "yes"


def _series(text: str) -> Version:
    found = release(text)
    assert found is not None  # _check has seen to it
    return found.series


def _matches(patterns: list[str], name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _shown(entry: _Entry, by: Literal["task", "oops"]) -> KnownCause:
    return KnownCause(
        name=entry.name, by=by, what=entry.what, versions=entry.versions, fix=entry.fix, links=entry.links
    )


def _read(path: str) -> list[_Entry]:
    try:
        with open(path, "rb") as file:
            text = file.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            raise SplitlockError(f"{path}: more than {_LARGEST >> 20} MB; that is no file of causes", 2)
        entries = msgspec.toml.decode(text, type=_File).cause
    except OSError as error:
        raise SplitlockError(f"{path}: {error.strerror}; name a file that is there and yours to read", 2) from None
    except (ValueError, RecursionError) as error:  # msgspec's too; numbers of 5,000 digits, thousands of brackets
        raise SplitlockError(f"{path}: {error}; docs/oops.md says what a cause is made of", 2) from None
    for entry in entries:
        _check(path, entry)
    return entries


def _check(path: str, entry: _Entry) -> None:
    if not (entry.comms or entry.modules or entry.functions):
        raise SplitlockError(f"{path}: cause {entry.name!r} fits nothing; give it comms, modules or functions", 2)
    if entry.callers and not (entry.modules or entry.functions):
        raise SplitlockError(f"{path}: cause {entry.name!r}: callers go with functions or modules; add one", 2)
    for number in (entry.since, *entry.fixed):
        if number and (not all(part.isdigit() for part in number.split(".")) or release(number) is None):
            raise SplitlockError(f"{path}: cause {entry.name!r}: {number!r} is no release of Linux; write 6.9", 2)
    for link in entry.links:
        if not link.startswith("https://"):
            raise SplitlockError(f"{path}: cause {entry.name!r}: {link!r} is no link; write https://...", 2)
    if not entry.links:
        raise SplitlockError(f"{path}: cause {entry.name!r} has no links; say where it was found out", 2)
