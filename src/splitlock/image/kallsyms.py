"""The kernel's own table of its symbols, in an image of it: a vmlinux, stripped or not, or the memory it runs in.

Source: scripts/kallsyms.c and kernel/kallsyms.c, Linux 5.0 to 7.3. Nothing in the image says where the tables lie, and
no version is asked for; they are found by what must be in them: the token table has a string for each byte of a
compressed name, digits stand for themselves, and the index after it points at every one. Before it lie the names, and
markers: the place of every 256th name. The addresses rise, as the table is sorted by them; of the places and forms
that kernels have had, they have the one where that holds. Tables begin at multiples of 8, since 7.0 of 4.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from itertools import accumulate, islice
from operator import le

from splitlock._errors import ImageError
from splitlock.image.elf import PT_LOAD, Elf

_DIGITS = b"".join(b"%d\0" % digit for digit in range(10))
_TOKENS, _MARKED, _MOST = 256, 256, 1 << 20
_TABLE_BYTES, _NAME_BYTES = 1 << 14, 512
_KERNEL = 0xFFFF_FFFF_8000_0000  # x86-64: where kernels are linked to and mapped (Documentation/arch/x86/x86_64/mm.rst)
_U32, _PAIR, _U64 = struct.Struct("<I"), struct.Struct("<II"), struct.Struct("<Q")
_ALIGNED = 4  # bytes: where a table may begin
_WORD = 1 << 64
_CODE = ("text", "inittext")  # between _stext and _etext, and so on (include/asm-generic/sections.h)
_FEW = 8  # markers: fewer may be chance


class Kallsyms:
    """The symbols in a kernel's `image`, by the addresses that the image has. Raises ImageError where it has none.

    `start`: the address of its first byte, where it is a piece of memory; None: it is an ELF file, which says that.
    """

    def __init__(self, image: bytes, start: int | None = None) -> None:
        names, addresses, kinds = _read(image, start)
        #: address of each symbol; of several with one name the first's
        self.addresses: dict[str, int] = dict(zip(reversed(names), reversed(addresses), strict=True))
        code = sorted(
            (address, name)
            for name, address, kind in zip(names, addresses, kinds, strict=True)
            if kind in "tTwW" and address >= _KERNEL
        )
        self._starts = [address for address, _ in code]
        self._names = [name for _, name in code]

    def function(self, address: int) -> tuple[str, int] | None:
        """The function at an address and the offset into it; None outside the kernel's code."""
        at = bisect_right(self._starts, address) - 1
        ends = [(self.addresses.get(f"_s{part}", 0), self.addresses.get(f"_e{part}", 0)) for part in _CODE]
        if at < 0 or not any(start <= address < end for start, end in ends):
            return None
        while at and self._starts[at - 1] == self._starts[at] and self._names[at].startswith("__pfx_"):
            at -= 1
        return self._names[at], address - self._starts[at]


def _read(image: bytes, start: int | None) -> tuple[list[str], list[int], str]:
    """Names, addresses and kinds (as nm has them) of all symbols."""
    table, tokens, after = _find_tokens(image)
    markers_at, markers = _find_markers(image, table)
    names_at, number = _find_names(image, markers_at, markers)
    raw = _expand(image, names_at, markers_at, number, tokens)
    addresses = _addresses(image, names_at, after, number, start)
    return [name[1:].decode("utf-8", "replace") for name in raw], addresses, "".join(chr(name[0]) for name in raw)


def _find_tokens(image: bytes) -> tuple[int, list[bytes], int]:
    """Where the token table begins, the tokens, and where the index behind it ends."""
    at = image.find(_DIGITS)
    while at >= 0:
        start = at
        for _ in range(ord("0") + 1):  # one NUL too many: the one before the table, which is padding or a number's
            start = image.rfind(b"\0", max(0, start - 64), start)
            if start < 0:
                break
        # padding may be several NULs: the table begins at one of the next places for one
        for table in {_down(start + 1), _up(start + 1)} if start >= 0 else ():
            tokens = image[table : table + _TABLE_BYTES].split(b"\0", _TOKENS)[:_TOKENS]
            if len(tokens) < _TOKENS:
                continue
            places = [0, *accumulate(len(token) + 1 for token in tokens)]
            wanted = struct.pack(f"<{_TOKENS}H", *(place & 0xFFFF for place in places[:_TOKENS]))
            end = table + places[-1]
            for index in (_up(end), _up(end, 8)):
                if image[index : index + len(wanted)] == wanted:
                    return table, tokens, index + len(wanted)
        at = image.find(_DIGITS, at + 1)
    raise ImageError("no table of kernel symbols (CONFIG_KALLSYMS) in it")


