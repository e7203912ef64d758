"""The file of a kernel or of a module: the code at a place that a dump names, its source lines, its types."""

from __future__ import annotations

import mmap
import os
import re
from typing import NamedTuple

from iced_x86 import Decoder

from splitlock._errors import ImageError
from splitlock.image.apart import Symbols
from splitlock.image.btf import Btf
from splitlock.image.bzimage import is_bzimage, vmlinux
from splitlock.image.compressed import compression, expand
from splitlock.image.data import Data, fixed
from splitlock.image.elf import ET_REL, Elf
from splitlock.image.kallsyms import Kallsyms
from splitlock.image.module import KernelImage
from splitlock.image.symbols import Frame as Named
from splitlock.linux import below
from splitlock.x86.lines import CACHE_LINE
from splitlock.x86.locked import static_address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.image.module import Code as Section
    from splitlock.linux.dump import Frame

_LARGEST = 2 << 30  # bytes of a kernel: with debug information it has some 700 MB
_LONGEST = 15  # bytes of an instruction
_BANNER = re.compile(rb"Linux version (\d[^ \0]{1,128}) ")


class Code(NamedTuple):
    """The code from an instruction on, as a file has it.

    raw          the bytes
    address      in the file; None in a module, whose place is known to nobody before it is loaded
    unfinished   a module's bytes that the loader fills in (relocations) are not those that ran
    data         what a fixed operand is, where it is one
    function     all of the function, as far as its size is known
    """

    path: str
    raw: bytes
    address: int | None
    unfinished: bool
    data: Data | None
    function: bytes


class Image:
    """One file: a vmlinux, with or without symbols, as a boot image holds it, or a module."""

    def __init__(self, path: str) -> None:
        self.path = path
        with open(below.opened("", os.path.abspath(path)), "rb") as file:  # a FIFO would be waited for
            size = os.fstat(file.fileno()).st_size
            if not 0 < size < _LARGEST:
                raise ImageError("empty, or too large for a kernel")
            self.data: bytes | mmap.mmap = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.plain = True  # the file itself is ELF: libdw can read it
        head = bytes(self.data[:0x400])
        if is_bzimage(head):
            self.data, self.plain = vmlinux(bytes(self.data), _LARGEST), False
        elif compression(head):
            self.data, self.plain = expand(bytes(self.data), _LARGEST), False
        self.image = KernelImage(self.data)
        self.symbols = Symbols(path, beside=False)  # nothing is asked for over the network
        self._kallsyms: Kallsyms | None = None

    def release(self) -> str:
        """Of which kernel it is; empty where it does not say."""
        if self.image.type == ET_REL:
            return next(iter(self.image.modinfo.get("vermagic", [])), "").partition(" ")[0]
        section = Elf(self.data).section(".rodata")
        start, end = (section.offset, section.offset + section.size) if section else (0, len(self.data))
        found = _BANNER.search(self.data, start, end)
        return found[1].decode("ascii", "replace") if found else ""

    def module(self) -> str:
        """The module's name as it says itself; empty where it does not, or is none."""
        return next(iter(self.image.modinfo.get("name", [])), "") if self.image.type == ET_REL else ""

    def code(self, frame: Frame) -> list[Code]:
        """The code from a place on; of each function of that name and size."""
        assert frame.offset is not None
        found = {}
        for code, start, size in self.image.functions_named(frame.symbol):
            if _fits(frame, size):
                at = start + frame.offset
                found[code.index, at] = self._code(code, at, code.data[start : start + (frame.size or size)])
        return list(found.values()) or self._by_kallsyms(frame)

    def _code(self, code: Section, at: int, function: bytes) -> Code:
        raw = code.data[at : at + _LONGEST]
        loose = self.image.type == ET_REL
        address = None if loose else code.address + at
        instruction = Decoder(64, raw, ip=address or 0).decode()
        data = fixed(self.image, code, at, instruction.len, static_address(instruction))
        return Code(self.path, raw, address, loose and data is not None, data, function)

    def _by_kallsyms(self, frame: Frame) -> list[Code]:
        """In a kernel that was stripped: its own table of symbols tells."""
        if self.image.type == ET_REL:
            return []
        try:
            if self._kallsyms is None:
                self._kallsyms = Kallsyms(bytes(self.data))
            start, elf = self._kallsyms.addresses[frame.symbol], Elf(self.data)
            address = start + (frame.offset or 0)
            raw, function = elf.read(address, _LONGEST), elf.read(start, frame.size or _LONGEST)
        except (ImageError, KeyError):
            return []
        place = static_address(Decoder(64, raw, ip=address).decode())
        data = None if place is None else Data(self._object(place), place % CACHE_LINE)
        return [Code(self.path, raw, address, False, data, function)]

    def btf(self, base: Btf | None) -> Btf | None:
        """Its types; a module's go on from the kernel's."""
        section = Elf(self.data).section(".BTF")
        if section is None or (self.image.type == ET_REL and base is None):
            return None
        return Btf(bytes(self.data[section.offset : section.offset + section.size]), base)

    def _object(self, address: int) -> str:
        """The last symbol before an address."""
        assert self._kallsyms is not None
        name, start = max(
            ((name, at) for name, at in self._kallsyms.addresses.items() if at <= address), key=lambda each: each[1]
        )
        return f"{name}+{address - start:#x}"

    def lines(self, frame: Frame, back: int) -> list[Named]:
        """The functions and lines at a place, innermost first."""
        if not self.plain or frame.offset is None:
            return []
        fitting = {at for at, size in self.symbols.named(frame.symbol) if _fits(frame, size)}
        return self.symbols.frames(fitting.pop() + max(frame.offset - back, 0)) if len(fitting) == 1 else []


def same_code(code: Code, marked: bytes) -> bool:
    """Whether a file's code is what the dump shows. What the loader fills in is passed over: the opcode is compared."""
    length = 3 if code.unfinished else min(len(marked), Decoder(64, code.raw, ip=0).decode().len)
    return not marked or code.raw[:length] == marked[:length]


def _fits(frame: Frame, size: int) -> bool:
    """Whether a function can be the one: the kernel counts what lies between it and the next one as its own."""
    if not size:  # hand-written code without one
        return True
    return (frame.offset or 0) < size and (not frame.size or size <= frame.size)
