"""Packages and compressed files for the fuzzers: built around small ELF files, and damage that gets past checksums.

An input's first byte says what its file is called (`NAMES`), and whether it was named by the user (below 128).
A container is taken apart, something in it changed, and put together again with right sizes and sums.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zlib
from collections.abc import Callable
from random import Random

import lz4.block  # type: ignore[import-untyped]
import zstandard
from fuzz import images
from fuzz.mutate import damage, number, put

NAMES = (
    "a.ko", "a.ko.gz", "a.ko.xz", "a.ko.zst", "a.deb", "a.rpm", "a.tar", "a.tar.xz", "vmlinuz-6.1", "a.r0",
    "vmlinux.lz4", "a",
)  # fmt: skip
_LARGEST = 1 << 18  # bytes that the fuzzer itself decompresses
_AR = b"!<arch>\n"
_RPM = b"\xed\xab\xee\xdb"
_ENTRY = b"\x8e\xad\xe8\x01\0\0\0\0"


# Putting together


def legacy_lz4(data: bytes) -> bytes:
    """As `lz4 -l`, which the kernel's build calls."""
    parts = [b"\x02\x21\x4c\x18"]
    for at in range(0, len(data), 8 << 20):
        block = lz4.block.compress(data[at : at + (8 << 20)], store_size=False)
        parts += [len(block).to_bytes(4, "little"), block]
    return b"".join(parts)


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "xz": lambda data: lzma.compress(data, preset=0),
    "zstd": zstandard.compress,
    "bzip2": bz2.compress,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "lz4": legacy_lz4,
}


def _coded(value: int) -> bytes:
    code = b""
    while value > 0x7F:
        code, value = code + bytes([value & 0x7F | 0x80]), value >> 7
    return code + bytes([value])


