"""Whose code is at an address? A process's mappings, live or saved, or one image at a base."""

from __future__ import annotations

import os
from collections import OrderedDict, namedtuple

from splitlock._errors import ImageError, SplitlockError
from splitlock.image.elf import elf_class
from splitlock.image.loaded import Loaded
from splitlock.process.space import mappings, parse_maps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.process.space import Mapping

#: Code at an address: the image's path, the address in its file (None: it is no file's), what reads it, its bits.
Found = namedtuple("Found", "name address loaded bits")

_DELETED = " (deleted)"
_OPEN = 64  # images kept open

_images: OrderedDict[tuple[int, ...], Loaded | None] = OrderedDict()


def loaded(path: str) -> Loaded | None:
    """The image in a file, None where it is none; the last ones are kept. Raises OSError when it cannot be read."""
    status = os.stat(path)
    key = (status.st_dev, status.st_ino, status.st_mtime_ns)
    if key not in _images:
        try:
            _images[key] = Loaded(path)
        except ImageError:
            _images[key] = None
        if len(_images) > _OPEN:
            _images.popitem(last=False)
    _images.move_to_end(key)
    return _images[key]


class Saved:
    """The mappings of a file that was saved from /proc/PID/maps. Images are looked for below `root`."""

    nothing = "nothing is mapped at this address (any more)"

    def __init__(self, text: bytes, root: str = "") -> None:
        try:
            self.mappings = parse_maps(text)
        except (ValueError, IndexError):
            raise SplitlockError(
                "--maps: no copy of /proc/PID/maps; save it with cat while the program runs", 2
            ) from None
        if not self.mappings:
            raise SplitlockError("--maps: empty; save /proc/PID/maps with cat while the program runs", 2)
        self.root = root
        self.bits = 64 if any(mapping.end > 1 << 32 for mapping in self.mappings) else 32

    def find(self, address: int) -> Found | None:
        """The code at an address, None where nothing is mapped."""
        mapping = next((m for m in self.mappings if m.start <= address < m.end), None)
        if mapping is None:
            return None
        if mapping.inode:
            image = self._image(mapping)
            offset = address - mapping.start + mapping.offset
            place = image.address(offset) if image else None
            return Found(mapping.path.removesuffix(_DELETED), place, image, image.bits if image else self.bits)
        return self._copied(address) or Found(mapping.path or "anonymous memory (JIT?)", None, None, self.bits)

    def read(self, address: int, size: int) -> bytes:
        """The memory there; empty where it is not to be had."""
        return b""

    def _path(self, mapping: Mapping) -> str:
        return f"{self.root}{mapping.path}"

    def _image(self, mapping: Mapping) -> Loaded | None:
        try:
            return loaded(self._path(mapping))
        except OSError:
            return None

    def _copied(self, address: int) -> Found | None:
        """PE: Wine maps the headers, and copies sections that are not aligned to pages into memory of no file."""
        for mapping in reversed([m for m in self.mappings if m.start <= address and m.inode and not m.offset]):
            image = self._image(mapping)
            if image is not None and image.is_pe and address - mapping.start < image.span[1]:
                return Found(mapping.path, address - mapping.start, image, image.bits)
        return None


class Live(Saved):
    """The mappings of a process, or of a thread by its number. Raises OSError when it is gone."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.mappings = mappings(pid)
        if not self.mappings:
            raise ProcessLookupError(f"{pid} has no memory of its own: a thread of the kernel's")
        self.root = ""
        self.bits = 64
        try:
            with open(f"/proc/{pid}/exe", "rb") as file:
                self.bits = elf_class(file.read(20))[0] or 64
        except OSError:
            pass
        try:
            self._memory: int | None = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._memory = None

    def __del__(self) -> None:
        if getattr(self, "_memory", None) is not None:
            os.close(self._memory)  # type: ignore[arg-type]

    def read(self, address: int, size: int) -> bytes:
        """The memory there; empty where it is not to be had."""
        if self._memory is None:
            return b""
        try:
            return os.pread(self._memory, size, address)
        except (OSError, OverflowError):
            return b""

    def _path(self, mapping: Mapping) -> str:
        if mapping.path.endswith(_DELETED):
            return f"/proc/{self.pid}/map_files/{mapping.start:x}-{mapping.end:x}"
        return f"/proc/{self.pid}/root{mapping.path}"


class Based(Saved):
    """One image, loaded at `base`: where the first of it is mapped. Raises SplitlockError."""

    nothing = "no address of the image, where it is mapped at this base"

    def __init__(self, path: str, base: int) -> None:
        self.path, self.base = path, base
        try:
            image = loaded(path)
        except OSError as error:
            raise SplitlockError(f"--image {path}: {error.strerror}; name the program or library", 2) from None
        if image is None:
            raise SplitlockError(f"--image {path}: neither ELF nor PE; name the program or library", 2)
        self.image = image

    def find(self, address: int) -> Found | None:
        """The code at an address, None where it lies outside of the image."""
        low, high = self.image.span
        place = address - self.base + low
        return Found(self.path, place, self.image, self.image.bits) if low <= place < high else None
