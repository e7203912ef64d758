"""Whose code is at an address? A process's mappings, live or saved."""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import NamedTuple

from splitlock._errors import ImageError, SplitlockError
from splitlock.host.explain import reasons
from splitlock.host.root import Root
from splitlock.image.elf import elf_class
from splitlock.image.loaded import Loaded
from splitlock.linux import below
from splitlock.linux.proc import mappings, parse_maps
from splitlock.report.watch import Frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from splitlock.host.explain.reasons import Reason
    from splitlock.linux.proc import Mapping

_DELETED = " (deleted)"
_NO_FILE = "memory of no file (JIT?)"
_OPEN = 64  # images kept open
_PAGE = 4096
_LARGEST = 64 << 20  # bytes of saved mappings: a process may have 65,530, and names of 4,096 bytes

_images: OrderedDict[tuple[object, ...], Loaded | None] = OrderedDict()


class Found(NamedTuple):
    """What is at an address."""

    name: str  #: the image's path
    address: int | None  #: in its file; None: it is no file's, or the file is not known
    loaded: Loaded | None  #: what reads the file
    bits: int
    missing: Reason | None  #: why the file is not looked into, or memory of none not read
    executable: bool = True


def loaded(descriptor: int, name: str, debug: Callable[[str], int] | None = None) -> Loaded | None:
    """The image in an open file, None where it is none; the last ones are kept. The descriptor is taken over.

    `debug`: opens a file where this one is from; None: it is from here. Raises OSError.
    """
    status = os.fstat(descriptor)
    key = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size, name if debug is None else "")
    if key in _images:
        os.close(descriptor)
    else:
        try:
            _images[key] = Loaded(name, descriptor, debug)
        except ImageError:
            _images[key] = None
        if len(_images) > _OPEN:
            _images.popitem(last=False)
    _images.move_to_end(key)
    return _images[key]


def frames(image: Loaded, place: int) -> list[Frame]:
    """The functions at an address of a file, innermost first."""
    return [Frame(function=f.function, source=f.source, inlined=f.inlined) for f in image.frames(place)]


class Saved:
    """The mappings of a file that was saved from /proc/PID/maps. Images are looked for below `root`, else here."""

    def __init__(self, text: bytes, root: Root | None = None) -> None:
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
        """What is at an address, None where nothing is mapped."""
        mapping = next((m for m in self.mappings if m.start <= address < m.end), None)
        if mapping is None:
            return None
        executable = "x" in mapping.permissions
        if not mapping.inode:
            copied = self._copied(address)
            if copied:
                return copied._replace(executable=executable)
            return Found(mapping.path or _NO_FILE, None, None, self.bits, self.unsaved(), executable)
        name = mapping.path.removesuffix(_DELETED)
        image = self._image(mapping)
        if not isinstance(image, Loaded):
            return Found(name, None, None, self.bits, image, executable)
        offset = address - mapping.start + mapping.offset
        return Found(name, image.address(offset), image, image.bits, None, executable)

    def read(self, address: int, size: int) -> bytes:
        """The memory there; empty where it is not to be had."""
        return b""

    def nothing(self, address: int) -> Reason:
        """Why there is nothing at an address."""
        return reasons.not_mapped_then()

    def unsaved(self) -> Reason:
        """Why the bytes of memory that is no file's are not to be had."""
        return reasons.not_saved()

    def other(self, found: Found) -> Reason:
        """Why the bytes at an address are no locked instruction, in a file or in memory."""
        return reasons.other_file(found.name)

    def _image(self, mapping: Mapping) -> Loaded | Reason:
        """The image that is mapped, or why it is not to be had."""
        if mapping.path.endswith(_DELETED):
            return reasons.deleted_then(mapping.path.removesuffix(_DELETED))
        try:
            descriptor = self._below(self.root, mapping.path) if self.root else below.opened("", mapping.path)
            image = loaded(descriptor, mapping.path, self.root.handle if self.root else None)
        except OSError as error:
            return reasons.no_file(mapping.path, error, self.root.directory if self.root else None)
        return image or reasons.no_image(mapping.path)

    def _below(self, root: Root, name: str) -> int:
        """Maps that were saved outside of a chroot have its files by their names outside (proc_pid_maps(5))."""
        try:
            return root.handle(name)
        except FileNotFoundError:
            if not name.startswith(f"{root.directory}/"):
                raise
        return root.handle(name.removeprefix(root.directory))

    def _copied(self, address: int) -> Found | None:
        """PE: Wine maps the headers, and copies sections that are not aligned to pages into memory of no file."""
        for mapping in reversed([m for m in self.mappings if m.start <= address and m.inode and not m.offset]):
            image = self._image(mapping)
            if isinstance(image, Loaded) and image.is_pe and address - mapping.start < image.span[1]:
                return Found(mapping.path, address - mapping.start, image, image.bits, None)
        return None


