"""What does the processor raise for a split lock?

Sources: Intel SDM volume 3, "Interrupt 17 - Alignment Check Exception" and "Bus-Lock Detection"; volume 4, MSRs 0x33
(TEST_CTRL), 0xCF (IA32_CORE_CAPABILITIES), 0x1D9 (DEBUGCTL); AMD APM volume 2, "Bus Lock Trap".
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from splitlock.linux.detection import Processor, Trap

Where = Literal["user", "kernel", "interrupt"]


__all__ = ["ALIGNED_NS", "SPLIT_NS", "Access", "Core", "Processor", "Trap", "Where", "raises"]

SPLIT_NS, ALIGNED_NS = 4658.0, 6.3  # ns of one split and one aligned `lock xadd`, measured on one machine


class Core(NamedTuple):
    """One core's two switches."""

    test_ctrl: bool = False  #: TEST_CTRL bit 29
    debugctl: bool = False  #: DEBUGCTL bit 2


class Access(NamedTuple):
    """A locked instruction whose operand crosses a cache line, and the state that it runs in."""

    where: Where = "user"
    ac: bool = False  #: EFLAGS.AC
    am: bool = True  #: CR0.AM; Linux sets it
    bits: Literal[16, 32, 64] = 64  #: of the code; 16 is real mode, which has CPL 0
    emulated: bool = False  #: in a guest: KVM's instruction emulator performs it
    prefixed: bool = False  #: another prefix stands before LOCK (66 F0 ...); ACRN looks at the first byte

    @property
    def user(self) -> bool:
        """At CPL 3?"""
        return self.where == "user" and self.bits != 16

    @property
    def asked(self) -> bool:
        """Does the program want alignment checks? (SDM volume 3, interrupt 17)"""
        return self.user and self.am and self.ac


def raises(processor: Processor, core: Core, access: Access) -> Trap | None:
    """The exception. `#AC` comes instead of the instruction (a fault), `#DB` behind it (a trap).

    Whatever crosses a line is misaligned too, so who asks for alignment checks gets `#AC` with detection off.
    """
    if processor.split_locks and core.test_ctrl:
        return "#AC"  # at any CPL
    if processor.alignment and access.asked:
        return "#AC"
    if processor.bus_locks and core.debugctl and access.user:
        return "#DB"
    return None
