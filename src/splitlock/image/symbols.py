"""Names and source lines for addresses of ELF images, and the call stacks of stopped threads.

Done by libdw of elfutils (LGPL-3+/GPL-2+, loaded at run time): the system's libdw.so.1, else the
copy in drgn's wheel. With neither, names come from the image's symbol table alone and there are no
lines and no stacks. Addresses are those of the ELF file, as addr2line(1) takes them, except the
program counters of `Unwinder`, which are those of the running process.

Nothing here raises because of what a file holds: what cannot be read is not known. An object is to
be used by one thread at a time. Strangers' files are not for `Names`, but for image/apart.py, which has it in a child.
"""

from __future__ import annotations

import ctypes
import os

from splitlock.image import _libdw
from splitlock.image.demangle import demangle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mmap import mmap
    from typing import TypeVar

    from splitlock.image._libdw import Die
    from splitlock.image.elf import Elf, Symbol

    T = TypeVar("T")

_STT_NOTYPE, _STT_OBJECT, _STT_FUNC, _STT_COMMON, _STT_GNU_IFUNC = 0, 1, 2, 5, 10
_SHT_NOBITS, _SHF_ALLOC, _SHF_EXECINSTR, _SHF_TLS = 8, 2, 4, 0x400


class Frame(tuple[str | None, str | None, bool]):  # no NamedTuple: typing is not to be imported here, start-up counts
    """One function an address belongs to."""

    __slots__ = ()

    def __new__(cls, function: str | None, source: str | None, inlined: bool) -> Frame:
        return super().__new__(cls, (function, source, inlined))

    @property
    def function(self) -> str | None:
        """Its name."""
        return self[0]

    @property
    def source(self) -> str | None:
        """`path:line`. The path is as the compiler wrote it (it may be relative to the compilation directory)."""
        return self[1]

    @property
    def inlined(self) -> bool:
        """Into the next one?"""
        return self[2]