def saved(path: str, root: str) -> Saved:
    """The mappings in a file; images are looked for below `root`, where it is not empty. Raises SplitlockError."""
    try:
        with open(path, "rb") as file:
            return Saved(file.read(_LARGEST), Root(root) if root else None)
    except OSError as error:
        raise SplitlockError(f"--maps {path}: {error.strerror}; save /proc/PID/maps there", 2) from None


class Live(Saved):
    """The mappings of a process, or of a thread by its number. Raises OSError when it is gone, or not to be read."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._memory: int | None = None
        self.mappings = mappings(pid)
        self.root = None
        self.bits = 64
        try:
            self.bits = elf_class(self._head())[0] or 64
            self._memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            pass

    def __del__(self) -> None:
        if self._memory is not None:
            os.close(self._memory)

    def read(self, address: int, size: int) -> bytes:
        """The memory there; empty where it is not to be had."""
        if self._memory is None:
            return b""
        try:
            return os.pread(self._memory, size, address)
        except (OSError, OverflowError):
            return b""

    def nothing(self, address: int) -> Reason:
        """Why there is nothing at an address."""
        return reasons.not_mapped(self.pid) if self.mappings else reasons.no_memory(self.pid)

    def unsaved(self) -> Reason:
        """Why the bytes of memory that is no file's are not to be had."""
        return reasons.memory_unreadable(self.pid)

    def other(self, found: Found) -> Reason:
        """Why the bytes at an address are no locked instruction."""
        return reasons.other_code(found.name if found.address is not None else None, self.pid)

    def _head(self) -> bytes:
        descriptor = below.opened("", f"/proc/{self.pid}/exe")
        try:
            return os.read(descriptor, 20)
        finally:
            os.close(descriptor)

    def _image(self, mapping: Mapping) -> Loaded | Reason:
        """By the mapping itself, which takes rights; else by its name, if that is still the file that is mapped.

        The name is as from the / of who reads (a chroot), or as in the process's own mounts (proc_pid_maps(5)).
        """
        name = mapping.path.removesuffix(_DELETED)
        refused: OSError = FileNotFoundError(2, os.strerror(2))
        for descriptor, exact, ours in self._opened(mapping, name):
            if isinstance(descriptor, OSError):
                refused = descriptor
                continue
            if not exact and not self._is(descriptor, mapping):
                os.close(descriptor)
                refused = OSError(0, "another file")
                continue
            return loaded(descriptor, name, None if ours else self._beside) or reasons.no_image(name)
        if name != mapping.path:
            return reasons.deleted(name, self.pid)
        if not refused.errno:
            return reasons.replaced(name, self.pid)
        return reasons.no_file_of(name, refused, self.pid)

    def _opened(self, mapping: Mapping, name: str) -> Iterator[tuple[int | OSError, bool, bool]]:
        """What may be the file: a descriptor, whether it surely is, whether its name is one of this file system."""
        root = f"/proc/{self.pid}/root"
        ours = _same_root(root)
        for directory, path, exact in (
            ("", f"/proc/{self.pid}/map_files/{mapping.start:x}-{mapping.end:x}", True),
            (root, name, False),
            ("", name, False),
        ):
            try:
                yield below.opened(directory, path), exact, ours and name == mapping.path
            except OSError as error:
                yield error, exact, False

    def _beside(self, name: str) -> int:
        """A file of the process's root."""
        return below.opened(f"/proc/{self.pid}/root", name)

    def _is(self, descriptor: int, mapping: Mapping) -> bool:
        """Is it the file that is mapped? Overlay file systems show another inode: then the first bytes decide."""
        if os.fstat(descriptor).st_ino == mapping.inode:
            return True
        # not what is written to, nor was when it was loaded (RELRO)
        same = [m for m in self.mappings if (m.inode, m.path) == (mapping.inode, mapping.path)]
        same = [m for m in same if "w" not in m.permissions and (not m.offset or "x" in m.permissions)]
        held = [(self.read(m.start, _PAGE), os.pread(descriptor, _PAGE, m.offset)) for m in same]
        return bool(held) and all(memory and memory[: len(file)] == file for memory, file in held)


def _same_root(root: str) -> bool:
    """Has a process the / that we have?"""
    try:
        there, here = os.stat(root), os.stat("/")
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)
