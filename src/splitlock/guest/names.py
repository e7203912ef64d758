"""Who a split lock is: the part of the guest it belongs to, and its names there, while the guest waits for us."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from splitlock.guest import linux, uefi
from splitlock.guest.memory import GuestMemory, Memory
from splitlock.guest.shared import AFTER_BOOT_SECTOR, KNOWS_REGISTERS, NESTED, SMM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    from splitlock.guest.shared import Entry, Shared

    Where = Literal["firmware", "boot loader", "kernel", "module", "user", "nested"]
    Mode = Literal[16, 32, 64]

_GUESTS, _MOST_READ = 16, 64  # virtual machines whose kernels are kept; that are read at all, a second each
_PE, _PG = 1, 1 << 31  # CR0
_LMA = 1 << 10  # EFER
_VM = 1 << 17  # EFLAGS: virtual-8086 mode
_LA57 = 1 << 12  # CR4
_USER32 = 0x23  # CS of 32-bit programs (arch/x86/include/asm/segment.h, __USER32_CS; Windows has the same)
_BIOS, _MEGABYTE, _FLASH = 0xC0000, 0x100000, 0xFFC0_0000  # option ROMs and BIOS; firmware's flash ends at 4 GiB
_EFI = range(0xFFFF_FFEF_0000_0000, 0xFFFF_FFFF_0000_0000)  # Documentation/arch/x86/x86_64/mm.rst


class Hypervisor(NamedTuple):
    """Who has a virtual machine's VM exits."""

    module: str | None  #: None: the kernel itself


@dataclass
class Named:
    """Who it is, as far as that is known."""

    where: Where
    mode: Mode | None  #: bits of the code
    image: str | None = None  #: the module, the UEFI program
    function: str | None = None  #: the module's
    offset: int | None = None  #: into the function, in bytes
    process: linux.Process | None = None
    mapping: linux.Mapping | None = None
    kernel: linux.Kernel | None = None  #: that ran; its functions get their names in the end
    hypervisor: Hypervisor | None = None
    inner: Named | None = None  #: in a virtual machine: who it is there; the rest is the program that runs it


