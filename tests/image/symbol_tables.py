"""Tables of kernel symbols, as scripts/kallsyms.c of each time writes them: what test_kallsyms.py reads back."""

from __future__ import annotations

import struct
from typing import Literal, NamedTuple

BASE = 0xFFFF_FFFF_8100_0000  #: where a kernel's image begins

#: `before`: offsets and base before the names (5.0 to 6.3); `after`: behind the tokens (6.4 to 6.19); `places`: each
#: offset relative to its own place, no base, tables at multiples of 4 (7.0 on).
Layout = Literal["before", "after", "places"]
LAYOUTS: tuple[Layout, ...] = ("before", "after", "places")


class Symbol(NamedTuple):
    """One line of /proc/kallsyms."""

    address: int
    kind: str
    name: str


def _tokens() -> list[bytes]:
    """Letters, digits and signs stand for themselves; other bytes for what is frequent, or for nothing."""
    pairs = [first + second for first in "abcdefgh" for second in "_stp"]
    frequent = iter(pairs)
    return [bytes([byte]) if 33 <= byte < 127 else next(frequent, "").encode() for byte in range(256)]


TOKENS = _tokens()
_SHORT = {token: bytes([byte]) for byte, token in enumerate(TOKENS) if len(token) == 2}


def _compressed(text: bytes) -> bytes:
    out = bytearray()
    while text:
        short = _SHORT.get(text[:2])
        out += short or text[:1]
        text = text[2:] if short else text[1:]
    return bytes(out)


def _length(size: int) -> bytes:
    return bytes([size]) if size < 0x80 else bytes([size & 0x7F | 0x80, size >> 7])


class _Writer:
    """Bytes with labels at multiples of `align`."""

    def __init__(self, lead: bytes, align: int) -> None:
        self.data, self.align = bytearray(lead), align

    def label(self, content: bytes) -> None:
        self.data += bytes(-len(self.data) % self.align) + content


def image(symbols: list[Symbol], layout: Layout, *, lead: bytes, percpu: bool, order: bool, slide: int = 0) -> bytes:
    """An image of a kernel with these symbols, which are sorted by address; `lead`: what lies before the tables.

    `percpu`: of the first layouts, the addresses below 2^31 are offsets in per-CPU memory and stand as they are;
    `order`: the numbers by name are there, too; `slide`: bytes by which the kernel was moved (KASLR).
    """
    writer = _Writer(lead, 4 if layout == "places" else 8)
    base = next(symbol.address for symbol in symbols if symbol.address >= BASE)

    def offsets() -> bytes:
        if layout == "places":
            at = BASE + len(writer.data) + -len(writer.data) % writer.align
            return struct.pack(f"<{len(symbols)}i", *(s.address - at - 4 * i for i, s in enumerate(symbols)))
        if percpu:
            wanted = (s.address if s.address < BASE else base - 1 - s.address for s in symbols)
        else:
            wanted = (s.address - base for s in symbols)
        return struct.pack(f"<{len(symbols)}i", *wanted)

    names, markers = bytearray(), []
    for index, symbol in enumerate(symbols):
        if index % 256 == 0:
            markers.append(len(names))
        text = _compressed((symbol.kind + symbol.name).encode())
        names += _length(len(text)) + text
    by_name = sorted(range(len(symbols)), key=lambda index: symbols[index].name)
    sequence = b"".join(index.to_bytes(3, "big") for index in by_name)
    places = [sum(len(token) + 1 for token in TOKENS[:index]) for index in range(256)]

    if layout == "before":
        writer.label(offsets())
        writer.label(struct.pack("<Q", base + slide))
    writer.label(struct.pack("<I", len(symbols)))
    writer.label(bytes(names))
    if layout == "before" and order:  # 6.1.y, 6.2, 6.3
        writer.label(sequence)
    writer.label(struct.pack(f"<{len(markers)}I", *markers))
    writer.label(b"".join(token + b"\0" for token in TOKENS))
    writer.label(struct.pack("<256H", *places))
    if layout != "before":
        writer.label(offsets())
        if layout == "after":
            writer.label(struct.pack("<Q", base + slide))
        if order:
            writer.label(sequence)
    return bytes(writer.data) + bytes(64)
