"""Archives: the regular files in a .deb, an .rpm or a tar file, one after the other, with nothing unpacked.

Formats: deb(5) (an ar file with a compressed tar in it), RPM's version 3 and 4 package format (headers, then a
compressed cpio archive), tar as in tar(5) with GNU's and pax's long names, cpio "newc" as in cpio(5).

The tests compare with tarfile, dpkg-deb and rpm2cpio. Libraries would not do here. Tried with crafted files:
python-debian 1.1.1 never ends on a negative size in an ar header, nor rpmfile 2.2.1 on one in a cpio header; both hold
a zstd archive in memory whole, twice (python-debian by the program unzstd); both, and tarfile, keep a list of all
members; rpmfile asks for as much memory as a header says a file has.
"""

from __future__ import annotations

import os
import tarfile

from splitlock._errors import ImageError
from splitlock.image.compressed import contents

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    Files = Iterator[tuple[str, int]]

_AR, _AR_HEADER = b"!<arch>\n", 60
_RPM_LEAD = 96
_RPM_HEADER = b"\x8e\xad\xe8\x01"
_CPIO_HEADER = 110
_NAME = 1 << 20  # the longest header of names that is believed, in bytes
_NO_CONTENTS = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
_LONG_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_S_IFMT, _S_IFREG = 0o170000, 0o100000


class Stream:
    """Bytes that come in chunks, read from front to back. Raises ImageError past the end and past `limit` in all."""

    def __init__(self, chunks: Iterator[bytes], limit: int) -> None:
        self.at = 0  #: how many bytes were read or skipped
        self._chunks = chunks
        self._limit, self._total = limit, 0
        self._chunk = b""
        self._place = 0  # in the chunk

    def _more(self) -> None:
        chunk = next(self._chunks, b"")
        if not chunk:
            raise ImageError("ends in the middle of a file (truncated?)")
        self._chunk, self._place = chunk, 0
        self._total += len(chunk)
        if self._total > self._limit:
            raise ImageError(f"more than {self._limit:,} bytes when decompressed (a decompression bomb?)")

    def peek(self, size: int) -> bytes:
        """The next `size` bytes, which stay to be read."""
        while len(self._chunk) - self._place < size:
            rest = self._chunk[self._place :]
            self._more()
            self._chunk = rest + self._chunk
        return self._chunk[self._place : self._place + size]

    def read(self, size: int) -> bytes:
        """The next `size` bytes."""
        self.at += size
        end = self._place + size
        if end <= len(self._chunk):
            found = self._chunk[self._place : end]
            self._place = end
            return found
        parts = []
        while size > len(self._chunk) - self._place:
            parts.append(self._chunk[self._place :])
            size -= len(parts[-1])
            self._more()
        self._place = size
        parts.append(self._chunk[:size])
        return b"".join(parts)

    def skip(self, size: int) -> None:
        """Pass over the next `size` bytes."""
        self.at += size
        while size > len(self._chunk) - self._place:
            size -= len(self._chunk) - self._place
            self._more()
        self._place += size


def tar(stream: Stream) -> Files:
    """Name and size of each regular file in a tar archive; what the caller leaves of its contents unread is skipped."""
    name = size = None  # from an extended header, for the file behind it
    while True:
        block = stream.read(tarfile.BLOCKSIZE)
        if not any(block):
            return
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")
        except (tarfile.HeaderError, ValueError) as error:
            raise ImageError(f"damaged tar header: {error}") from None
        if header.type in _LONG_NAMES:
            text = _extended(stream, header.size)
            if header.type == tarfile.GNUTYPE_LONGNAME:
                name = text.split(b"\0", 1)[0]
            elif header.type != tarfile.GNUTYPE_LONGLINK:
                records = _pax(text)
                name = records.get(b"path", name)
                size = _decimal(records[b"size"]) if b"size" in records else size
            continue
        length = header.size if size is None else size
        if length < 0:
            raise ImageError("damaged tar header: a negative size")
        if header.type in _NO_CONTENTS:
            length = 0
        end = stream.at + (length + 511 & ~511)
        if header.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
            yield _tidy(header.name if name is None else name.decode("utf-8", "backslashreplace")), length
        stream.skip(end - stream.at)
        name = size = None


