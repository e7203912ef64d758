"""Where the functions of an image are: call frame entries (FDE) and sized function symbols.

Outside these ranges the text may be data (crypto tables, jump tables), so nothing there is ever
taken for an instruction.
"""

from __future__ import annotations

import struct

from splitlock._errors import ImageError
from splitlock.image.elf import PT_GNU_EH_FRAME, STT_FUNC, STT_GNU_IFUNC, Elf

# DWARF exception header pointer encodings (LSB, section 10.5.1): format and application.
_FORMATS = {0x00: "<Q", 0x02: "<H", 0x03: "<I", 0x04: "<Q", 0x0A: "<h", 0x0B: "<i", 0x0C: "<q"}
_PCREL, _INDIRECT, _OMIT = 0x10, 0x80, 0xFF
_U64 = (1 << 64) - 1


def function_ranges(elf: Elf) -> list[tuple[int, int]]:
    """Sorted, non-overlapping `(start, end)` addresses of functions.

    Each start is one where an instruction begins. Functions that overlap (aliases, a symbol within
    an FDE) are cut at the next start, so that every known start is decoded from.
    """
    bounds = {(start, end) for start, end in frame_ranges(elf)}
    bounds.update((s.value, s.value + s.size) for s in elf.symbols() if s.type in (STT_FUNC, STT_GNU_IFUNC) and s.size)
    code = [(s.vaddr, s.vaddr + s.filesz) for s in elf.executable()]
    ranges: list[tuple[int, int]] = []
    for start, end in sorted(bounds):
        if not any(low <= start and end <= high for low, high in code):
            continue
        if ranges and start < ranges[-1][1]:
            before, reach = ranges[-1]
            if start == before:
                ranges[-1] = (before, max(end, reach))
                continue
            ranges[-1] = (before, start)
            end = max(end, reach)
        ranges.append((start, end))
    return ranges


def frame_ranges(elf: Elf) -> list[tuple[int, int]]:
    """`(start, end)` of every frame description entry in .eh_frame.

    Found by section header, else through PT_GNU_EH_FRAME. Raises ImageError when it is malformed.
    """
    return [(start, end) for start, end, _ in frames(elf)]


def handler_starts(elf: Elf) -> set[int]:
    """Starts of functions whose frame entry names exception handlers (a language-specific data area)."""
    return {start for start, _, handlers in frames(elf) if handlers}


def frame_section(elf: Elf) -> tuple[bytes, int]:
    """The contents of .eh_frame and its address; empty where there is none.

    Found by section header, else through PT_GNU_EH_FRAME. Raises ImageError when that points nowhere.
    """
    section = elf.section(".eh_frame")
    if section is not None and section.size:
        return elf.data[section.offset : section.offset + section.size], section.addr
    header = next((s for s in elf.segments if s.type == PT_GNU_EH_FRAME), None)
    if header is None:
        return b"", 0
    encoding = elf.read(header.vaddr + 1, 1)[0]
    address = _pointer(elf.read(header.vaddr, header.filesz), 4, encoding, header.vaddr)[0]
    holder = next((s for s in elf.segments if s.vaddr <= address < s.vaddr + s.filesz and s.type == 1), None)
    if holder is None:
        raise ImageError("PT_GNU_EH_FRAME points outside the file")
    return elf.read(address, holder.vaddr + holder.filesz - address), address


def frames(elf: Elf) -> list[tuple[int, int, bool]]:
    """`(start, end, may have handlers)` of every frame description entry. Raises ImageError when one is malformed."""
    try:
        return _entries(*frame_section(elf))
    except ImageError:
        raise
    except (IndexError, ValueError, struct.error):
        raise ImageError("malformed .eh_frame") from None


def _entries(raw: bytes, address: int) -> list[tuple[int, int, bool]]:
    found = []
    encodings: dict[int, tuple[int, int, bool]] = {}
    at, size = 0, len(raw)
    word = struct.Struct("<I").unpack_from
    pair = struct.Struct("<iI").unpack_from
    while at + 4 <= size:
        (length,) = word(raw, at)
        body = at + 4
        if length == 0xFFFFFFFF:
            (length,) = struct.unpack_from("<Q", raw, body)
            body += 8
        if not length:  # terminator; linkers may leave one in the middle, so go on
            at = body
            continue
        (cie,) = word(raw, body)
        if cie == 0:
            encodings[at] = _cie_encoding(raw, body)
        else:
            encoding, early, handlers = encodings.get(body - cie, (_OMIT, 0, False))
            start = span = 0
            if encoding == 0x1B:  # pcrel|sdata4: what every x86-64 linker writes
                start, span = pair(raw, body + 4)
                start = start + address + body + 4 & _U64
            elif encoding != _OMIT:
                start, after = _pointer(raw, body + 4, encoding, address)
                span, _ = _pointer(raw, after, encoding & 0x0F, 0)
            if span - early > 0:
                found.append((start + early, start + span, handlers))
        at = body + length
    return found


def _cie_encoding(raw: bytes, body: int) -> tuple[int, int, bool]:
    """A CIE's augmentation: FDE pointer encoding, how many bytes early its FDEs begin, may they have handlers.

    Entries of signal frames begin a byte before the function, so that unwinders, which look up
    the return address less one, find them.
    """
    end = raw.index(b"\0", body + 5)
    augmentation = raw[body + 5 : end]
    encoding = early = 0  # DW_EH_PE_absptr
    handlers = b"L" in augmentation
    if not augmentation.startswith(b"z"):
        return encoding, early, handlers
    at = end + 1
    for _ in range(3):  # code and data alignment, return address register, length of the augmentation
        at = _skip_leb(raw, at)
    at = _skip_leb(raw, at)
    for letter in augmentation[1:]:
        if letter == ord("R"):
            encoding = raw[at]
            at += 1
        elif letter == ord("P"):
            _, at = _pointer(raw, at + 1, raw[at] & 0x0F, 0)
        elif letter == ord("L"):
            at += 1
        elif letter == ord("S"):
            early = 1
    return encoding, early, handlers


def _skip_leb(raw: bytes, at: int) -> int:
    while raw[at] & 0x80:
        at += 1
    return at + 1


def _pointer(raw: bytes, at: int, encoding: int, address: int) -> tuple[int, int]:
    """The pointer encoded at `at` of a section loaded at `address`, and where it ends."""
    layout = _FORMATS.get(encoding & 0x0F)
    if layout is None or encoding & _INDIRECT:
        raise ImageError(f"pointer encoding {encoding:#x} in .eh_frame")
    try:
        (value,) = struct.unpack_from(layout, raw, at)
    except struct.error:
        raise ImageError("malformed .eh_frame") from None
    if encoding & 0x70 == _PCREL:
        value = value + address + at & _U64
    return value, at + struct.calcsize(layout)
