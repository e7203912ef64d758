"""Where does a machine keep its kernel's log? The likeliest place to have it whole comes first."""

from __future__ import annotations

import os
from typing import NamedTuple

from splitlock.host.log import rotated, sources

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from splitlock.host.log.sources import Source
    from splitlock.host.root import Root


class Place(NamedTuple):
    """`ends`: it goes on to when it was taken, was saved at boot (False), or nobody knows (None).

    `ring`: the kernel, or the journal for this boot, was asked for it.
    """

    source: Source
    ends: bool | None
    ring: bool = False


#: What an sosreport asked for.
_ASKED = ("sos_commands/kernel/dmesg", "sos_commands/kernel/dmesg_-T", "sos_commands/general/dmesg",
          "sos_commands/logs/journalctl_--no-pager_--boot")  # fmt: skip
#: What a person, or a link of an sosreport's, calls the same; what syslog daemons write; what was saved at boot.
_FILES = (("dmesg", True), ("var/log/kern.log", True), ("var/log/messages", True), ("var/log/syslog", True),
          ("var/log/dmesg", False))  # fmt: skip
_JOURNALS = ("var/log/journal", "run/log/journal")


def places(root: Root) -> Iterator[Place]:
    """All that a machine has."""
    if root.live:
        yield Place(sources.Kmsg(follow=False), True, True)
        if any(root.exists(place) for place in _JOURNALS):
            yield Place(sources.Journal("the journal", "--boot", live=True), True, True)
    for place, ends in (*((asked, True) for asked in _ASKED), *_FILES):
        directory, _, base = place.rpartition("/")
        names = [name for name in root.names(directory) if rotated.family(name) == base]
        if names and not (root.live and base == "dmesg"):
            ordered = [os.path.join(directory, name) for name in sorted(names, key=rotated.age)]
            yield Place(_stored(root, place, ordered), ends, place in _ASKED)
    for place in () if root.live else _JOURNALS:
        names = [name for name in root.files(place) if name.endswith((".journal", ".journal~"))]
        if names:
            yield Place(_stored(root, place, names), True)


def _stored(root: Root, place: str, names: list[str]) -> Source:
    return sources.Stored(*names, name=place, opened=root.handle)