def _extended(stream: Stream, size: int) -> bytes:
    if not 0 <= size <= _NAME:
        raise ImageError(f"damaged tar header: a name of {size:,} bytes")
    text = stream.read(size)
    stream.skip(-size % 512)
    return text


def _pax(text: bytes) -> dict[bytes, bytes]:
    """The records `LENGTH KEY=VALUE\\n` of a pax header."""
    found, at = {}, 0
    while at < len(text) and text[at]:
        length, space, _ = text[at : at + 20].partition(b" ")
        record = text[at + len(length) + 1 : at + _decimal(length)]
        key, equals, value = record.partition(b"=")
        if not space or not equals or not value.endswith(b"\n"):
            raise ImageError("damaged tar header: a pax record that is none")
        found[key] = value[:-1]
        at += _decimal(length)
    return found


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 20:
        raise ImageError("damaged archive header: a size that is no number")
    return int(text)


def cpio(stream: Stream) -> Files:
    """As `tar`, for a cpio archive."""
    while True:
        header = stream.read(_CPIO_HEADER)
        if header[:6] not in (b"070701", b"070702"):
            raise ImageError("not the cpio format that packages have (newc)")
        try:
            fields = [int(header[i : i + 8], 16) for i in range(6, _CPIO_HEADER, 8)]
        except ValueError:
            raise ImageError("damaged cpio header") from None
        mode, size, length = fields[1], fields[6], fields[11]
        if not 0 < length <= _NAME or size < 0:
            raise ImageError(f"damaged cpio header: a name of {length:,} bytes")
        name = stream.read(length)[:-1]
        if name == b"TRAILER!!!":
            return
        stream.skip(-stream.at % 4)
        end = stream.at + (size + 3 & ~3)
        if mode & _S_IFMT == _S_IFREG:
            yield _tidy(name.decode("utf-8", "backslashreplace")), size
        stream.skip(end - stream.at)


def _tidy(name: str) -> str:
    """As a path below the root: packages write ./usr, /usr and usr. Half characters (surrogates) become escapes."""
    return name.encode("utf-8", "backslashreplace").decode().removeprefix(".").lstrip("/")


def deb(fd: int, size: int, limit: int) -> Generator[tuple[Stream, str, int]]:
    """Each regular file of an open .deb of `size` bytes: the stream to read it from, its name and its size.

    `limit`: how many bytes it may decompress to in all. Raises ImageError on anything that does not hold together.
    """
    at = len(_AR)
    while at < size:
        header = os.pread(fd, _AR_HEADER, at)
        if len(header) < _AR_HEADER or header[58:] != b"`\n":
            raise ImageError("damaged .deb: no ar header where one has to be (truncated?)")
        at += _AR_HEADER
        length = _decimal(header[48:58].strip())
        if at + length > size:
            raise ImageError("ends in the middle of a file (truncated?)")
        if header.startswith(b"data.tar"):
            yield from packed(fd, at, at + length, limit, tar)
            return
        at += length + length % 2
    raise ImageError("damaged .deb: no data.tar in it (truncated?)")


def rpm(fd: int, size: int, limit: int) -> Generator[tuple[Stream, str, int]]:
    """As `deb`, for an .rpm."""
    at = _RPM_LEAD
    for alignment in (8, 1):  # the signature, the header
        intro = os.pread(fd, 16, at)
        if intro[:4] != _RPM_HEADER or len(intro) < 16:
            raise ImageError("damaged .rpm: no header where one has to be (truncated?)")
        at += 16 + 16 * int.from_bytes(intro[8:12], "big") + int.from_bytes(intro[12:16], "big")
        at += -at % alignment
    if at >= size:
        raise ImageError("ends in the middle of a header (truncated?)")
    yield from packed(fd, at, size, limit, cpio)


def packed(
    fd: int, start: int, end: int, limit: int, walk: Callable[[Stream], Files] = tar
) -> Generator[tuple[Stream, str, int]]:
    """As `deb`, for a compressed or plain archive between two places of a file."""
    chunks = contents(fd, start, end)
    stream = Stream(chunks, limit)
    try:
        for name, size in walk(stream):
            yield stream, name, size
    finally:
        chunks.close()
