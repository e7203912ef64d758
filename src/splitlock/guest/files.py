"""The guest's files, read from its disks after it has ended: what function and line an instruction is of.

Images are opened read-only. The file systems (ext, FAT, NTFS, ISO 9660 and others) are read by The Sleuth Kit (pytsk3,
an extra); images that are not raw by qemu-storage-daemon, which comes with QEMU, through a socket. A file is the right
one when it has the instruction's bytes where the guest had them.
"""

from __future__ import annotations

import os
import struct
import tempfile
from functools import cached_property

from splitlock.image.apart import Symbols

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from splitlock.guest.linux import Mapping

_LARGEST = 1 << 30  # bytes of a file
_PART = 1 << 20


class Files:
    """The files on some disk images. To be closed."""

    def __init__(self, images: list[tuple[str, str]]) -> None:
        """`images`: path and format of each."""
        self.images = images
        self.unread: list[str] = []  #: what could not be read, and why
        self._directory = tempfile.TemporaryDirectory(prefix="splitlock-guest-")
        self._symbols: dict[Mapping, tuple[Symbols, str] | None] = {}
        self._opened: list[Any] = []

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *_: object) -> None:
        for found in self._symbols.values():
            if found is not None:
                found[0].close()
        for each in self._opened:
            each.close()
        self._directory.cleanup()

    def function(self, mapping: Mapping, code: bytes) -> tuple[str | None, str | None]:
        """Function and `file:line` of the code that a program had mapped; None for what is not known."""
        key = mapping._replace(offset=0)
        if key not in self._symbols:
            self._symbols[key] = self._fetch(mapping, code)
        found = self._symbols[key]
        if found is None:
            return None, None
        symbols, path = found
        address = file_address(path, mapping.offset)
        frames = symbols.frames(address) if address is not None else []
        if symbols.failure:
            self._unread(symbols.trouble_of(mapping.inside))
        return (frames[0].function, frames[0].source) if frames else (None, None)

    def _unread(self, why: str) -> None:
        if why not in self.unread:
            self.unread.append(why)

    def _fetch(self, mapping: Mapping, code: bytes) -> tuple[Symbols, str] | None:
        """A copy of the file, from the first file system that has it."""
        for system in self._systems:
            for opening in ({"inode": mapping.inode}, {"path": mapping.inside}):
                try:
                    file = system.open_meta(**opening) if "inode" in opening else system.open(mapping.inside)
                    size = file.info.meta.size
                    if size > _LARGEST or file.read_random(mapping.offset, len(code)) != code:
                        continue
                    path = os.path.join(self._directory.name, str(len(self._symbols)))
                    with open(path, "wb") as copy:
                        for at in range(0, size, _PART):
                            copy.write(file.read_random(at, min(_PART, size - at)))
                except OSError:  # not there, or not readable
                    continue
                return Symbols(path), path
        return None

    @cached_property
    def _systems(self) -> list[Any]:
        """The file systems of all images. Opened when the first file is wanted."""
        try:
            import pytsk3  # type: ignore[import-not-found]
        except ImportError:
            if self.images:
                self.unread.append("the guest's files: install splitlock[guest] (pytsk3) for functions and lines")
            return []
        found: list[Any] = []
        for path, kind in self.images:
            try:
                disk = pytsk3.Img_Info(path) if kind == "raw" else _served(path, kind, self._opened)
                starts = [0]
                try:
                    starts += [part.start * 512 for part in pytsk3.Volume_Info(disk)]
                except OSError:
                    pass  # no partitions
                before = len(found)
                for start in dict.fromkeys(starts):
                    try:
                        found.append(pytsk3.FS_Info(disk, offset=start))
                    except OSError:
                        continue  # none that is known, or none at all
                if len(found) == before:
                    self.unread.append(f"{path}: no file system that can be read: no functions and lines")
            except OSError as error:
                self.unread.append(f"{path}: {error}: no functions and lines")
        return found


def _served(path: str, kind: str, opened: list[Any]) -> Any:
    """An image that is not raw, as pytsk3 takes it."""
    import pytsk3  # no types

    from splitlock.guest.nbd import Served

    served = Served(path, kind)
    opened.append(served)

    class Image(pytsk3.Img_Info):  # type: ignore[misc]  # no types
        def __init__(self) -> None:
            super().__init__(url="")

        def read(self, at: int, size: int) -> bytes:
            return served.read(at, size)

        def get_size(self) -> int:
            return served.size

    return Image()


def file_address(path: str, offset: int) -> int | None:
    """The ELF address of what lies at an offset of the file; None where nothing is loaded from there, or it is no ELF.

    Also of 32-bit files. Source: elf(5).
    """
    with open(path, "rb") as file:
        head = file.read(64)
        if head[:4] != b"\x7fELF" or head[4] not in (1, 2) or len(head) < 64:
            return None
        wide = head[4] == 2
        at, each, number = (
            (*struct.unpack_from("<Q", head, 32), *struct.unpack_from("<HH", head, 54))
            if wide
            else (*struct.unpack_from("<I", head, 28), *struct.unpack_from("<HH", head, 42))
        )
        file.seek(at)
        table = file.read(each * number)
    for entry in range(0, len(table) - (55 if wide else 31), max(each, 1)):
        kind, *fields = struct.unpack_from("<IIQQQQ" if wide else "<IIIIII", table, entry)
        start, address, size = (fields[1], fields[2], fields[4]) if wide else (fields[0], fields[1], fields[3])
        if kind == 1 and start <= offset < start + size:  # PT_LOAD
            return int(address + offset - start)
    return None
