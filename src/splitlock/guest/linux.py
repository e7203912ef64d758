"""A Linux kernel in a guest's memory: its functions, its modules, who runs, and what is mapped there.

All is read from the memory, with the kernel's own tables: kallsyms names its symbols, BTF says how its structures are
laid out. So nothing about the kernel needs to be known beforehand, and address space randomization makes no difference.
x86-64 kernels from 4.15, where the IDT has its fixed address; with the BTF, from 5.4 (CONFIG_DEBUG_INFO_BTF).
"""

from __future__ import annotations

import re
import struct
from bisect import bisect_right
from typing import NamedTuple

from splitlock._errors import ImageError
from splitlock.guest.memory import PAGE, Memory, Space
from splitlock.image.btf import Btf
from splitlock.image.kallsyms import Kallsyms

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_IDT = 0xFFFF_FE00_0000_0000  # arch/x86/include/asm/cpu_entry_area.h, CPU_ENTRY_AREA_RO_IDT: read-only, in every CR3
KERNEL_HALF = 1 << 63
_KERNEL_MAP = 0xFFFF_FFFF_8000_0000
_IMAGE = 128 << 20  # bytes from the kernel's entry code on in which its tables lie
_BANNER = 64
_VERSION = re.compile(rb"Linux version (\d\S{1,64}) ")
_MANY = 1 << 16  # list entries: more are a loop
_DEEP = 64  # directories and mounts
_SYMBOL = struct.Struct("<IBBHQQ")  # elf(5), Elf64_Sym
_STRINGS = 1 << 22


class Process(NamedTuple):
    """Who it is; numbers as the guest's initial pid namespace has them."""

    comm: str  #: the name, at most 15 bytes
    pid: int
    tid: int
    task: int  #: where its task_struct is


class Mapping(NamedTuple):
    """What lies at an address."""

    path: str  #: of the file, as the guest has it; empty: memory of no file
    offset: int  #: in the file
    inside: str  #: its path on its own file system
    inode: int  #: its number there
    device: str  #: that file system's: `sda1`


class Tasks(NamedTuple):
    """Where the running tasks are to be had, as `Shared.tell_tasks` takes it."""

    direct_map: int
    started: int
    execs: int
    exec_bytes: int
    send_fault: int
    current: dict[int, int]


class Code(NamedTuple):
    """Where a running kernel's code is, and how one is told from another."""

    entry: int  #: the address of the handler of interrupt 0
    physical: int  #: the same
    head: bytes  #: what is there


_BTF = 64 << 20  # bytes: more is no kernel's (6 MiB with Debian's 7.2)


class Unreadable(LookupError):
    """A kernel runs, but its symbols cannot be read; says why. `release`: as uname -r says it, empty: not known."""

    def __init__(self, why: str, release: str) -> None:
        super().__init__(why)
        self.release = release


def code(memory: Memory, cr3: int, cr4: int) -> Code:
    """That of the kernel which runs with these page tables. Raises LookupError where none does."""
    here = Space(memory, cr3, cr4)
    entry = _entry(here)
    physical = here.physical(entry)
    head = None if physical is None else memory.read(physical, PAGE - entry % PAGE)
    if physical is None or head is None:
        raise LookupError("the guest's interrupt table leads nowhere")
    return Code(entry, physical, head)


