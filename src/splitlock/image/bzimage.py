"""The kernel in a bootable file: vmlinuz (bzImage) holds a compressed vmlinux without its symbols.

Source: Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header". payload_offset and payload_length are
there since boot protocol 2.08 (Linux 2.6.26).
"""

from __future__ import annotations

import struct

from splitlock._errors import ImageError
from splitlock.image.compressed import compression, expand

HEAD = 0x250  #: bytes of a file that tell whether it is one, and where its payload lies
_SETUP_SECTS, _SYSSIZE, _MAGIC, _VERSION, _PAYLOAD = 0x1F1, 0x1F4, 0x202, 0x206, 0x248
_OLDEST = 0x208


def is_bzimage(head: bytes) -> bool:
    """Whether a file that starts so is a bootable kernel."""
    return head[_MAGIC : _MAGIC + 4] == b"HdrS" and head[0x1FE:0x200] == b"\x55\xaa"


def length(head: bytes) -> int:
    """Bytes that the kernel has at least, by its own header: the last paragraph of 16 bytes may be cut short."""
    paragraphs = int.from_bytes(head[_SYSSIZE : _SYSSIZE + 4], "little")
    return ((head[_SETUP_SECTS] or 4) + 1) * 512 + max(0, paragraphs * 16 - 15)


def vmlinux(data: bytes, limit: int) -> bytes:
    """The ELF file in a bzImage. Raises ImageError where there is none, or one of more than `limit` bytes."""
    if len(data) < HEAD or int.from_bytes(data[_VERSION : _VERSION + 2], "little") < _OLDEST:
        raise ImageError("a kernel of a boot protocol before 2.08: extract its vmlinux first")
    offset, length = struct.unpack_from("<II", data, _PAYLOAD)
    start = ((data[_SETUP_SECTS] or 4) + 1) * 512 + offset
    if not length or start + length > len(data):
        raise ImageError("the kernel's payload lies outside the file (truncated?)")
    payload = data[start : start + length]
    if compression(payload[:8]):
        payload = expand(payload, limit)
    if payload[:4] != b"\x7fELF":
        raise ImageError("the kernel's payload is no ELF file")
    return payload
