"""What text does a stored log hold? Decompressed, as UTF-8, in chunks; what is no log at all is refused in one line."""

from __future__ import annotations

import codecs
import io
import os

from splitlock._errors import ImageError, SplitlockError
from splitlock.image.compressed import CHUNK, compression, stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

JOURNAL = b"LPKSHHRH"  #: systemd's journal files begin so (systemd.journal-format: HeaderSignature)
_LZ4_FRAME = b"\x04\x22\x4d\x18"  # lz4(1)'s format; image.compressed knows the kernel's older one
_HEAD = 4096  # bytes by which a file's kind is told
_TAR = 257  # where a tar archive has its magic number
_SHARE = 0.3  # of the characters in a text of 16 bits have a zero byte, and always on the same side
_MARKS = (
    (b"\xff\xfe\0\0", "utf-32-le"), (b"\0\0\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"), (b"\xef\xbb\xbf", "utf-8"),
)  # fmt: skip
#: What people have given instead of a log, by how it begins, and what to do about it.
_OTHERS = (
    (b"\x7fELF", "an ELF program or core file; name a log of the kernel's"),
    (b"MZ", "a Windows program; name a log of the kernel's"),
    (b"\x89PNG", "a picture; name the log as text"),
    (b"\xff\xd8\xff", "a picture; name the log as text"),
    (b"GIF8", "a picture; name the log as text"),
    (b"%PDF", "a PDF; name the log as text"),
    (b"PK\x03\x04", "a ZIP archive; unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"-----BEGIN PGP", "encrypted; decrypt it first"),
    (b"KDUMP   ", "a crash dump; its log: makedumpfile --dump-dmesg FILE LOG"),
    (b"SQLite format 3", "a database; name a log of the kernel's"),
)  # fmt: skip


class Broken(Exception):
    """A log that ends before its end: what came before is as it was. `str()` says what is wrong."""


def text(descriptor: int, name: str) -> Iterator[bytes]:
    """The text of an open file, from where it is read, in chunks of some MiB at most.

    Raises Broken where compressed data is damaged or cut off, SplitlockError where it is another kind of file; OSError.
    """
    head = _head(descriptor)
    first = io.BytesIO(head)

    def more(size: int) -> bytes:
        return first.read(size) or os.read(descriptor, size)

    kind = compression(head[:8]) or ("lz4 frame" if head.startswith(_LZ4_FRAME) else None)
    chunks = _decompressed(more, kind) if kind else iter(lambda: more(CHUNK), b"")
    yield from _utf8(chunks, name)


def _head(descriptor: int) -> bytes:
    found = b""
    while len(found) < _HEAD and (data := os.read(descriptor, _HEAD - len(found))):
        found += data
    return found


def _decompressed(read: Callable[[int], bytes], kind: str) -> Iterator[bytes]:
    try:
        yield from _lz4(read) if kind == "lz4 frame" else stream(read, kind)
    except ImageError as error:
        raise Broken(str(error)) from None


def _lz4(read: Callable[[int], bytes]) -> Iterator[bytes]:
    try:
        import lz4.frame  # type: ignore[import-untyped]
    except ImportError:
        raise Broken("lz4-compressed data needs the Python package lz4: lz4cat FILE | splitlock ... -") from None
    decompressor = lz4.frame.LZ4FrameDecompressor()
    data = b""
    try:
        while True:
            data = read(CHUNK) if decompressor.needs_input else b""
            if not data and decompressor.needs_input:
                raise Broken("lz4 data ends too early (truncated?)")
            yield decompressor.decompress(data, max_length=CHUNK)
            if decompressor.eof:
                data = decompressor.unused_data or read(CHUNK)
                if not data.startswith(_LZ4_FRAME):
                    return
                left, decompressor = data, lz4.frame.LZ4FrameDecompressor()
                yield decompressor.decompress(left, max_length=CHUNK)
    except RuntimeError as error:
        raise Broken(f"damaged lz4 data: {error}") from None


def _utf8(chunks: Iterator[bytes], name: str) -> Iterator[bytes]:
    """Text of 16 bits (PowerShell's `>` writes it) in UTF-8, without a mark at its start. What is no log is refused."""
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= _HEAD:
            break
    _refuse(head, name)
    mark, encoding = next((known for known in _MARKS if head.startswith(known[0])), (b"", _wide(head)))
    head = head[len(mark) :]
    if encoding == "utf-8":
        yield head
        yield from chunks
        return
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    yield decoder.decode(head).encode("utf-8", "replace")
    for chunk in chunks:
        yield decoder.decode(chunk).encode("utf-8", "replace")
    yield decoder.decode(b"", True).encode("utf-8", "replace")


def _refuse(head: bytes, name: str) -> None:
    what = next((what for magic, what in _OTHERS if head.startswith(magic)), None)
    if head[_TAR : _TAR + 5] == b"ustar":
        what = "a tar archive; unpack it, then name the log in it, or `splitlock status --root DIRECTORY`"
    if what:
        raise SplitlockError(f"{name}: {what}", 2)


def _wide(head: bytes) -> str:
    """A text of 16 bits that does not say so: mostly ASCII, so that every other byte is zero."""
    left, right = head[0:_HEAD:2].count(0), head[1:_HEAD:2].count(0)
    enough = _SHARE * len(head[:_HEAD]) / 2
    if right > enough and left < right / 8:
        return "utf-16-le"
    return "utf-16-be" if left > enough and right < left / 8 else "utf-8"


def packed(head: bytes) -> bool:
    """Does a file that begins so hold text only when something was done to it?"""
    return bool(compression(head[:8])) or head.startswith((_LZ4_FRAME, JOURNAL)) or _wide(head) != "utf-8"
