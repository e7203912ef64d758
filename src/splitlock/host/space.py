"""Whose code is at an address? A process's mappings, live or saved, or one image at a base."""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import NamedTuple

from splitlock._errors import ImageError, SplitlockError
from splitlock.host import reasons
from splitlock.host.likely import digits, likely
from splitlock.host.root import Root
from splitlock.image.elf import elf_class
from splitlock.image.loaded import Loaded
from splitlock.linux import below
from splitlock.linux.proc import mappings, parse_maps
from splitlock.report.frames import own, short
from splitlock.report.watch import Frame
from splitlock.x86 import logged

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from splitlock.host.reasons import Reason
    from splitlock.linux.log import Line, Mapped
    from splitlock.linux.proc import Mapping

DELETED = " (deleted)"
_NO_FILE = "memory of no file (JIT?)"
_OPEN = 64  # images kept open
_PAGE = 4096
_LONGEST = 15  # bytes of an instruction
_LARGEST = 64 << 20  # bytes of saved mappings: a process may have 65,530, and names of 4,096 bytes
_SHOWN = 4  # places that an address may mean

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
    return [Frame(**each._asdict()) for each in image.frames(place)]


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
        name = mapping.path.removesuffix(DELETED)
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
        if mapping.path.endswith(DELETED):
            return reasons.deleted_then(mapping.path.removesuffix(DELETED))
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
        name = mapping.path.removesuffix(DELETED)
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


class Based(Saved):
    """One image, loaded at `base`: where the first of it is mapped. Raises SplitlockError.

    Without a base it is where the line itself says that the code was mapped (`line`), else where it is linked to.
    """

    def __init__(self, path: str, base: int | None = None, line: Line | None = None) -> None:
        self.path = path
        try:
            image = loaded(below.opened("", path), path)
        except OSError as error:
            raise SplitlockError(f"--image {path}: {error.strerror}; name the program or library", 2) from None
        if image is None:
            raise SplitlockError(f"--image {path}: neither ELF nor PE; name the program or library", 2)
        self.image = image
        self._mapped = line.mapped if line and base is None else None
        self._movable = base is None and (image.is_pe or not image.base)
        self._exception = line.exception if line else "#AC"
        self._bias: int | None = (base if base is not None else image.base) - image.span[0]  # to the file's addresses
        if line and line.address is not None and self._mapped:
            self._bias = _bias(image, line.address, self._mapped)

    def find(self, address: int) -> Found | None:
        """What is at an address, None where it lies outside of the image."""
        low, high = self.image.span
        if self._bias is None or not low <= address - self._bias < high:
            return None
        return Found(self.path, address - self._bias, self.image, self.image.bits, None)

    def nothing(self, address: int) -> Reason:
        """Why there is nothing at an address."""
        if self._bias is None:
            assert self._mapped
            return reasons.does_not_fit(self.path, self._mapped)
        low, high = self.image.span
        if not self._movable:
            return reasons.outside(self.path, low + self._bias, high + self._bias)
        ends = f"{address:x}"[-digits(self.image) :]
        places = likely(self.image, address, self._exception)
        return reasons.movable(self.path, ends, len(places), [self._named(place) for place in places[:_SHOWN]])

    def _named(self, place: int) -> str:
        front = own(frames(self.image, place))
        if front is None or front.function is None:
            return f"{place:#x}"
        line = f"{front.source.rpartition('/')[2]}, " if front.source else ""
        return f"{short(front.function)} ({line}{place:#x})"

    def other(self, found: Found) -> Reason:
        """Why the bytes at an address are no locked instruction."""
        if self._mapped and self._mapped.file != os.path.basename(self.path):
            return reasons.another_file(self.path, self._mapped.file)
        return reasons.other_bytes(self.path, self.image.build_id)


def _bias(image: Loaded, address: int, mapped: Mapped) -> int | None:
    """What to add to an image's addresses, by what a line says of its mapping; None: it cannot be this image's.

    Newer kernels tell the offset in the file; before, the size of the mapping has to tell which part of it that is.
    """
    if mapped.offset is not None:
        place = image.address(mapped.offset)
        whole_pages = (mapped.offset - (address - mapped.start)) % _PAGE == 0
        return address - place if place is not None and whole_pages else None
    biases = [mapped.start - start for start in image.mapped(mapped.size)]
    locked = [bias for bias in biases if logged.at(image.read(address - bias, _LONGEST), address, image.bits)]
    best = locked or biases
    return best[0] if len(best) == 1 else None
