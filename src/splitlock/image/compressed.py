"""Compressed data: which compression it is, and its contents in bounded chunks, read ahead on other threads.

Every reader here gives out at most some MiB at a time, whatever the input claims, so that a decompression
bomb meets its caller's limit and not the machine's. xz files made by several threads (Debian's kernel
packages are) are cut at their blocks, which are decoded side by side: as fast as dpkg-deb, which does the same.
Sources: RFC 1952; the .xz file format 1.2.0; Documentation/staging/xz.rst and lib/decompress_unlz4.c for what
kernels carry.
"""

from __future__ import annotations

import bz2
import lzma
import os
import threading
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from itertools import islice, repeat

from splitlock._errors import ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from concurrent.futures import Future
    from typing import Protocol

    class Decompressor(Protocol):
        """What bz2 and lzma have in common."""

        @property
        def eof(self) -> bool: ...
        @property
        def needs_input(self) -> bool: ...
        @property
        def unused_data(self) -> bytes: ...
        def decompress(self, data: bytes, max_length: int) -> bytes: ...


CHUNK = 1 << 20  #: bytes read, and given out, at a time
_DICTIONARY = 256 << 20  # what a decoder may take: xz -9 needs 65 MiB, `zstd --ultra -22` 128 MiB
_BLOCK = 64 << 20  # the largest xz block that is decoded at once; dpkg-deb's have 24 MiB
_ZSTD_PIECE = 1 << 10  # zstd's worst ratio is 1 : 32768, and a call gives out all that it was fed
_LZ4_BLOCK = 8 << 20  # of the legacy format
_STREAMS, _STREAM = 1000, 1 << 10  # streams behind one another, and one more for so many bytes that they give
_THREADS = 4  # more hold more blocks in memory
_WAITING = 4  # results: what the caller finds on the way, a kernel in a kernel package, takes it a second
_NUMBER = 9  # bytes of the longest number in an xz index

_MAGIC = (
    ("gzip", b"\x1f\x8b\x08"),
    ("xz", b"\xfd7zXZ\0"),
    ("zstd", b"\x28\xb5\x2f\xfd"),
    ("bzip2", b"BZh"),
    ("lz4", b"\x02\x21\x4c\x18"),
    ("lzo", b"\x89LZO\0"),
    ("lzma", b"\x5d\0\0"),
)


def compression(head: bytes) -> str | None:
    """The compression whose magic number the first bytes are: gzip, xz, zstd, bzip2, lz4, lzo, lzma or None."""
    return next((name for name, magic in _MAGIC if head.startswith(magic)), None)


def expand(data: bytes, limit: int) -> bytes:
    """Compressed `data` in full. Raises ImageError where it is damaged or gives more than `limit` bytes."""
    view, at = memoryview(data), 0

    def read(size: int) -> bytes:
        nonlocal at
        at += size
        return bytes(view[at - size : at])

    kind = compression(data[:8])
    if kind is None:
        raise ImageError("no compression that we know")
    found = BytesIO()  # joining pieces would take the memory twice
    for chunk in stream(read, kind):
        if found.tell() + len(chunk) > limit:
            raise ImageError(f"more than {limit:,} bytes when decompressed (a decompression bomb?)")
        found.write(chunk)
    return found.getvalue()


def contents(fd: int, start: int, end: int) -> Generator[bytes]:
    """What the bytes from `start` to `end` of a file decompress to, in chunks, as they are where nothing is compressed.

    The work is done ahead on other threads; no more than a few chunks wait at a time. `fd` stays open while this
    runs. Raises ImageError where the data is damaged or cut off.
    """
    kind = compression(os.pread(fd, min(8, end - start), start))
    blocks = _xz_blocks(fd, start, end) if kind == "xz" else None
    if blocks:
        head = os.pread(fd, 12, start)
        return _ahead((_block_job(fd, head, *block) for block in blocks), _THREADS)
    at = start

    def read(size: int) -> bytes:
        nonlocal at
        data = os.pread(fd, max(0, min(size, end - at)), at)
        at += len(data)
        return data

    chunks = stream(read, kind) if kind else iter(lambda: read(CHUNK), b"")
    return _ahead(repeat(lambda: next(chunks, b"")), 1)


