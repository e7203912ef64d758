"""The report of `splitlock guest`: plain data, what is in the JSON of schema `splitlock/guest/1`."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from splitlock.report.document import Document

SCHEMA: Final = "splitlock/guest/1"

Where = Literal["firmware", "boot loader", "kernel", "module", "user", "nested"]
#: What came of an exception: the kernel's log line; SIGBUS, as the kernel sent it; oops; panic; the machine began anew;
#: the instruction executed after all; it did nothing but trap again, until the guest was ended; its virtual machine
#: died; none of these was seen.
Answer = Literal[
    "warned", "sigbus", "oops", "panic", "reboot", "executed", "livelock", "triple fault", "never executed"
]


Place = Literal["no VMX", "VMX root", "guest", "nested guest"]


class Hypervisor(msgspec.Struct, kw_only=True):
    """Who has a virtual machine's VM exits."""

    module: str | None  #: null: the kernel itself


class Handling(msgspec.Struct, kw_only=True):
    """What one hypervisor made of the split-lock `#AC` of guests that had not asked for alignment checks."""

    hypervisor: Hypervisor | None  #: null: not known
    entries: int  #: VM entries
    exits: int  #: `#AC` that it got
    injected: int  #: of these: that it handed on to the guest
    straight: int  #: that went into the guest without it, as it does not intercept them
    triple_faults: int  #: virtual machines that died of one


class Processor(msgspec.Struct, kw_only=True):
    """The processor's side of one instruction's exceptions."""

    #: outside VMX operation; in root operation (the whole host, while a hypervisor has it on); in a virtual machine of
    #: the host; in a virtual machine of that one, as far as the hypervisor's order of VM entries shows it
    place: Place
    hypervisor: Hypervisor | None  #: of the virtual machine; null: in none, or not known
    cpl: int  #: privilege, 0 to 3
    delivered: int  #: exceptions that went through the interrupt table
    exits: int  #: that left the virtual machine: its hypervisor has them
    injected: int  #: of these: that the hypervisor gave to the guest
    triple_faults: int  #: virtual machines, or the machine itself, that died of one


class Inside(msgspec.Struct, kw_only=True):
    """Who it is in its own virtual machine."""

    kernel: str  #: as `uname -r` says it there
    where: Where
    image: str | None
    function: str | None
    offset: str | None
    comm: str | None
    pid: int | None


class Site(msgspec.Struct, kw_only=True):
    """One instruction that took split locks, as one program ran it."""

    where: Where
    mode: Literal[16, 32, 64] | None  #: bits of the code; null: could not be told
    hits: int  #: it executed
    traps: int = 0  #: exceptions that it got instead (#AC), or right behind it (#DB)
    answers: list[Answer] = []  #: what came of these
    processor: Processor | None = None  #: what they led to, where the processor says it (--vmx)
    inside: Inside | None = None  #: in a virtual machine: who it is there, where that can be told
    delays: int = 0  #: how often it executed after all
    delay_ms: float | None = None  #: from an #AC until then, the mean (the kernel's own on several CPUs at once: about)
    longest_delay_ms: float | None = None
    said: str | None = None  #: the kernel's line about it
    address: str  #: hex, linear address of the instruction
    instruction: str
    operand_size: int  #: bytes
    operand_address: str  #: hex, at the first hit
    image: str | None  #: the file, as the guest names it; the module; the UEFI program; null: none, or not known
    offset: str | None  #: hex: of a file in that, of a UEFI program in its image, else in the function
    function: str | None
    source: str | None  #: `file:line`
    comm: str | None  #: the program that did it (of a nested guest: that runs it); null: unknown, or not a program's
    pid: int | None  #: its number in the guest


class Detection(msgspec.Struct, kw_only=True):
    """What the guest's processors detected, and what its kernel made of that."""

    split_locks: bool  #: `#AC`, announced
    bus_locks: bool  #: `#DB`, announced
    forward: Literal["once", "always", "asked"] | None  #: `#AC`, announced nowhere
    vmx: bool = False  #: the processors have VMX
    parameter: str | None = None  #: what the command line says of `split_lock_detect`; null: nothing, or not known
    ignored: str = ""  #: why that counts for nothing
    turned_on: bool = False  #: software has turned split-lock detection on, at least for a while
    hypervisors: list[Handling] = []  #: with VMX: who entered virtual machines
    traps: int  #: exceptions
    resets: int  #: of the machine, after its start
    said: list[str]  #: by the kernel, of its detection
    by: Literal["plugin", "gdb stub"] = "plugin"  #: who raised the exceptions
    passes: int = 1  #: that it took, by the gdb stub; this is the last one
    untrapped: int = 0  #: split locks that executed in spite of detection, as the gdb stub did not stop there


class Watched(msgspec.Struct, kw_only=True):
    """What was under watch, and by what means."""

    emulator: str  #: `QEMU`, or `Bochs`, and its version
    api: int  #: version of QEMU's plugin interface
    registers: bool  #: could be read: without them nobody has a name
    cpus: int
    sites: int  #: locked instructions that were decoded
    kernel: str | None  #: the guest's Linux, as `uname -r` says it; null: none was seen
    processes: bool  #: could be named
    seconds: float  #: real time from start to end
    #: why it ended: `power off`, `duration`, `until`, `interrupted`, `livelock`; `qemu: `, `bochs: ` and how it ended
    end: str

    @property
    def died(self) -> bool:
        """Whether the emulator ended by itself, other than by the guest's power-off: the guest says nothing then."""
        return self.end.startswith(("qemu: ", "bochs: "))


class Report(Document, kw_only=True):
    """One guest, from its firmware on."""

    schema: Literal["splitlock/guest/1"]
    guest: str  #: the kernel, disk or ISO that was booted
    hits: int
    unnamed: int  #: of these: in no site below, as there were too many different ones
    sites: list[Site]  #: most hits first
    detection: Detection | None = None  #: null: plain processors
    ready: bool | None  #: for `split_lock_detect=fatal`; null: no Linux kernel was seen
    watched: Watched
    unwatched: list[str]  #: what could not be seen, or not be named, and why
