"""How is the image run on bare /dev/kvm? On a machine with 1 MiB, one processor, a serial port and CMOS memory.

No firmware: the image calls none. It is started anew after a reset, as a PC would be, and goes on with the next row.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fcntl import ioctl
from types import FrameType

from splitlock._errors import SplitlockError
from splitlock.guest.probe import kvm_abi as abi
from splitlock.guest.probe.emulator import INTERRUPTED, Ran, open_kvm
from splitlock.guest.probe.image import ENTRY, code
from splitlock.guest.probe.log import LIMIT, read

_MEMORY = 1 << 20  # bytes
_TSS = 0x7FFBD000  # three pages, which kvm_intel wants where the guest has no memory; ioctl() takes 31 bits
_LEAVES = 256  # CPUID entries; KVM has 100 or so
_ENTRY = struct.Struct("<10I")  # struct kvm_cpuid_entry2: leaf, index, flags, EAX, EBX, ECX, EDX, padding
_HYPERVISOR = 1 << 31  # of CPUID.1's ECX, which VMMs set
_SIGNATURE, _TIMING = 0x40000000, 0x40000010  # leaves of the hypervisor's; the second has the TSC's kHz in EAX
_TICK = 0.05  # seconds
_SERIAL, _STATUS, _CMOS_INDEX, _CMOS_DATA = 0x3F8, 0x3FD, 0x70, 0x71
_EMPTY = 0x60  # of the line status: the transmitter is free
_COM1 = range(0x3F8, 0x400)


def run(seconds: float) -> Ran:
    """Run the image to its end, for so many seconds. Raises SplitlockError where KVM cannot be used."""
    image = code()
    log, cmos = bytearray(), bytearray(128)
    deadline = time.monotonic() + seconds
    ended, last = "", -1
    with ExitStack() as stack:
        kvm = open_kvm()
        stack.callback(os.close, kvm)
        try:
            if ioctl(kvm, abi.GET_API_VERSION, 0) != abi.API_VERSION:
                raise SplitlockError("/dev/kvm: not the KVM API of Linux 2.6.22 and later; use --qemu tcg", 2)
            while not ended:
                with _Processor(kvm, image, log, cmos) as processor, _ticks():
                    ended = processor.run(deadline, seconds)
                told = read(bytes(log))
                if told.over:
                    return Ran(bytes(log), "")
                row = max((row.number for row in told.rows), default=-1)
                if ended.startswith("KVM_EXIT") and row > last:
                    ended, last = "", row
        except KeyboardInterrupt:
            ended = INTERRUPTED
        except OSError as error:
            raise SplitlockError(f"/dev/kvm: {error.strerror}; use --qemu tcg", 2) from None
    return Ran(bytes(log), ended, ended.startswith("KVM_EXIT"))


@contextmanager
def _ticks() -> Iterator[None]:
    """Interrupt KVM_RUN again and again, so that a deadline is seen however the guest spends its time.

    And outlive the SIGBUS that Linux sends for a guest's split lock in the mode `fatal`, before KVM_EXIT_EXCEPTION.
    """

    def tick(_: int, __: FrameType | None) -> None:
        pass

    before = {number: signal.signal(number, tick) for number in (signal.SIGALRM, signal.SIGBUS)}
    signal.setitimer(signal.ITIMER_REAL, _TICK, _TICK)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _as_a_vmm_has_them(leaves: bytearray, khz: int) -> bytearray:
    """CPUID's entries with the hypervisor's bit, and with the frequency of the guest's time-stamp counter.

    This machine has no timer by which the image could measure it. QEMU gives the same leaf (vmware-cpuid-freq).
    """
    number = int.from_bytes(leaves[:4], "little")
    entries = [list(one) for one in _ENTRY.iter_unpack(leaves[8 : 8 + _ENTRY.size * number])]
    for entry in entries:
        if entry[0] == 1:
            entry[5] |= _HYPERVISOR
        elif entry[0] == _SIGNATURE:
            entry[3] = _TIMING
    entries = [entry for entry in entries if entry[0] != _TIMING]
    entries.append([_TIMING, 0, 0, khz, 0, 0, 0, 0, 0, 0])
    return bytearray(struct.pack("<II", len(entries), 0) + b"".join(_ENTRY.pack(*entry) for entry in entries))


class _Processor:
    """One boot of the machine: memory and a processor as they are after power-on."""

    def __init__(self, kvm: int, image: bytes, log: bytearray, cmos: bytearray) -> None:
        self.log, self.cmos, self.index = log, cmos, 0
        self._stack = ExitStack()
        with ExitStack() as stack:
            machine = ioctl(kvm, abi.CREATE_VM, 0)
            stack.callback(os.close, machine)
            ioctl(machine, abi.SET_TSS_ADDR, _TSS)
            memory = stack.enter_context(mmap.mmap(-1, _MEMORY))
            memory[ENTRY : ENTRY + len(image)] = image
            place = ctypes.c_char.from_buffer(memory)
            region = abi.MemoryRegion(size=_MEMORY, memory=ctypes.addressof(place))
            del place  # or the mapping could not be closed
            ioctl(machine, abi.SET_USER_MEMORY_REGION, region)
            self.vcpu = ioctl(machine, abi.CREATE_VCPU, 0)
            stack.callback(os.close, self.vcpu)
            self.state = stack.enter_context(mmap.mmap(self.vcpu, ioctl(kvm, abi.GET_VCPU_MMAP_SIZE, 0)))
            self._start(kvm)
            self._stack = stack.pop_all()

    def __enter__(self) -> _Processor:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self, kvm: int) -> None:
        leaves = bytearray(8 + 40 * _LEAVES)
        leaves[:4] = _LEAVES.to_bytes(4, "little")
        ioctl(kvm, abi.GET_SUPPORTED_CPUID, leaves)
        ioctl(self.vcpu, abi.SET_CPUID2, _as_a_vmm_has_them(leaves, ioctl(self.vcpu, abi.GET_TSC_KHZ, 0)))
        special = abi.Sregs()
        ioctl(self.vcpu, abi.GET_SREGS, special)
        for segment in special.segments[:6]:
            segment.base = segment.selector = 0
        special.control[0] = 0x10  # CR0: ET; caches on, as firmware leaves them
        ioctl(self.vcpu, abi.SET_SREGS, special)
        ioctl(self.vcpu, abi.SET_REGS, abi.Regs(rip=ENTRY, rflags=2))

    def run(self, deadline: float, seconds: float) -> str:
        """Run until the processor stops; gives why."""
        while True:
            if time.monotonic() > deadline:
                return f"no end after {seconds:g} s; give it longer with --timeout"
            try:
                ioctl(self.vcpu, abi.RUN, 0)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.EAGAIN):
                    continue
                return f"KVM_RUN: {error.strerror}"
            head = abi.RunHead.from_buffer_copy(self.state)
            if head.exit_reason == abi.EXIT_IO:
                self._port(head)
            elif head.exit_reason != abi.EXIT_INTR:
                name = f"KVM_EXIT_{abi.EXITS.get(head.exit_reason, head.exit_reason)}"
                emulation = head.exit_reason == abi.EXIT_INTERNAL_ERROR and head.direction == abi.EMULATION
                return f"{name}: KVM cannot emulate an instruction" if emulation else name

    def _port(self, head: abi.RunHead) -> None:
        """An access to an I/O port; where nothing is, reads give ones."""
        place = head.data_offset
        if head.direction == abi.IO_IN:
            if head.port == _STATUS:
                value = _EMPTY
            elif head.port == _CMOS_DATA:
                value = self.cmos[self.index]
            else:
                value = 0 if head.port in _COM1 else 0xFF
            self.state[place : place + head.size] = bytes([value]) * head.size
            return
        value = self.state[place]
        if head.port == _SERIAL and len(self.log) < LIMIT:
            self.log.append(value)
        elif head.port == _CMOS_INDEX:
            self.index = value & 0x7F
        elif head.port == _CMOS_DATA:
            self.cmos[self.index] = value