class Names:
    """The names in one ELF image, with its separate debug information where that is installed.

    The file is opened at the first question. `descriptor`: it is open already, and `path` its name only; the descriptor
    stays the caller's. `beside`: whether debug information may be looked for by that name, too. libdw looks for it by
    build-id and debug link below /usr/lib/debug, and asks the servers in $DEBUGINFOD_URLS if that is set, as gdb and
    perf do.
    """

    def __init__(self, path: str, descriptor: int | None = None, *, beside: bool = True, libdw: bool = True) -> None:
        self.path = path
        self._descriptor, self._beside, self._libdw = descriptor, beside, libdw
        self._opened = False
        self._lib: ctypes.CDLL | None = None
        self._dwfl: int | None = None
        self._module: int | None = None
        self._elf: Elf | None = None
        self._map: mmap | None = None
        self._sections: list[tuple[int, int, str, int]] = []
        self._table: list[Symbol] | None = None
        self._units: list[tuple[int, int, int]] | None = None
        self._functions: dict[int, tuple[int | Die, list[tuple[int, int, bytes]]]] = {}
        self._named: dict[str, list[tuple[int, int]]] | None = None
        self._frames: dict[int, list[Frame]] = {}
        self._data: dict[int, tuple[str, int, str] | None] = {}

    def __enter__(self) -> Names:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the file. Answers already given are still given, others are then unknown."""
        self._opened = True
        if self._lib is not None and self._dwfl is not None:
            self._lib.dwfl_end(self._dwfl)
        self._dwfl = self._module = None
        self._sections, self._units, self._table, self._functions = [], [], [], {}
        self._unmap()

    def _unmap(self) -> None:
        self._elf = None
        if self._map is not None:
            self._map.close()
            self._map = None

    def frames(self, address: int) -> list[Frame]:
        """The functions at a file address, innermost first; the last is the one that was not inlined.

        Empty when nothing is known. Its `source` is where the address itself comes from; that of
        each further frame is where the one before it was inlined (DW_AT_call_file, _line).
        """
        if address not in self._frames:
            self._frames[address] = self._find_frames(address)
        return list(self._frames[address])

    def named(self, name: str) -> list[tuple[int, int]]:
        """File addresses and sizes of the functions of a name, as the symbol table spells it. Empty without libdw.

        In a relocatable file (a kernel module) the addresses are those that `frames` takes, and no others'.
        """
        self._open()
        if self._lib is None or self._module is None:
            return []
        if self._named is None:
            self._named = _libdw.functions(self._lib, self._module)
        return self._named.get(name, [])

    def data(self, address: int) -> tuple[str, int, str] | None:
        """The data object at a file address: `(name, offset into it, section name)`.

        The name is "" and the offset that into the section when no sized object symbol holds the
        address. None outside all sections. Thread-local objects have no address and are not found.
        """
        if address not in self._data:
            self._data[address] = self._find_data(address)
        return self._data[address]

    def section(self, address: int) -> str | None:
        """The name of the section loaded at a file address."""
        self._open()
        return next((name for start, end, name, _ in self._sections if start <= address < end), None)

    def _open(self) -> None:
        if self._opened:
            return
        self._opened = True
        if self._descriptor is None and not os.path.isfile(self.path):
            return  # to open a device or a pipe may do or wait for something
        import mmap

        from splitlock.image.elf import Elf

        try:
            own = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC) if self._descriptor is None else self._descriptor
            try:
                self._map = mmap.mmap(own, 0, access=mmap.ACCESS_READ)
            finally:
                if own != self._descriptor:
                    os.close(own)
            self._elf = Elf(self._map)
            for s in self._elf.sections:
                # .tbss takes no room in the address space: what follows it has the same addresses.
                if s.flags & _SHF_ALLOC and s.size and not (s.type == _SHT_NOBITS and s.flags & _SHF_TLS):
                    self._sections.append((s.addr, s.addr + s.size, s.name, s.flags))
        except (OSError, ValueError, OverflowError):
            pass  # unreadable, or (ImageError, a ValueError) malformed: libdw may make more of it
        self._lib = _libdw.load() if self._libdw else None
        if self._lib is not None:
            way = "dwfl_standard_find_debuginfo" if self._beside else "dwfl_build_id_find_debuginfo"
            self._dwfl = _libdw.begin(self._lib, "dwfl_build_id_find_elf", way)
        if self._lib is not None and self._dwfl is not None:
            path = os.fsencode(self.path)
            self._lib.dwfl_report_begin(self._dwfl)
            # Base 0 with p_vaddr added: module addresses are then the file's, ET_EXEC or ET_DYN.
            given = -1 if self._descriptor is None else os.dup(self._descriptor)
            self._module = self._lib.dwfl_report_elf(self._dwfl, path, path, given, 0, True)
            if self._module is None and given >= 0:
                os.close(given)  # else it is libdw's
            if self._lib.dwfl_report_end(self._dwfl, None, None) != 0:
                self._module = None
        if self._module is not None:
            self._unmap()

    def _find_frames(self, address: int) -> list[Frame]:
        self._open()
        if not 0 <= address <= _libdw.MOST:
            return []
        frames = self._dwarf_frames(address)
        if not frames or frames[-1].function is None:
            name = self._function_symbol(address)
            if name is not None:
                frames[-1:] = [Frame(name, frames[-1].source if frames else None, False)]
        return frames

    def _dwarf_frames(self, address: int) -> list[Frame]:
        """The frames that debug information knows; the last may be no more than a source line."""
        lib = self._lib
        unit, pc = self._unit(address)
        if lib is None or unit is None:
            return []
        source = _libdw.line(lib, unit, pc)
        if unit not in self._functions:
            self._functions[unit] = _libdw.function_ranges(lib, unit)
        holder, ranges = self._functions[unit]
        raw = _holding(ranges, pc)
        if raw is None:
            return [Frame(None, source, False)] if source else []
        die = ctypes.create_string_buffer(raw, _libdw.DIE_SIZE)
        frames = []
        for inlined in reversed(_libdw.inlined(lib, die, pc)):
            frames.append(Frame(_libdw.die_name(lib, inlined)[0], source, True))
            source = _libdw.call_site(lib, holder, inlined)
        name, whole = _libdw.die_name(lib, die)
        if not whole:
            # C, or C++ that has no linkage name in DWARF (variants of a destructor, templates of a
            # local type): there the symbol says more, and has arguments.
            symbol = self._function_symbol(address)
            name = symbol if symbol and (name is None or "(" in symbol) else name
        frames.append(Frame(name, source, False))
        return frames

    def _unit(self, address: int) -> tuple[int | None, int]:
        """The compilation unit (its DIE) at a file address, and the address in its DWARF."""
        lib, module = self._lib, self._module
        if lib is None or module is None:
            return None, 0
        bias = ctypes.c_uint64()
        die: int | None = lib.dwfl_module_addrdie(module, address, ctypes.byref(bias))
        if die is not None:
            return die, address - bias.value & _libdw.MOST
        # Before 0.191 libdw finds units by .debug_aranges only, which LLVM does not write.
        if self._units is None:
            self._units = sorted(_libdw.unit_ranges(lib, module))
        die = _holding(self._units, address)
        lib.dwfl_module_nextcu(module, None, ctypes.byref(bias))
        return die, address - bias.value & _libdw.MOST

    def _symbol(self, address: int) -> tuple[str, int, int, int] | None:
        """Name, offset, type and size of the symbol at a file address."""
        if self._lib is not None and self._module is not None:
            found = _libdw.symbol(self._lib, self._module, address)
            if found is not None and found[1] == found[3] == 0 and address < _libdw.MOST:
                # A global label without a size (__bss_start) hides local symbols from libdw at its
                # very address, not after it.
                after = _libdw.symbol(self._lib, self._module, address + 1)
                if after is not None and after[1] and after[3]:
                    return after[0], after[1] - 1, after[2], after[3]
            return found
        if self._table is None:
            self._table = []
            try:
                if self._elf is not None:
                    self._table += self._elf.symbols()
            except (ValueError, OverflowError):
                pass
        kinds = (_STT_OBJECT, _STT_FUNC, _STT_COMMON, _STT_GNU_IFUNC, _STT_NOTYPE)
        holders = [s for s in self._table if s.value <= address < s.value + s.size and s.type in kinds and s.name]
        best = min(holders, key=lambda s: (address - s.value, s.size), default=None)
        return None if best is None else (best.name, address - best.value, best.type, best.size)

    def _function_symbol(self, address: int) -> str | None:
        """The demangled name of the code symbol at a file address."""
        found = self._symbol(address)
        if found is None or found[2] not in (_STT_FUNC, _STT_GNU_IFUNC, _STT_NOTYPE):
            return None
        if found[2] == _STT_NOTYPE and not any(
            start <= address < end and flags & _SHF_EXECINSTR for start, end, _, flags in self._sections
        ):
            return None
        return _plain(found[0])

    def _find_data(self, address: int) -> tuple[str, int, str] | None:
        self._open()
        if not 0 <= address <= _libdw.MOST:
            return None
        found = self._symbol(address)
        section = self.section(address)
        if found is not None and found[2] in (_STT_OBJECT, _STT_COMMON) and found[1] < found[3]:
            return _plain(found[0]), found[1], section or ""
        if section is None:
            return None
        start = next(start for start, end, _, _ in self._sections if start <= address < end)
        return "", address - start, section


class Unwinder:
    """The call stacks of a process whose threads the calling thread traces and has stopped.

    By the images' call frame information, and by frame pointers where there is none (code made at
    run time). Without libdw, or when the process cannot be read, every stack is empty.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._lib = _libdw.load()
        self._dwfl: int | None = None
        if self._lib is None:
            return
        # By build-id alone, on this machine: the process stands still, no server is to be asked.
        self._dwfl = _libdw.begin(self._lib, "dwfl_linux_proc_find_elf", "dwfl_build_id_find_debuginfo")
        self.refresh()
        if self._dwfl is not None and self._lib.dwfl_linux_proc_attach(self._dwfl, pid, True) != 0:
            self.close()

    def __enter__(self) -> Unwinder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def refresh(self) -> None:
        """Read the process's mappings again; to be called after it loaded or unloaded code."""
        if self._lib is not None and self._dwfl is not None:
            self._lib.dwfl_report_begin(self._dwfl)
            self._lib.dwfl_linux_proc_report(self._dwfl, self.pid)
            self._lib.dwfl_report_end(self._dwfl, None, None)

    def stack(self, tid: int, limit: int = 32) -> list[int]:
        """At most `limit` program counters of a thread, innermost first.

        The first is the thread's rip as it is now. One that is a return address is lowered by one,
        so that it lies in the call it returns from. Ends early where unwinding fails; empty when
        the thread is not stopped under the calling thread's ptrace.
        """
        lib = self._lib
        # libdw (0.188, 0.196) abort()s the process (an assertion in linux-pid-attach.c) at the second
        # stack after one for which the registers could not be read.
        if lib is None or self._dwfl is None or limit < 1 or not _libdw.can_read_registers(tid):
            return []
        return _libdw.stack(lib, self._dwfl, tid, limit)

    def close(self) -> None:
        """Free the session. The process stays as it is."""
        if self._lib is not None and self._dwfl is not None:
            self._lib.dwfl_end(self._dwfl)
        self._dwfl = None


def _holding(ranges: list[tuple[int, int, T]], address: int) -> T | None:
    """What the one of the sorted, disjoint ranges stands for that holds the address."""
    from bisect import bisect_right

    at = bisect_right(ranges, address, key=lambda r: r[0]) - 1
    return ranges[at][2] if at >= 0 and address < ranges[at][1] else None


def _plain(name: str) -> str:
    """A symbol's name without its version ("@@GLIBC_2.34", as .symtab has it), demangled."""
    return demangle(name[: name.find("@", 1)] if "@" in name[1:] else name)
