"""What is to be booted, before it is: of what format it is, and whether it is whole. It is only ever read."""

from __future__ import annotations

import os
import struct

from splitlock._errors import SplitlockError
from splitlock.image.bzimage import HEAD, is_bzimage, length

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Read = Callable[[int, int], bytes]  # offset and size

_SECTOR = 512
_CYLINDER = 16 * 63 * _SECTOR  # bytes: of 16 heads with 63 sectors each, the least that Bochs' BIOS boots from
_MAGICS = {b"QFI\xfb": "qcow2", b"KDMV": "vmdk", b"vhdx": "vhdx", b"cone": "vpc"}
_QCOW2 = struct.Struct(">4sIQIIQIIQQ")  # docs/interop/qcow2.txt of QEMU
_OFFSET = 0x00FF_FFFF_FFFF_FE00
_COMPRESSED = 1 << 62
_TABLES = 1 << 26  # bytes of a table; more is no image


def check_readable(option: str, path: str | None) -> None:
    """Can this file be read? None is nobody's. Raises SplitlockError."""
    if path is None:
        return
    try:
        with open(path, "rb") as file:
            if not file.read(1):
                raise SplitlockError(f"{option} {path}: empty", 2)
    except OSError as error:
        raise SplitlockError(f"{option} {path}: {error.strerror}", 2) from None


def check_kernel(path: str | None) -> None:
    """Is this a kernel that QEMU can start? None is nobody's. Raises SplitlockError."""
    if path is None:
        return
    with open(path, "rb") as file:
        head = file.read(HEAD)
        size = file.seek(0, os.SEEK_END)
    if not is_bzimage(head) and head[:4] != b"\x7fELF":
        raise SplitlockError(f"--kernel {path}: neither a bzImage (vmlinuz) nor a vmlinux", 2)
    if is_bzimage(head) and (needed := length(head)) > size:
        raise SplitlockError(f"--kernel {path}: truncated: {size:,} bytes of {needed:,}; copy it anew", 2)


def check_raw(path: str, kind: str) -> None:
    """Is this a disk that Bochs can have? `kind`: as `check` has found. Raises SplitlockError."""
    if kind != "raw":
        raise SplitlockError(f"--disk {path}: {kind}, and --vmx takes raw ones: qemu-img convert -O raw FROM TO", 2)
    size = os.stat(path).st_size
    if size % _SECTOR or size < _CYLINDER:
        raise SplitlockError(
            f"--disk {path}: {size:,} bytes; --vmx needs whole sectors, {_CYLINDER:,} bytes at least: "
            f"truncate -s %{_CYLINDER} on a copy of it", 2,
        )  # fmt: skip


def check(path: str) -> str:
    """The disk's format, as QEMU calls it. Raises SplitlockError where it cannot be read, or is cut short."""
    check_readable("--disk", path)
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        kind = _MAGICS.get(file.read(8)[:4], "raw")
        needed = 0
        try:
            if kind == "raw":
                needed = _partitions(lambda at, n: os.pread(file.fileno(), n, at))
            elif kind == "qcow2":
                needed = _clusters(lambda at, n: os.pread(file.fileno(), n, at), size)
        except struct.error:
            raise SplitlockError(f"--disk {path}: truncated: its {kind} tables lie beyond its end", 2) from None
    if needed > size:
        raise SplitlockError(
            f"--disk {path}: truncated: {size:,} bytes, but something begins or ends at {needed:,}; copy it anew", 2
        )
    return kind


def _partitions(read: Read) -> int:
    """Where the last partition ends, in bytes: by GPT (UEFI specification, 5.3), else by MBR. 0 without either."""
    head = read(0, 2 * _SECTOR)
    if head[510:512] != b"\x55\xaa":
        return 0
    if head[_SECTOR : _SECTOR + 8] == b"EFI PART":
        _, last = struct.unpack_from("<QQ", head, _SECTOR + 40)
        at, number, each = struct.unpack_from("<QII", head, _SECTOR + 72)
        table = read(at * _SECTOR, min(number * each, _TABLES))
        ends = [
            struct.unpack_from("<Q", table, entry + 40)[0] + 1
            for entry in range(0, len(table) - 127, max(each, 128))
            if any(table[entry : entry + 16])
        ]
        return _SECTOR * int(min(max(ends, default=0), last + 1))
    entries = [head[at : at + 16] for at in range(446, 510, 16)]
    if any(entry[0] & 0x7F for entry in entries):  # no table: a file system's boot sector
        return 0
    used = [struct.unpack_from("<II", entry, 8) for entry in entries if entry[4]]
    return _SECTOR * max((start + length for start, length in used), default=0)


def _clusters(read: Read, size: int) -> int:
    """Where the last cluster that is in use ends at least, in bytes. Raises struct.error where a table is not there."""
    head = read(0, _QCOW2.size)
    _, _, _, _, bits, _, _, number, l1_at, _ = _QCOW2.unpack(head)
    if not 9 <= bits <= 21 or number * 8 > _TABLES or l1_at + number * 8 > size:
        raise struct.error
    last = 0
    for entry in struct.unpack(f">{number}Q", read(l1_at, number * 8)):
        if entry & _OFFSET:
            table = read(entry & _OFFSET, 1 << bits)
            for cluster in struct.unpack(f">{(1 << bits) // 8}Q", table):
                if cluster & _OFFSET and not cluster & _COMPRESSED:
                    last = max(last, cluster & _OFFSET)
    return last + 1 if last else 0  # the last cluster itself may be cut short: so QEMU writes it