class Names:
    """What the guest's memory says. Nothing here raises because of what that holds."""

    def __init__(self, memory: Memory, shared: Shared | None, cpus: int) -> None:
        """`shared`: None for a virtual machine in the machine, whose running tasks nobody reads."""
        self._memory, self._shared, self._cpus = memory, shared, cpus
        self.kernel: linux.Kernel | None = None
        self.unreadable: linux.Unreadable | None = None  #: a kernel was seen, but its symbols cannot be read
        self._refused: linux.Code | None = None  #: whose that was: as long as it runs it is not read again
        self._told = False
        self._tasks: linux.Tasks | None = None
        self._guests: dict[int, Names] = {}  # by EPT pointer, the last ones
        self._guests_read = 0
        self.unnamed: dict[str, None] = {}  #: why virtual machines in the machine have no names, each reason once

    def find_kernel(self, cr3: int, cr4: int) -> linux.Kernel | None:
        """The Linux kernel that these page tables are of; the plugin is told where its tasks are."""
        if not cr3:
            return None
        if self.kernel is not None and self.kernel.still(cr3, cr4):
            if not self._told:
                self._tell()
            return self.kernel
        running = None
        try:
            running = linux.code(self._memory, cr3, cr4)
            if running == self._refused:
                return None
            found = linux.Kernel(self._memory, running, cr3, cr4)
        except linux.Unreadable as error:
            self.unreadable, self._refused = error, running
            return None
        except LookupError:
            return None
        self.kernel = found
        self._tell()
        return found

    def _tell(self) -> None:
        """Early in its boot a kernel has no per-CPU memory yet: then again at the next occasion."""
        self._told = self._shared is None
        if self.kernel is None or self._shared is None:
            return
        try:
            tasks = self.kernel.tasks(self._cpus)
        except LookupError:
            return
        self._tasks = tasks
        self._told = len(tasks.current) == self._cpus
        self._shared.tell_tasks(*tasks)

    def who(self, cpu: int) -> tuple[int, int, int]:
        """The program that runs on a CPU, as the plugin tells programs apart; zeros where that is unknown."""
        if self._tasks is None or cpu not in self._tasks.current:
            return 0, 0, 0

        def load(physical: int, size: int) -> int:
            return int.from_bytes(self._memory.read(physical, size) or b"", "little")

        task = load(self._tasks.current[cpu], 8)
        at = task - self._tasks.direct_map
        started = load(at + self._tasks.started, 8)
        return task, started, load(at + self._tasks.execs, self._tasks.exec_bytes)

    def name(self, entry: Entry) -> Named:
        """Who this is, as the guest is now: the vCPU has just done it, and waits."""
        mode = _mode(entry)
        if entry.flags & NESTED:
            return self._nested(entry, mode)
        if not entry.flags & KNOWS_REGISTERS:
            return Named("kernel" if entry.pc >= linux.KERNEL_HALF else "user", mode)
        if entry.flags & SMM or not entry.cr0 & _PE or (entry.cr0 & _PG and not entry.efer & _LMA):
            kernel = None
        else:
            kernel = self.find_kernel(entry.cr3, entry.cr4) if entry.efer & _LMA else None
        if kernel is None and entry.pc < linux.KERNEL_HALF:
            if entry.cs & 3 and entry.cr0 & _PE and entry.cr0 & _PG:
                return Named("user", mode)
            return self._before(entry, mode)
        if entry.pc >= linux.KERNEL_HALF or kernel is None:
            return self._kernel(kernel, entry, mode)
        if not entry.cs & 3:
            return Named("kernel", mode, kernel=kernel)
        return self._user(kernel, entry, mode)

    def _user(self, kernel: linux.Kernel, entry: Entry, mode: Mode | None) -> Named:
        process = mapping = None
        try:
            if entry.k_gs_base in kernel.per_cpu(self._cpus):
                process = kernel.process(entry.k_gs_base)
                mapping = kernel.mapping(process.task, entry.pc)
        except LookupError:
            pass
        return Named("user", mode, process=process, mapping=mapping, kernel=kernel)

    def _nested(self, entry: Entry, mode: Mode | None) -> Named:
        """A guest's guest: the program of the host that runs it, and who it is inside."""
        kernel = next((k for la57 in (0, _LA57) if (k := self.find_kernel(entry.host_cr3, la57))), None)
        process = hypervisor = None
        try:
            if kernel is not None:
                process = kernel.process(kernel.per_cpu(self._cpus)[entry.vcpu])
                hypervisor = _hypervisor(kernel, entry.host_rip)
        except (LookupError, IndexError):
            pass
        inner = self._inside(entry)
        return Named("nested", mode, process=process, kernel=kernel, hypervisor=hypervisor, inner=inner)

    def hypervisor(self, rip: int, cr3: int) -> Hypervisor | None:
        """Whose code the host goes on with, on these page tables, after a VM exit; None: not known."""
        kernel = next((k for la57 in (0, _LA57) if (k := self.find_kernel(cr3, la57))), None)
        try:
            return None if kernel is None else _hypervisor(kernel, rip)
        except LookupError:
            return None

    def _inside(self, entry: Entry) -> Named | None:
        """Who it is in its own virtual machine, where a Linux runs there on page tables that can be followed."""
        if not entry.space or not entry.efer & _LMA:
            return None
        names = self._guests.pop(entry.space, None)
        if names is None:
            if self._guests_read == _MOST_READ:
                self.unnamed[f"there were more than {_MOST_READ}"] = None
                return None
            self._guests_read += 1
            names = Names(GuestMemory(self._memory, entry.space), None, 1)
        self._guests[entry.space] = names
        if len(self._guests) > _GUESTS:
            del self._guests[next(iter(self._guests))]
        if names.find_kernel(entry.cr3, entry.cr4) is None:
            if names.unreadable:
                self.unnamed[f"the symbols of their Linux cannot be read ({names.unreadable})"] = None
            return None
        return names.name(entry._replace(flags=entry.flags & ~NESTED))

    @staticmethod
    def _kernel(kernel: linux.Kernel | None, entry: Entry, mode: Mode | None) -> Named:
        if entry.pc in _EFI:
            return Named("firmware", mode, kernel=kernel)
        try:
            if kernel is not None and not kernel.symbols.function(entry.pc):
                module = kernel.module(entry.pc)
                if module is not None:
                    return Named("module", mode, *module, kernel=kernel)
        except LookupError:
            pass
        return Named("kernel", mode, kernel=kernel)

    def _before(self, entry: Entry, mode: Mode | None) -> Named:
        """What runs before a kernel does."""
        rom = _BIOS <= entry.pc < _MEGABYTE or _FLASH <= entry.pc < 1 << 32
        if entry.flags & SMM or rom:
            return Named("firmware", mode)
        own, name = uefi.Volumes(self._memory).program(entry.pc)
        if own:
            return Named("firmware", mode, image=name or None)
        return Named("boot loader" if entry.flags & AFTER_BOOT_SECTOR or mode == 64 else "firmware", mode)


def _hypervisor(kernel: linux.Kernel, address: int) -> Hypervisor | None:
    """Whose code this is, at which a VM exit goes on. Raises LookupError."""
    if not address:
        return None
    module = kernel.module(address)
    if module is not None:
        return Hypervisor(module[0])
    return Hypervisor(None) if kernel.symbols.function(address) else None


def _mode(entry: Entry) -> Mode | None:
    """16-, 32- or 64-bit code: as QEMU says; else by registers and the operand's size; None where that leaves two."""
    if entry.mode in (16, 32, 64):
        return entry.mode  # type: ignore[return-value]  # one of these
    if not entry.flags & KNOWS_REGISTERS:
        return None
    if not entry.cr0 & _PE or entry.eflags & _VM:
        return 16
    prefixed = 0x66 in entry.code[: entry.code.find(b"\x0f") if b"\x0f" in entry.code else 2]
    if entry.efer & _LMA:
        if entry.pc >> 32 or (entry.size == 8 and not _eight(entry.code)):
            return 64
        return 32 if entry.cs == _USER32 else 64
    if _eight(entry.code):
        return None
    return 16 if (entry.size == 2) != prefixed else 32


def _eight(code: bytes) -> bool:
    """cmpxchg8b: of 8 bytes everywhere."""
    return b"\x0f\xc7" in code
