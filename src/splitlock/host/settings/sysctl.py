"""Which assignment of a sysctl will systemd-sysctl make at boot, and which files does nobody read?

Source: sysctl.d(5), systemd-sysctl.service(8); sysctl(8) for /etc/sysctl.conf.
"""

from __future__ import annotations

import fnmatch
from typing import Literal, NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re
    from collections.abc import Iterator

    from splitlock.host.root import Root

#: The first of them that has a file of some name is the one whose file is read; /lib is where /usr is not merged.
_PLACES = ("etc/sysctl.d", "run/sysctl.d", "usr/local/lib/sysctl.d", "usr/lib/sysctl.d", "lib/sysctl.d")
_OLD = "etc/sysctl.conf"
#: What starts a system without systemd: then it is sysctl(8) that sets, and it reads /etc/sysctl.conf too.
_OTHERS = ("sbin/openrc", "sbin/openrc-run", "etc/runit", "etc/s6", "etc/alpine-release", "etc/inittab")


class Assignment(NamedTuple):
    """A line of such a file."""

    where: str
    text: str  #: the line
    counts: Literal["yes", "no"]
    why: str  #: why it does not


class _Line(NamedTuple):
    where: str
    text: str
    key: str  #: with / for .; may be a pattern
    value: str | None  #: None: the key is kept out of patterns


def assignments(root: Root, key: str, like: re.Pattern[str]) -> list[Assignment]:
    """The lines that set `key` (kernel/split_lock_mitigate), or look `like` it, in files of sysctls."""
    read, unread = _files(root)
    lines = [line for where in read for line in _lines(where, root.text(where))]
    winner = _winner(lines, key)
    found = []
    for line in lines:
        if line is winner:
            found.append(Assignment(line.where, line.text, "yes", ""))
        elif _sets(line, key):
            why = f"{winner.where} sets it later" if winner and winner.where != line.where else "a later line sets it"
            found.append(Assignment(line.where, line.text, "no", why if winner else "another line keeps it out"))
        elif like.search(line.text):
            found.append(Assignment(line.where, line.text, "no", f"no sysctl has this name: {key.replace('/', '.')}"))
    for where, why in unread.items():
        for line in _lines(where, root.text(where)):
            if _sets(line, key) or like.search(line.text):
                found.append(Assignment(line.where, line.text, "no", why))
    return found


def _files(root: Root) -> tuple[list[str], dict[str, str]]:
    """The files that are read, in their order, and those that are not, with the reason."""
    chosen: dict[str, str] = {}
    unread: dict[str, str] = {}
    for place in _PLACES:
        for name in root.names(place):
            where = f"{place}/{name}"
            if not name.endswith(".conf"):
                unread[where] = "nobody reads it: its name does not end in .conf"
            elif name not in chosen:
                chosen[name] = where
            elif not _same(root, where, chosen[name]):
                unread[where] = f"{chosen[name]} takes its place" + (
                    "" if root.text(chosen[name]) else ", and is empty"
                )
    read = [chosen[name] for name in sorted(chosen)]
    if root.exists(_OLD) and not any(_same(root, where, _OLD) for where in read):
        if any(root.exists(place) for place in _OTHERS) and not root.exists("usr/lib/systemd/systemd-sysctl"):
            read.append(_OLD)
        else:
            unread[_OLD] = "systemd does not read it: put it into a file of /etc/sysctl.d"
    return read, unread


def _same(root: Root, one: str, other: str) -> bool:
    """Are both names of one file?"""
    first = root.identity(one)
    return first is not None and first == root.identity(other)


def _lines(where: str, text: str | None) -> Iterator[_Line]:
    for line in (text or "").splitlines():
        line = line.strip()
        name, equals, value = line.partition("=")
        name = name.strip()
        keeps_out = name.startswith("-")  # from patterns; of an assignment: a failure of it is none
        name = name.removeprefix("-").strip()
        if not name or line[0] in "#;" or not (equals or keeps_out):
            continue
        if (slash := name.find("/")) < 0 or 0 <= name.find(".") < slash:  # the first separator decides
            name = name.translate(str.maketrans("./", "/."))
        yield _Line(where, line, name, value.strip() if equals else None)


def _sets(line: _Line, key: str) -> bool:
    return line.value is not None and (line.key == key or _fits(line.key, key))


def _fits(pattern: str, key: str) -> bool:
    """glob(7): a pattern has *, ? or [, none of which stands for a /."""
    if not any(letter in pattern for letter in "*?["):
        return False
    parts, names = pattern.replace("[^", "[!").split("/"), key.split("/")
    return len(parts) == len(names) and all(map(fnmatch.fnmatchcase, names, parts))


def _winner(lines: list[_Line], key: str) -> _Line | None:
    """The last assignment by name; by a pattern only where no line names the key."""
    named = [line for line in lines if line.key == key]
    if named:
        return named[-1] if named[-1].value is not None else None
    patterns = [line for line in lines if _sets(line, key)]
    return patterns[-1] if patterns else None
