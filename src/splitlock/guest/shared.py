"""What the plugin counts: the file it shares with us, laid out as in plugin/shared.h says."""

from __future__ import annotations

import mmap
import os
import struct
from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

CPUS, ENTRIES, _TABLE = 256, 1 << 16, 1 << 16
HYPERVISOR = 0xFFFF_0000  #: asked, plus the number of a hypervisor: who is that?
LOAD = (1 << 32) - 1  #: asked instead of an entry's number: the boot sector waits for what it is to boot
_MOST_PLACES = 4096
#: bits of Entry.flags
NESTED, SMM, AFTER_BOOT_SECTOR, KNOWS_REGISTERS, VMX_ROOT, LEVEL_2 = 1, 2, 4, 8, 16, 32
_ENTRY = struct.Struct("<12Q8Q7QI4B16s")
_HEAD = struct.Struct("<II10Q")
_LOOK = struct.Struct("<Q")
_TASKS = _HEAD.size + _LOOK.size
_KERNEL = struct.Struct("<5Q")
_ESCAPED = struct.Struct("<QQ")
_ESCAPES = _TASKS + _KERNEL.size + 8 * CPUS
_PLACES = _ESCAPES + _ESCAPED.size
_ARMED = _PLACES + 8 * _MOST_PLACES
_SEEN = struct.Struct("<QQ")
_SEEN_AT = _ARMED + CPUS
_HYPERVISOR = struct.Struct("<3Q")


class Entry(NamedTuple):
    """A locked instruction that crossed, as one program runs it: plugin/shared.h's struct entry.

    `hits`: it executed; `traps`: exceptions raised for it instead, or behind it; registers are those at the first hit.
    """

    hits: int = 0
    traps: int = 0
    signals: int = 0
    trapped_at: int = 0
    waited: int = 0
    longest: int = 0
    waits: int = 0
    pc: int = 0
    address: int = 0
    task: int = 0
    started: int = 0
    execs: int = 0
    cr0: int = 0
    cr3: int = 0
    cr4: int = 0
    efer: int = 0
    eflags: int = 0
    cs: int = 0
    gs_base: int = 0
    k_gs_base: int = 0
    host_cr3: int = 0
    space: int = 0
    host_rip: int = 0
    exits: int = 0
    injected: int = 0
    delivered: int = 0
    triple_faults: int = 0
    vcpu: int = 0
    size: int = 0
    length: int = 0
    mode: int = 0
    flags: int = 0
    code: bytes = b""


class Totals(NamedTuple):
    """The counters: the beginning of plugin/shared.h's struct header."""

    api: int  #: QEMU's plugin interface, 0 when the plugin was not loaded
    knows: int  #: bit 0 registers, bit 1 the code's mode
    sites: int  #: locked instructions translated
    hits: int  #: in all
    lost: int  #: those of them in no entry
    entries: int
    boot_sector: int  #: one has run
    traps: int
    resets: int
    clock: int  #: of the machine at the last exception, in nanoseconds, 0 where its time is ours
    cr3: int  #: what it was in the kernel when `look` was last answered
    cr4: int  #: the same


class Entered(NamedTuple):
    """Who enters virtual machines: where a VM exit goes on, the host's page tables then, and VM entries until now."""

    rip: int
    cr3: int
    entries: int


