"""Which guests of which hypervisors are there to try? The hypervisors' sources: inside/vmm.c and inside/blind.c."""

from __future__ import annotations

from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.report.matrix_vmx import Guest, Hypervisor

HYPERVISORS: tuple[Hypervisor, ...] = ("kvm", "forward", "through", "off", "handle")
GUESTS: tuple[Guest, ...] = (
    "real", "kernel", "kernel_idt", "user_idt", "am_idt", "ac_idt", "asked", "asked_idt", "wrmsr_idt",
    "linux_user", "linux_module",
)  # fmt: skip
_BLIND_HAS = ("kernel", "kernel_idt")
_ITS_GUEST = "blind.ko's guest is 64-bit code at CPL 0, in the host's own page tables"


class Pair(NamedTuple):
    """A hypervisor and a guest of its."""

    hypervisor: Hypervisor
    guest: Guest

    @property
    def kind(self) -> str:
        """What inside/init.c calls it."""
        return (
            f"kvm_{self.guest}" if self.hypervisor == "kvm" else f"blind_{self.hypervisor}{self.guest[len('kernel') :]}"
        )

    @property
    def impossible(self) -> str | None:
        """Why this hypervisor cannot have this guest; None: it can."""
        return None if self.hypervisor == "kvm" or self.guest in _BLIND_HAS else _ITS_GUEST


PAIRS = {pair.kind if not pair.impossible else f"{hypervisor} {guest}": pair
         for hypervisor in HYPERVISORS for guest in GUESTS for pair in [Pair(hypervisor, guest)]}  # fmt: skip
