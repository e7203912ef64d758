"""Whose are the lines that nobody looks at, and does a boot begin there? By the host's name and the kernel's clock.

A log is millions of lines that have nothing to do with split locks. But they tell that a second machine writes into the
same log, and that the machine was started anew where the first line of that boot is missing: the clock goes back.
"""

from __future__ import annotations

import re

from splitlock.host.log.wrappings import LOCAL, Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# A line of the kernel's as syslog daemons and journalctl have it: groups 1 and 2 are host and clock; as the kernel
# itself has it, or `journalctl -o short-monotonic`: clock and host; what journalctl puts between boots.
_LINE = re.compile(
    rb"^(?:<\d+>)?(?:1 )?(?:"
    rb"(?:[A-Z][a-z]{2} [ \d]\d [\d:]{8}(?:\.\d+)?|[A-Z][a-z]{2} \d{4}-\d\d-\d\d [\d:.]+ \S+|\d{4}-\d\d-\d\dT[^\s,]+"
    rb"|\d{4}-\d\d-\d\d [\d:]{8}(?:[.,]\d+)?(?: ?[+-]\d\d:?\d\d)?|\d{9,}\.\d+)"
    rb" ([^\s:\[\]/]+) (?:[a-z]\w*\.[a-z]+ )?kernel(?:\[0\])?(?::| - - -) *(?:\[ *(\d{1,12})\.\d{1,9}\])?"
    rb"|(?:\w+ *:\w+ *: ?)?\[ *(\d{1,12})\.\d{1,9}\](?: ([^\s:\[\]/]+) kernel:)?"
    rb"|(-- Boot [0-9a-f]{32} --|-- Reboot --))",
    re.M,
)
_OWN = re.compile(rb"^(?:<\d+>)?(?:\w+ *:\w+ *: ?)?\[ *(\d{1,12})\.\d{1,9}\]", re.M)
_TAGGED = re.compile(rb" kernel: \[ *(\d{1,12})\.\d{1,9}\]")
_BACK = 5  # seconds; processors' clocks differ, and lines change places
_HOSTS = 1000  # that are kept apart


class Passing:
    """Told of all lines of a log, in order."""

    def __init__(self) -> None:
        self.clocks: dict[str, int] = {}  #: by host, the seconds since boot of its last line; -1: it has none
        self._last: tuple[bytes, str] | None = None  # the host that came last: with the tag behind it, and alone

    def see(self, whole: bytes) -> Iterator[Record]:
        """What whole lines say: that a host is there, that a boot of its begins."""
        if self._nothing_new(whole):
            return
        for host, clock, own, named, between in _LINE.findall(whole):
            if between:
                self.clocks = dict.fromkeys(self.clocks, -1)
                yield Record(None, read=0, anew=True)
            else:
                name = (host or named).decode("utf-8", "replace")
                self._last = (b" %b kernel: " % host, name) if host else self._last
                yield from self.tell(name, int(clock or own or -1))

    def _nothing_new(self, whole: bytes) -> bool:
        """Is all of it one known host's, and does its clock go on? This is faster than to look at each line."""
        if b"-- " in whole:
            return False
        if not (kernels := whole.count(b" kernel")):
            host, clocks = LOCAL, [*map(int, _OWN.findall(whole))]
        elif b"\n[" in whole or whole.startswith(b"[") or self._last is None or whole.count(self._last[0]) != kernels:
            return False
        else:
            host, clocks = self._last[1], [*map(int, _TAGGED.findall(whole))]
        if not clocks:
            return not kernels or host in self.clocks
        if self.clocks.get(host, 1 << 62) > clocks[0] or clocks != sorted(clocks):
            return False
        self.clocks[host] = clocks[-1]
        return True

    def tell(self, host: str, clock: int) -> Iterator[Record]:
        """The same for a record: its host, empty where nothing tells; its clock, -1 where it has none."""
        host = host or LOCAL
        before = self.clocks.get(host)
        if before is None and len(self.clocks) >= _HOSTS:
            return
        if before is None or clock >= 0:
            self.clocks[host] = clock
        if before is None or 0 <= clock < before - _BACK:
            yield Record(None, read=0, host=host, anew=before is not None)
