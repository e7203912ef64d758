"""What does the guest make of an exception that reaches it?

Sources: SDM volume 3, interrupt 17 (a fault: the saved IP is the instruction); model/kernel.py for Linux.
"""

from __future__ import annotations

from typing import NamedTuple

from splitlock.model.cpu import Access, Processor, Trap
from splitlock.model.kernel import Answer, Linux, Locks, alignment_check, bus_lock


class Guest(NamedTuple):
    """A guest's kernel, and what its hypervisor shows it."""

    linux: Linux | None  #: None: a system that is not Linux
    split_locks: bool = False  #: shown split-lock detection (by ACRN)
    bus_locks: bool = False  #: shown bus-lock detection (by KVM on Intel)

    @property
    def processor(self) -> Processor:
        """As its kernel uses it: a Linux that sees that it is a guest leaves `#AC` alone (split_lock_setup())."""
        return Processor(split_locks=self.split_locks and self.linux is None, bus_locks=self.bus_locks)

    @property
    def own(self) -> bool:
        """Has it turned split-lock detection on itself? Taken so of other systems that are shown it."""
        return self.processor.split_locks


def takes(guest: Guest, exception: Trap, access: Access, locks: Locks, amd: bool) -> Answer:
    """What comes of it."""
    processor = guest.processor._replace(amd=amd)
    if exception == "#DB":
        if guest.linux is not None:  # DR6's bus-lock bit alone sends no signal: exc_debug_user()
            return bus_lock(guest.linux, processor, locks)
        what = "takes it for a single step that nobody asked for, and ends the program"
        return Answer("sigbus", what, "commit 433265870ab3, bugzilla.kernel.org 219787")
    if access.bits == 16:
        what = "whatever its handler does, it returns to the instruction, which traps again"
        return Answer("livelock", what, "SDM volume 3, interrupt 17")
    if guest.linux is not None:
        return alignment_check(guest.linux, processor, access, locks)
    if guest.own:
        return Answer(
            "sigbus", "turned detection on itself, and ends who split a lock, as it meant to", "SDM 3, interrupt 17"
        )
    if access.user:
        return Answer("sigbus", "takes it for a failed alignment check: ends the program", "LWN 816918")
    return Answer("panic", "an exception that its kernel does not expect: it stops", "LWN 816918")