class Shared:
    """The file, in memory only. `fd` is inherited by QEMU."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("splitlock-shared")
        size = _TABLE + ENTRIES * _ENTRY.size
        os.truncate(self.fd, size)
        self._map = mmap.mmap(self.fd, size)

    def totals(self) -> Totals:
        """The counters, as they are now."""
        return Totals(*_HEAD.unpack_from(self._map))

    def look(self) -> None:
        """Ask for `cr3` and `cr4` anew."""
        _LOOK.pack_into(self._map, _HEAD.size, 1)

    def entry(self, number: int) -> Entry:
        """One entry, as it is now; its hits may still grow."""
        return Entry(*_ENTRY.unpack_from(self._map, _TABLE + number * _ENTRY.size))

    def entries(self) -> Iterator[Entry]:
        """All of them, in the order of their first hits."""
        return map(self.entry, range(min(self.totals().entries, ENTRIES)))

    def turned_on(self) -> bool:
        """Whether software has ever turned split-lock detection on."""
        return bool(_SEEN.unpack_from(self._map, _SEEN_AT)[0])

    def hypervisors(self) -> list[Entered]:
        """In the order of their first VM entries."""
        count = int(_SEEN.unpack_from(self._map, _SEEN_AT)[1])
        first = _SEEN_AT + _SEEN.size
        return [
            Entered(*_HYPERVISOR.unpack_from(self._map, first + number * _HYPERVISOR.size)) for number in range(count)
        ]

    def tell_tasks(
        self, direct_map: int, started: int, execs: int, exec_bytes: int, send_fault: int, current: dict[int, int]
    ) -> None:
        """Say where the running task is to be had: `current` has the physical address of its pointer by vCPU."""
        pointers = [current.get(cpu, 0) for cpu in range(CPUS)]
        values = struct.pack(f"<{CPUS}Q", *pointers)
        at = _TASKS + _KERNEL.size
        if self._map[at : at + len(values)] != values:
            self._map[at : at + len(values)] = bytes(len(values))  # first none, then another kernel's places
            _KERNEL.pack_into(self._map, _TASKS, direct_map, started, execs, exec_bytes, send_fault)
            self._map[at : at + len(values)] = values

    # what splitlock does itself, while the guest stands still (stub/stops.py)

    def escaped(self) -> int:
        """Split locks that executed on an armed vCPU."""
        return int(_ESCAPED.unpack_from(self._map, _ESCAPES)[0])

    def places(self) -> tuple[set[int], int]:
        """Linear addresses of instructions that read or write MSRs or DR6, and for how many more there was no room."""
        met = int(_ESCAPED.unpack_from(self._map, _ESCAPES)[1])
        count = min(met, _MOST_PLACES)
        return set(struct.unpack_from(f"<{count}Q", self._map, _PLACES)), met - count

    def arm(self, vcpu: int, on: bool) -> None:
        """Whether what splits on the vCPU has escaped."""
        self._map[_ARMED + vcpu] = on

    def looked(self, cr3: int, cr4: int) -> None:
        """Answer `look`."""
        struct.pack_into("<QQ", self._map, _HEAD.size - 16, cr3, cr4)

    def _bump(self, field: str) -> None:
        """One more in a total."""
        at = 8 * Totals._fields.index(field) - 8  # the first two are of 4 bytes
        _LOOK.pack_into(self._map, at, _LOOK.unpack_from(self._map, at)[0] + 1)

    def add(self, entry: Entry) -> int | None:
        """A new entry; its number, None where there is no more room."""
        number = self.totals().entries
        if number >= ENTRIES:
            return None
        _ENTRY.pack_into(self._map, _TABLE + number * _ENTRY.size, *entry)
        self._bump("entries")
        return number

    def add_trap(self, number: int | None, now: int) -> None:
        """One more exception, of an entry. `now`: nanoseconds of the monotonic clock; 0: it has executed before."""
        self._bump("traps")
        if number is None:
            return
        entry = self.entry(number)
        entry = entry._replace(traps=entry.traps + 1, trapped_at=entry.trapped_at or now)
        _ENTRY.pack_into(self._map, _TABLE + number * _ENTRY.size, *entry)

    def add_hit(self, number: int | None, now: int) -> None:
        """One more execution, of an entry. `now`: as in `add_trap`."""
        self._bump("hits")
        if number is None:
            self._bump("lost")
            return
        entry = self.entry(number)
        if entry.trapped_at:
            waited = now - entry.trapped_at
            entry = entry._replace(
                trapped_at=0, waited=entry.waited + waited, longest=max(entry.longest, waited), waits=entry.waits + 1
            )
        _ENTRY.pack_into(self._map, _TABLE + number * _ENTRY.size, *entry._replace(hits=entry.hits + 1))

    def add_signal(self, number: int) -> None:
        """One more SIGBUS for its exceptions."""
        entry = self.entry(number)
        entry = entry._replace(signals=entry.signals + 1, trapped_at=0)
        _ENTRY.pack_into(self._map, _TABLE + number * _ENTRY.size, *entry)

    def add_reset(self) -> None:
        """The machine began anew."""
        self._bump("resets")

    def close(self) -> None:
        """Free it."""
        self._map.close()
        os.close(self.fd)