def stream(read: Callable[[int], bytes], kind: str) -> Iterator[bytes]:
    """What a compressed stream of `kind` holds, in chunks of some MiB at most. `read(n)` gives up to n bytes of it.

    Streams behind one another are one (as gzip, xz and zstd have it); what follows the last and is none is left alone.
    """
    with _damage(kind):
        if kind == "lz4":
            yield from _lz4(read)
            return
        data = read(CHUNK)
        streams = given = 0
        while True:
            streams += 1
            if streams > _STREAMS + given // _STREAM:
                raise ImageError(f"{kind} data in {streams:,} streams with next to nothing in them")
            decompressor = _decompressor(kind)
            while not decompressor.eof:
                if not data and decompressor.needs_input:
                    data = read(CHUNK)
                    if not data:
                        raise ImageError(f"{kind} data ends too early (truncated?)")
                chunk = decompressor.decompress(data, CHUNK)
                data = b""
                if chunk:
                    given += len(chunk)
                    yield chunk
            data = decompressor.unused_data or read(CHUNK)
            if compression(data[:8]) != kind:
                return


def _decompressor(kind: str) -> Decompressor:
    if kind == "gzip":
        return _Gzip()
    if kind in ("xz", "lzma"):
        return lzma.LZMADecompressor(lzma.FORMAT_XZ if kind == "xz" else lzma.FORMAT_ALONE, _DICTIONARY)
    if kind == "bzip2":
        return bz2.BZ2Decompressor()
    if kind == "zstd":
        return _Zstd()
    raise ImageError(f"{kind}-compressed data, which we cannot read: decompress it first")


@contextmanager
def _damage(kind: str) -> Iterator[None]:
    """What the libraries say of damaged data, as an ImageError."""
    try:
        yield
    except (lzma.LZMAError, zlib.error, OSError, EOFError, ValueError) as error:
        if isinstance(error, ImageError) or (isinstance(error, OSError) and error.errno):
            raise  # the latter: reading failed, not decompressing
        raise ImageError(f"damaged {kind} data: {str(error).strip() or 'unreadable'}") from None


class _Gzip:
    """zlib's decompressor in the clothes of the others."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(31)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


class _Zstd:
    """zstandard's decompressor, fed so little at a time that what it gives out is bounded."""

    eof = False
    needs_input = True

    def __init__(self) -> None:
        try:
            import zstandard
        except ImportError:
            raise ImageError("zstd-compressed data needs the Python package zstandard") from None
        self._error = zstandard.ZstdError
        self._inner = zstandard.ZstdDecompressor(max_window_size=_DICTIONARY).decompressobj()
        self._left = b""
        self._at = 0

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data + self._left[self._at :]

    def decompress(self, data: bytes, max_length: int) -> bytes:
        if data:
            self._left, self._at = self._left[self._at :] + data, 0
        found, size = [], 0
        try:
            while size < max_length and self._at < len(self._left) and not self.eof:
                found.append(self._inner.decompress(self._left[self._at : self._at + _ZSTD_PIECE]))
                self._at += _ZSTD_PIECE
                size += len(found[-1])
                self.eof = self._inner.eof
        except self._error as error:
            raise ImageError(f"damaged zstd data: {error}") from None
        self.needs_input = self._at >= len(self._left)
        return b"".join(found)


