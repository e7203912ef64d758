"""Which data does an instruction mean whose operand is at a fixed place of a kernel or module? Where in its line?

Where a module's sections will lie is known to nobody before it is loaded, but a section that asks for an alignment of a
whole line gets it (kernel/module/main.c: `module_get_offset_and_type`, `percpu_modalloc`). A kernel is moved by whole
multiples of 2 MB (Documentation/arch/x86/boot.rst, `kernel_alignment`), and so are its lines.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from splitlock.image.elf import ET_REL, STT_OBJECT, text_at
from splitlock.image.module import SHT_RELA

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.image.module import Code, KernelImage

_LINE = 64  # bytes
_RELA = struct.Struct("<QQq")
_RELATIVE = (2, 4)  # R_X86_64_PC32, R_X86_64_PLT32: from the field's own place on
_ABSOLUTE = (10, 11)  # R_X86_64_32, R_X86_64_32S


class Data(NamedTuple):
    """`name`: `symbol+0x12`, or by its section; `line`: bytes from the start of its cache line, None: not known."""

    name: str
    line: int | None


def fixed(image: KernelImage, code: Code, at: int, length: int, address: int | None) -> Data | None:
    """The data of the instruction of `length` bytes at an offset of a section; `address`: of its operand, by its bytes.

    None where the operand is at no fixed place. Raises ImageError where the file does not hold together.
    """
    if image.type == ET_REL:
        return _relocated(image, code, at, length)
    return None if address is None else Data(_name(image, None, address), address % _LINE)


def _relocated(image: KernelImage, code: Code, at: int, length: int) -> Data | None:
    for index in image.of_type(SHT_RELA):
        if image.header(index)[7] != code.index:
            continue
        raw = image.contents(index)
        for place, info, addend in _RELA.iter_unpack(raw[: len(raw) // _RELA.size * _RELA.size]):
            if at <= place < at + length and info & 0xFFFFFFFF in (*_RELATIVE, *_ABSOLUTE):
                extra = at + length - place if info & 0xFFFFFFFF in _RELATIVE else 0
                return _target(image, info >> 32, addend + extra)
    return None


def _target(image: KernelImage, number: int, addend: int) -> Data | None:
    symbol = image.symbol(number)
    if symbol is None:
        return None
    name, _, section, value, _ = symbol
    if not 0 < section < len(image.kinds):  # another module's, or the kernel's: it is known by its name alone
        return Data(f"{name}{f'+{addend:#x}' if addend else ''}", None)
    offset, alignment = value + addend, image.header(section)[8]
    return Data(_name(image, section, offset), offset % _LINE if alignment % _LINE == 0 and alignment else None)


def _name(image: KernelImage, section: int | None, place: int) -> str:
    """The object over a place: an offset in a section of a module, an address in a kernel (`section` None)."""
    for name, kind, where, value, size in image.symbols():
        if kind == STT_OBJECT and (section is None or where == section) and value <= place < value + size:
            return f"{name}{f'+{place - value:#x}' if place > value else ''}"
    return f"{text_at(image.names, image.header(section)[0])}+{place:#x}" if section is not None else f"{place:#x}"