def _find_markers(image: bytes, table: int) -> tuple[int, list[int]]:
    """Where the markers begin, and they: the last run of numbers before the table that rise as markers do.

    Between the two, 6.2 to 6.3 and the later 6.1 have the names' order, 3 bytes a name.
    """
    for start in range(_down(table - 4), max(0, table - 3 * _MOST), -_ALIGNED):
        markers = [0]
        at = start
        while at + 8 <= table:
            value, after = _PAIR.unpack_from(image, at)
            if value != markers[-1] or not 2 * _MARKED <= after - value <= _MARKED * _NAME_BYTES:
                break
            markers.append(after)
            at += 4
        if len(markers) > _FEW:
            return start, markers
    raise ImageError("its table of kernel symbols has no markers where they should be")


def _find_names(image: bytes, markers_at: int, markers: list[int]) -> tuple[int, int]:
    """Where the names begin, and how many there are."""
    last = _down(markers_at - markers[-1])
    for start in range(last, max(3, last - _MARKED * _NAME_BYTES), -_ALIGNED):
        for before in (4, min(8, start)):
            (number,) = _U32.unpack_from(image, start - before)
            if (len(markers) - 1) * _MARKED < number <= len(markers) * _MARKED and _walks(image, start, markers):
                return start, number
    raise ImageError("its table of kernel symbols has no names where they should be")


def _walks(image: bytes, start: int, markers: list[int]) -> bool:
    """Whether the first 256 names end where the second marker says."""
    at = start
    for _ in range(_MARKED if len(markers) > 1 else 0):
        if at >= len(image):
            return False
        at += _length(image, at)[1]
    return len(markers) == 1 or at == start + markers[1]


def _length(image: bytes, at: int) -> tuple[int, int]:
    """Where the tokens of the name at `at` begin, counted from there, and its whole length; two bytes since 6.1."""
    length = image[at]
    if length < 0x80 or at + 1 >= len(image):
        return 1, 1 + length
    return 2, 2 + (length & 0x7F | image[at + 1] << 7)


def _expand(image: bytes, at: int, end: int, number: int, tokens: list[bytes]) -> list[bytes]:
    """The names, each after a byte that tells its kind."""
    found = []
    for _ in range(number):
        if at >= end:
            raise ImageError("its table of kernel symbols is cut short")
        head, length = _length(image, at)
        name = b"".join([tokens[byte] for byte in image[at + head : at + length]])
        found.append(name if len(name) > 1 else b"?" + name)
        at += length
    return found


def _addresses(image: bytes, names_at: int, after: int, number: int, start: int | None) -> list[int]:
    """The symbols' addresses: before the names up to Linux 6.3, after the token index since."""
    room = _up(4 * number, 8)
    for offsets_at, base_at in ((names_at - 16 - room, names_at - 16), (after, after + room)):
        if offsets_at >= 0 and base_at + 8 <= len(image):
            (base,) = _U64.unpack_from(image, base_at)
            found = _from_base(struct.unpack_from(f"<{number}i", image, offsets_at), base)
            if base >= _KERNEL and _rise(found):
                return found
    if after + 4 * number <= len(image):
        places = _from_places(struct.unpack_from(f"<{number}i", image, after))
        if _rise(places):
            first = _address(image, after, start)
            return [first + place & _WORD - 1 for place in places]
    raise ImageError("its table of kernel symbols has no addresses where they should be")


def _from_base(offsets: tuple[int, ...], base: int) -> list[int]:
    """Addresses by their distance from a base."""
    if min(offsets) >= 0:
        return [base + offset for offset in offsets]
    # CONFIG_KALLSYMS_ABSOLUTE_PERCPU: what is not negative is an offset in per-CPU memory
    return [offset if offset >= 0 else base - 1 - offset for offset in offsets]


def _from_places(offsets: tuple[int, ...]) -> list[int]:
    """Since Linux 7.0: each is relative to the place where it stands itself; here, to the place of the first."""
    return [4 * index + offset for index, offset in enumerate(offsets)]


def _rise(addresses: list[int]) -> bool:
    return all(map(le, addresses, islice(addresses, 1, None)))


def _address(image: bytes, at: int, start: int | None) -> int:
    """The address that a place in the image has in the kernel."""
    if start is not None:
        return start + at
    for segment in Elf(image).segments:
        if segment.type == PT_LOAD and segment.offset <= at < segment.offset + segment.filesz:
            return int(segment.vaddr + at - segment.offset)
    raise ImageError("its table of kernel symbols lies in no segment of it")


def _down(at: int) -> int:
    return at & -_ALIGNED


def _up(at: int, aligned: int = _ALIGNED) -> int:
    return at + aligned - 1 & -aligned