class Kernel:
    """The kernel whose code this is. Raises LookupError, `Unreadable` where its symbols cannot be read."""

    def __init__(self, memory: Memory, running: Code, cr3: int, cr4: int) -> None:
        self._entry, self._physical = running.entry, running.physical
        image = memory.span(running.physical, _IMAGE)
        banner = _VERSION.search(image)
        #: as uname -r says it; empty: not known
        self.release = banner[1].decode("ascii", "replace") if banner else ""
        try:
            self.symbols = Kallsyms(image, self._entry)
        except ImageError as error:
            raise Unreadable(str(error), self.release) from None
        # The kernel's image lies in one piece in physical memory; its banner tells it from another at the same place.
        at = banner.start() if banner else 0
        self._banner_at, self._banner = running.physical + at, image[at : at + _BANNER]
        # The tables it began with go on to be those of init_mm, which map all of its memory; those of a program do not,
        # with page table isolation. Without CONFIG_KALLSYMS_ALL nothing leads to them, nor to anything but functions.
        tables = self.symbols.addresses.get("init_top_pgt")
        self.space = Space(memory, cr3 if tables is None else running.physical + tables - self._entry, cr4)
        self.btf: Btf | None = None
        try:
            begin = self._address("__start_BTF")
            self.btf = Btf(self.space.read(begin, min(self._address("__stop_BTF") - begin, _BTF)))
        except (LookupError, ImageError):
            pass  # then functions have names, and nobody else

    def _address(self, symbol: str) -> int:
        try:
            return self.symbols.addresses[symbol]
        except KeyError:
            raise LookupError(f"the guest's kernel has no {symbol} among its symbols") from None

    def still(self, cr3: int, cr4: int) -> bool:
        """Whether this kernel is the one that runs with these page tables."""
        memory = self.space.memory
        try:
            here = Space(memory, cr3, cr4)
            return (
                _entry(here) == self._entry
                and here.physical(self._entry) == self._physical
                and memory.read(self._banner_at, len(self._banner)) == self._banner
            )
        except LookupError:
            return False

    def _field(self, address: int, structure: str, path: str) -> int:
        if self.btf is None:
            raise LookupError("the guest's kernel carries no BTF")
        field = self.btf.field(structure, path)
        return self.space.number(address + field.offset, min(field.size, 8))

    def _at(self, structure: str, path: str) -> int:
        if self.btf is None:
            raise LookupError("the guest's kernel carries no BTF")
        return self.btf.offset(structure, path)

    # who runs

    def _current_at(self) -> int:
        """Where the pointer to the running task lies in per-CPU memory."""
        if "current_task" in self.symbols.addresses:
            return self.symbols.addresses["current_task"]
        return self._address("pcpu_hot") + self._at("pcpu_hot", "current_task")  # 6.2 to 6.14

    def per_cpu(self, cpus: int) -> list[int]:
        """Where each CPU's own memory begins, which is also its GS base. Raises LookupError."""
        table = self._address("__per_cpu_offset")
        found = [self.space.number(table + 8 * cpu) for cpu in range(cpus)]
        return [base if base >= KERNEL_HALF and base < _KERNEL_MAP else 0 for base in found]

    def tasks(self, cpus: int) -> Tasks:
        """Where to read the running task of each of so many CPUs. Raises LookupError."""
        if self.btf is None:
            raise LookupError("the guest's kernel carries no BTF")
        executed = self.btf.field("task_struct", "self_exec_id")
        if executed.size not in (4, 8):  # a guest's word: the plugin reads so many bytes into a number
            raise LookupError(f"self_exec_id of {executed.size} bytes")
        at = self._current_at()
        places = {cpu: self.space.physical(base + at) for cpu, base in enumerate(self.per_cpu(cpus)) if base}
        started = "start_boottime" if self.btf.has("task_struct", "start_boottime") else "real_start_time"
        return Tasks(
            self.space.number(self._address("page_offset_base")),
            self._at("task_struct", started),
            executed.offset,
            executed.size,
            self.symbols.addresses.get("force_sig_fault", 0),
            {cpu: place for cpu, place in places.items() if place is not None},
        )

    def process(self, gs_base: int) -> Process:
        """Who runs on the CPU whose own memory is there. Raises LookupError."""
        return self.process_of(self.space.number(gs_base + self._current_at()))

    def process_of(self, task: int) -> Process:
        """Whose task this is. Raises LookupError."""
        if task < KERNEL_HALF:
            raise LookupError("no task runs")
        comm = self.space.text(task + self._at("task_struct", "comm"), 16)
        return Process(comm, self._field(task, "task_struct", "tgid"), self._field(task, "task_struct", "pid"), task)

    # what is mapped

    def mapping(self, task: int, address: int) -> Mapping | None:
        """What a program has at an address, None where nothing is mapped. Raises LookupError."""
        mm = self._field(task, "task_struct", "mm")
        area = self._area(mm, address) if mm else 0
        if not area:
            return None
        start = self._field(area, "vm_area_struct", "vm_start")
        if not start <= address < self._field(area, "vm_area_struct", "vm_end"):
            return None
        file = self._field(area, "vm_area_struct", "vm_file")
        if not file:
            return Mapping("", 0, "", 0, "")
        offset = (self._field(area, "vm_area_struct", "vm_pgoff") << 12) + address - start
        path, inside = self._path(self._field(file, "file", "f_path.dentry"), self._field(file, "file", "f_path.mnt"))
        inode = self._field(file, "file", "f_inode")
        device = self.space.text(self._field(inode, "inode", "i_sb") + self._at("super_block", "s_id"), 32)
        return Mapping(path, offset, inside, self._field(inode, "inode", "i_ino"), device)

    def _area(self, mm: int, address: int) -> int:
        """The vm_area_struct that may hold an address; 0 for none."""
        if self.btf is not None and self.btf.has("mm_struct", "mm_mt"):
            return self._walk(self._field(mm, "mm_struct", "mm_mt.ma_root"), address)
        area = self._field(mm, "mm_struct", "mmap")  # up to Linux 6.0
        for _ in range(_MANY):
            if not area or address < self._field(area, "vm_area_struct", "vm_end"):
                return area
            area = self._field(area, "vm_area_struct", "vm_next")
        return 0

    def _walk(self, entry: int, address: int) -> int:
        """What a maple tree has for an address (lib/maple_tree.c, mtree_range_walk)."""
        kinds = {1: "maple_range_64", 2: "maple_range_64", 3: "maple_arange_64"}
        if entry & 3 != 2 or entry <= 4096:  # not a node: the only entry
            return entry
        for _ in range(_DEEP):
            node, kind = entry & ~0xFF, entry >> 3 & 15
            name = kinds.get(kind)
            if name is None or self.btf is None:
                raise LookupError("a maple tree with an unknown kind of node")
            pivots, slots = self.btf.field(name, "pivot"), self.btf.field(name, "slot")
            values = struct.unpack(f"<{pivots.size // 8}Q", self.space.read(node + pivots.offset, pivots.size))
            for slot, pivot in enumerate(values):
                if address <= pivot or (slot and not pivot):
                    break
            else:
                slot = len(values)
            entry = self.space.number(node + slots.offset + 8 * slot)
            if kind == 1:  # a leaf
                return entry
        return 0

    def _path(self, dentry: int, mnt: int) -> tuple[str, str]:
        """A file's path from the root of its mounts, and from that of its own file system (fs/d_path.c)."""
        names: list[str] = []
        inside: str | None = None
        mount = mnt - self._at("mount", "mnt")
        for _ in range(_DEEP):
            parent = self._field(dentry, "dentry", "d_parent")
            if dentry in (self._field(mount, "mount", "mnt.mnt_root"), parent):
                if inside is None:
                    inside = "/" + "/".join(reversed(names))
                above = self._field(mount, "mount", "mnt_parent")
                if above == mount:
                    break
                dentry, mount = self._field(mount, "mount", "mnt_mountpoint"), above
                continue
            names.append(self.space.text(self._field(dentry, "dentry", "d_name.name"), 256))
            dentry = parent
        path = "/" + "/".join(reversed(names))
        return path, inside or path

    # modules

    def module(self, address: int) -> tuple[str, str, int] | None:
        """The module at an address, the function there ("" if it has no name) and the offset into that."""
        for module in self._modules():
            if any(base <= address < base + size for base, size in self._ranges(module)):
                name = self.space.text(module + self._at("module", "name"), 56)
                return name, *self._function(module, address)
        return None

    def _modules(self) -> Iterator[int]:
        head = self._address("modules")
        back = self._at("module", "list")
        at = self.space.number(head)
        for _ in range(_MANY):
            if at == head:
                return
            yield at - back
            at = self.space.number(at)

    def _ranges(self, module: int) -> Iterator[tuple[int, int]]:
        if self.btf is not None and self.btf.has("module", "mem"):  # since 6.4
            field, step = self.btf.field("module", "mem"), self.btf.size("module_memory")
            for at in range(field.offset, field.offset + field.size, step):
                yield (
                    self._field(module + at, "module_memory", "base"),
                    self._field(module + at, "module_memory", "size"),
                )
        else:
            for layout in ("core_layout", "init_layout"):
                yield self._field(module, "module", f"{layout}.base"), self._field(module, "module", f"{layout}.size")

    def _function(self, module: int, address: int) -> tuple[str, int]:
        """By the module's own symbols (struct mod_kallsyms), those of functions."""
        table = self._field(module, "module", "kallsyms")
        number = min(self._field(table, "mod_kallsyms", "num_symtab"), _MANY)
        raw = self.space.read(self._field(table, "mod_kallsyms", "symtab"), number * _SYMBOL.size)
        strings = self._field(table, "mod_kallsyms", "strtab")
        functions = sorted(
            (value, name) for name, info, _, section, value, _ in _SYMBOL.iter_unpack(raw) if section and info & 15 == 2
        )
        at = bisect_right(functions, (address, _STRINGS)) - 1
        if at < 0:
            return "", 0
        value, name = functions[at]
        return self.space.text(strings + name, 256), address - value


def _entry(space: Space) -> int:
    """The handler of interrupt 0, in the kernel's entry code (SDM vol. 3A, 6.14.1). Raises LookupError."""
    low, _, _, middle, high, _ = struct.unpack("<HHHHII", space.read(_IDT, 16))
    entry = int(low | middle << 16 | high << 32)
    if entry < _KERNEL_MAP:
        raise LookupError("no Linux kernel runs")
    return entry