def xz_blocks(*parts: bytes, sizes: list[tuple[int, int]] | None = None) -> bytes:
    """An xz file of one block a part, as several threads write it; `sizes`: what its index says instead."""
    blocks, entries = [], []
    for part in parts:
        raw = lzma.compress(part, preset=0)
        index = (int.from_bytes(raw[-8:-4], "little") + 1) * 4
        block = raw[12 : -12 - index]
        padding = 3 - (raw[-12 - index + 2] + 3) % 4  # the unpadded size is the index's second number
        unpadded, shift = 0, 0
        for byte in raw[-12 - index + 2 :]:
            unpadded |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        assert padding >= 0
        blocks.append(block)
        entries.append((unpadded, len(part)))
    head = lzma.compress(b"", preset=0)[:12]
    index_ = b"\0" + _coded(len(sizes or entries))
    index_ += b"".join(_coded(unpadded) + _coded(size) for unpadded, size in sizes or entries)
    index_ += bytes(-len(index_) % 4)
    index_ += zlib.crc32(index_).to_bytes(4, "little")
    footer = (len(index_) // 4 - 1).to_bytes(4, "little") + head[6:8]
    return head + b"".join(blocks) + index_ + zlib.crc32(footer).to_bytes(4, "little") + footer + b"YZ"


def tar(files: dict[str, bytes], style: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar archive."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=style) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return raw.getvalue()


def ar(entries: list[tuple[bytes, bytes]]) -> bytes:
    """What a .deb is: (the first 48 bytes of a header, contents)."""
    parts = [_AR]
    for head, data in entries:
        parts += [head.ljust(48)[:48], b"%-10d`\n" % len(data), data, b"\n" * (len(data) % 2)]
    return b"".join(parts)


def deb(files: dict[str, bytes], kind: str = "") -> bytes:
    """A Debian package."""
    data = tar(files)
    ending = {"": b"", "gzip": b".gz", "xz": b".xz", "zstd": b".zst"}[kind]
    packed = COMPRESSORS[kind](data) if kind else data
    return ar([(b"debian-binary", b"2.0\n"), (b"control.tar", tar({"control": b"x"})), (b"data.tar" + ending, packed)])


def cpio(files: dict[str, bytes]) -> bytes:
    """A cpio archive as an .rpm holds it."""
    parts = []
    for name, data in {**files, "TRAILER!!!": b""}.items():
        code = name.encode() + b"\0"
        fields = (1, 0o100644, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(code), 0)
        head = b"070701" + b"".join(b"%08x" % field for field in fields) + code
        parts += [head, bytes(-len(head) % 4), data, bytes(-len(data) % 4)]
    return b"".join(parts)


def rpm(payload: bytes) -> bytes:
    """An RPM package without tags."""
    entry = _ENTRY + struct.pack(">II", 1, 4) + bytes(20)
    return _RPM + bytes(92) + entry + bytes(-len(entry) % 8) + entry + payload


def bzimage(payload: bytes) -> bytes:
    """A bootable kernel."""
    head = bytearray(0x400)
    head[0x1F1], head[0x1FE:0x200], head[0x202:0x208] = 1, b"\x55\xaa", b"HdrS\x0f\x02"
    struct.pack_into("<II", head, 0x248, 0, len(payload))
    return bytes(head) + payload


def seeds() -> list[bytes]:
    """One of each container, with one or two ELF files of a kilobyte."""
    module, kernel = images.module(), images.linked()
    files = {"./lib/a.ko": module, "./lib/b.ko.xz": COMPRESSORS["xz"](module), "./boot/vmlinuz-1": bzimage(kernel)}
    few = {"usr/" + "long/" * 40 + "a.ko": module, "é": b"text"}
    pieces = [tar(few)[at : at + 1024] for at in range(0, len(tar(few)), 1024)]
    found = {
        "a.ko": [module],
        "a.ko.gz": [COMPRESSORS["gzip"](module), COMPRESSORS["gzip"](module[:900]) + COMPRESSORS["gzip"](module[900:])],
        "a.ko.xz": [COMPRESSORS["xz"](module), xz_blocks(module[:500], module[500:])],
        "a.ko.zst": [COMPRESSORS["zstd"](module)],
        "a.deb": [deb(files), deb(files, "gzip"), deb(few, "xz"), deb(files, "zstd")],
        "a.rpm": [rpm(cpio(files)), rpm(COMPRESSORS["zstd"](cpio(few))), rpm(COMPRESSORS["lzma"](cpio(few)))],
        "a.tar": [tar(files), tar(few, tarfile.PAX_FORMAT)],
        "a.tar.xz": [COMPRESSORS["xz"](tar(few)), xz_blocks(*pieces)],
        "vmlinuz-6.1": [bzimage(COMPRESSORS[kind](kernel)) for kind in ("xz", "lz4", "zstd", "gzip")],
        "a.r0": [module],
        "vmlinux.lz4": [legacy_lz4(kernel)],
        "a": [COMPRESSORS["bzip2"](module), COMPRESSORS["lzma"](module), b"no image"],
    }  # fmt: skip
    return [bytes([NAMES.index(name)]) + raw for name, all_of_it in found.items() for raw in all_of_it]


# Taking apart


def _expanded(raw: bytes) -> tuple[str, bytes] | None:
    """Which compression, and what is in it; None where nothing can be had."""
    try:
        if raw[:3] == b"\x1f\x8b\x08":
            return "gzip", zlib.decompressobj(31).decompress(raw, _LARGEST)
        if raw[:6] == b"\xfd7zXZ\0":
            return "xz", lzma.LZMADecompressor(lzma.FORMAT_XZ, 64 << 20).decompress(raw, _LARGEST)
        if raw[:3] == b"\x5d\0\0":
            return "lzma", lzma.LZMADecompressor(lzma.FORMAT_ALONE, 64 << 20).decompress(raw, _LARGEST)
        if raw[:4] == b"\x28\xb5\x2f\xfd":
            return "zstd", zstandard.ZstdDecompressor(max_window_size=8 << 20).stream_reader(raw).read(_LARGEST)
        if raw[:3] == b"BZh":
            return "bzip2", bz2.BZ2Decompressor().decompress(raw, _LARGEST)
        if raw[:4] == b"\x02\x21\x4c\x18":
            return "lz4", lz4.block.decompress(raw[8:], uncompressed_size=_LARGEST)
    except (lzma.LZMAError, zlib.error, zstandard.ZstdError, lz4.block.LZ4BlockError, OSError, EOFError, ValueError):
        pass
    return None


def _repacked(raw: bytes, chance: Random, depth: int) -> bytes | None:
    """Something changed in compressed data, and compressed again: in the same way, in pieces, in another way."""
    found = _expanded(raw)
    if found is None or chance.random() < 0.25:
        return None
    kind, data = found
    data = _changed(data, chance, depth + 1)
    way = chance.random()
    if way < 0.1:
        kind = chance.choice(list(COMPRESSORS))
    elif way < 0.3:
        at = sorted(chance.randrange(len(data) + 1) for _ in range(chance.choice((1, 2, 8))))
        parts = [data[low:high] for low, high in zip([0, *at], [*at, len(data)], strict=True)]
        if kind == "xz" and chance.random() < 0.7:
            sizes = [(abs(number(chance, 100)), abs(number(chance, len(part)))) for part in parts]
            return xz_blocks(*parts, sizes=sizes if chance.random() < 0.3 else None)
        return b"".join(COMPRESSORS[kind](part) for part in parts)
    return COMPRESSORS[kind](data) + (bytes(chance.choice((0, 0, 4))))


def _ar(raw: bytes, chance: Random, depth: int) -> bytes:
    """A member's contents or header changed, a member left out, doubled or moved."""
    entries, at = [], len(_AR)
    while at + 60 <= len(raw) and raw[at + 48 : at + 58].strip().isdigit():
        size = int(raw[at + 48 : at + 58])
        entries.append((raw[at : at + 48], raw[at + 60 : at + 60 + size]))
        at += 60 + size + size % 2
    if not entries:
        return damage(raw, chance)
    place = chance.randrange(len(entries))
    head, data = entries[-1 if chance.random() < 0.6 else place]
    way = chance.random()
    if way < 0.75:
        return ar([*entries[:-1], (head, _changed(data, chance, depth + 1))])
    if way < 0.85:
        entries.insert(place, chance.choice(entries))
        del entries[chance.randrange(len(entries))]
        return ar(entries)
    made = ar(entries)
    field = chance.choice((b"-60", b"0", b"9999999999", b"", b"+1", b" 7", b"1_0", b"\xb2"))
    at = made.find(head) + 48
    return made[:at] + field.ljust(10)[:10] + made[at + 10 :]


_TAR_FIELDS = ((0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8), (345, 155))
_TAR_VALUES = (
    b"", b"\0", b"77777777777", b"-1", b"\xff" * 12, b"\x80" + b"\xff" * 11, b"\x80" + bytes(10) + b"\x7f", b"00001",
    b" 1 2 ", b"./", b"/", b"..", b"a.ko", b"vmlinuz", b"\xff\xfe.ko", b"a\nb.ko", b"L", b"K", b"x", b"g", b"S", b"1",
    b"2", b"5", b"X", b"D", b"ustar  \0", "é.ko".encode(),
)  # fmt: skip
_PAX = (
    b"9 size=1\n", b"14 size=99999\n", b"23 size=99999999999999\n", b"16 path=b/c.ko\n", b"0 a=b\n", b"1 a=b\n",
    b"99 a=b\n", b" \n", b"6 a=b\n", b"12 size=-1\n\n", b"10 path=\xff\n", b"\xb2 a=b\n", b"10 size= 5\n",
)  # fmt: skip


def _summed(header: bytes) -> bytes:
    """A tar header with its sum right."""
    header = header[:148] + b" " * 8 + header[156:]
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]


def _tar(raw: bytes, chance: Random, depth: int) -> bytes:
    """A header's field, a file's contents, or an extended header more."""
    places, at = [], 0
    while at + 512 <= len(raw) and raw[at + 257 : at + 262] == b"ustar":
        digits = raw[at + 124 : at + 135].strip(b" \0")
        size = int(digits, 8) if digits.isdigit() and not set(digits) & set(b"89") else 0
        places.append((at, size))
        at += 512 + (size + 511 & ~511)
    if not places:
        return damage(raw, chance)
    at, size = chance.choice(places)
    header, rest = raw[at : at + 512], raw[at + 512 + (size + 511 & ~511) :]
    data = raw[at + 512 : at + 512 + size]
    way = chance.random()
    if way < 0.4:
        field, width = chance.choice(_TAR_FIELDS)
        header = header[:field] + chance.choice(_TAR_VALUES).ljust(width, b"\0")[:width] + header[field + width :]
    elif way < 0.8:
        data = _changed(data, chance, depth + 1)
        header = header[:124] + b"%011o\0" % len(data) + header[136:]
    else:
        kind = chance.choice((b"x", b"x", b"g", b"L", b"K", b"X"))
        text = b"n" * chance.choice((0, 100, 700)) + b".ko\0"
        if kind in b"xgX":
            text = b"".join(chance.choices(_PAX, k=chance.randrange(4)))
        extra = header[:124] + b"%011o\0" % len(text) + header[136:156] + kind + header[157:]
        header = _summed(extra) + text + bytes(-len(text) % 512) + _summed(header)
    header = header[:-512] + _summed(header[-512:])
    return raw[:at] + header + data + bytes(-len(data) % 512) + rest


def _cpio(raw: bytes, chance: Random, depth: int) -> bytes:
    """A header's field, or a file's contents."""
    places, at = [], 0
    while raw[at : at + 6] == b"070701" and at + 110 <= len(raw):
        try:
            size, length = int(raw[at + 54 : at + 62], 16), int(raw[at + 94 : at + 102], 16)
        except ValueError:
            break
        start = at + 110 + length + 3 & ~3
        places.append((at, start, size))
        at = start + (size + 3 & ~3)
    if not places:
        return damage(raw, chance)
    at, start, size = chance.choice(places)
    if chance.random() < 0.5:
        at += 6 + 8 * chance.choice((1, 6, 6, 11, 11, chance.randrange(13)))
        field = b"%08x" % (number(chance, size) % (1 << 32))
        return raw[:at] + chance.choice((field, field, field, b"-0000001", b" 1_0    ", b"+0000009")) + raw[at + 8 :]
    data = _changed(raw[start : start + size], chance, depth + 1)
    header = raw[: at + 54] + b"%08x" % len(data) + raw[at + 62 : start]
    return header + data + bytes(-len(data) % 4) + raw[start + (size + 3 & ~3) :]


def _rpm(raw: bytes, chance: Random, depth: int) -> bytes:
    """The sizes in its headers, or its contents."""
    at = 96
    places = []
    for alignment in (8, 1):
        places += [at + 8, at + 12]
        at += 16 + 16 * int.from_bytes(raw[at + 8 : at + 12], "big") + int.from_bytes(raw[at + 12 : at + 16], "big")
        at += -at % alignment
    if chance.random() < 0.2 or at > len(raw):
        return put(raw, chance.choice(places), number(chance, len(raw)), 4, "big")
    return raw[:at] + _changed(raw[at:], chance, depth + 1)


def _bzimage(raw: bytes, chance: Random, depth: int) -> bytes:
    """The fields that say where the payload lies, or the payload."""
    if chance.random() < 0.3:
        at, width = chance.choice(((0x1F1, 1), (0x206, 2), (0x248, 4), (0x24C, 4)))
        return put(raw, at, number(chance, len(raw)), width)
    start = (raw[0x1F1] + 1) * 512
    payload = _changed(raw[start:], chance, depth + 1)
    return put(raw[:start], 0x24C, len(payload), 4) + payload


def _changed(raw: bytes, chance: Random, depth: int = 0) -> bytes:
    """Whatever it is, with something in it changed."""
    if depth > 6 or chance.random() < 0.1:
        return damage(raw, chance)
    if raw[:4] == b"\x7fELF":
        return images.mutate(raw, chance)
    if raw[:8] == _AR:
        return _ar(raw, chance, depth)
    if raw[:4] == _RPM:
        return _rpm(raw, chance, depth)
    if raw[:6] == b"070701":
        return _cpio(raw, chance, depth)
    if raw[257:262] == b"ustar":
        return _tar(raw, chance, depth)
    if raw[0x202:0x206] == b"HdrS":
        return _bzimage(raw, chance, depth)
    repacked = _repacked(raw, chance, depth)
    return damage(raw, chance) if repacked is None else repacked


def mutate(raw: bytes, chance: Random) -> bytes:
    """An input changed somewhere, however deep; seldom its file's name."""
    head, raw = raw[:1] or b"\0", raw[1:]
    if chance.random() < 0.1:
        head = bytes([chance.choice((chance.randrange(256), head[0] ^ 0x80))])
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        raw = _changed(raw, chance)
    if chance.random() < 0.02:
        raw = COMPRESSORS[chance.choice(list(COMPRESSORS))](raw)
    return (head + raw)[: 1 << 16]