def _lz4(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """lz4's legacy format, which kernels are compressed with: a magic number, then blocks, each behind its size."""
    try:
        import lz4.block  # type: ignore[import-untyped]
    except ImportError:
        raise ImageError("lz4-compressed data needs the Python package lz4") from None
    magic = read(4)
    while len(size := read(4)) == 4:
        if size == magic:
            continue
        block = read(min(int.from_bytes(size, "little"), 2 * _LZ4_BLOCK))
        if not block:
            return  # that was the size of the whole, which the kernel's build puts at the end
        if len(block) != int.from_bytes(size, "little"):
            raise ImageError("damaged lz4 data: a block of impossible size (truncated?)")
        try:
            yield lz4.block.decompress(block, uncompressed_size=_LZ4_BLOCK)
        except lz4.block.LZ4BlockError as error:
            raise ImageError(f"damaged lz4 data: {error}") from None


def _ahead(jobs: Iterator[Callable[[], bytes]], workers: int) -> Generator[bytes]:
    """The results of `jobs` in order until one is empty, worked out on other threads while the caller is busy."""
    workers = min(workers, len(os.sched_getaffinity(0)))
    pool = ThreadPoolExecutor(workers, initializer=_step_back)  # the libraries run without the interpreter's lock
    try:
        waiting: deque[Future[bytes]] = deque(pool.submit(job) for job in islice(jobs, workers + _WAITING))
        while waiting and (chunk := waiting.popleft().result()):
            waiting.extend(pool.submit(job) for job in islice(jobs, 1))
            yield chunk
    finally:  # wait: the caller closes the file that the jobs read
        pool.shutdown(wait=True, cancel_futures=True)


def _step_back() -> None:
    """Let the caller's thread go first: what it does with the results takes longest, and nothing else does it."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(19, os.nice(0) + 5))


def _xz_blocks(fd: int, start: int, end: int) -> list[tuple[int, int, int]]:
    """The blocks of an xz file of one stream: offset, size as its index has it (unpadded), decompressed size.

    Empty where reading from front to back is better: one block, huge ones, several streams, a damaged index.
    """
    footer = os.pread(fd, 12, end - 12)
    size = (int.from_bytes(footer[4:8], "little") + 1) * 4  # of the index
    if footer[10:] != b"YZ" or size > CHUNK or size + 24 > end - start:
        return []
    index = os.pread(fd, size, end - 12 - size)
    if zlib.crc32(index[:-4]).to_bytes(4, "little") != index[-4:] or index[0]:
        return []
    blocks = []
    at = start + 12
    try:
        count, place = _number(index, 1)
        for _ in range(min(count, size)):
            unpadded, place = _number(index, place)
            expanded, place = _number(index, place)
            blocks.append((at, unpadded, expanded))
            at += unpadded + 3 & ~3
    except IndexError:
        return []
    fits = (
        len(blocks) > 1 and at == end - 12 - size and all(0 < b[1] <= 2 * _BLOCK and 0 < b[2] <= _BLOCK for b in blocks)
    )
    return blocks if fits else []


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A number of variable length (7 bits a byte, the lowest first), and where the next one starts."""
    value = 0
    for shift in range(0, 7 * _NUMBER, 7):
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            break
    return value, at


def _coded(value: int) -> bytes:
    """The reverse of _number."""
    code = b""
    while value > 0x7F:
        code += bytes([value & 0x7F | 0x80])
        value >>= 7
    return code + bytes([value])


def _block_job(fd: int, head: bytes, offset: int, unpadded: int, expanded: int) -> Callable[[], bytes]:
    """Decodes one block as a stream of its own: behind the stream's header, before an index of just this block."""

    def job() -> bytes:
        index = b"\0\1" + _coded(unpadded) + _coded(expanded)
        index += bytes(-len(index) % 4)
        index += zlib.crc32(index).to_bytes(4, "little")
        footer = (len(index) // 4 - 1).to_bytes(4, "little") + head[6:8]
        footer = zlib.crc32(footer).to_bytes(4, "little") + footer + b"YZ"
        data = head + os.pread(fd, unpadded + 3 & ~3, offset) + index + footer
        found = BytesIO()
        with _damage("xz"):
            decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, _DICTIONARY)
            while not decompressor.eof:
                chunk = decompressor.decompress(data, CHUNK)
                data = b""
                found.write(chunk)
                if found.tell() > expanded or (not chunk and decompressor.needs_input):
                    raise ImageError("damaged xz data: a block that is not what the index says")
        return found.getvalue()

    return job
