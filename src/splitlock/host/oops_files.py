"""Where are the code and the debug information of a kernel that oopsed? In files that were given, or found here.

Where distributions put them: Debian and Fedora /usr/lib/debug/lib/modules/RELEASE, Ubuntu /usr/lib/debug/boot; the code
itself: /boot/vmlinuz-RELEASE, /lib/modules/RELEASE. A file of another release is never used.
"""

from __future__ import annotations

import mmap
import os
import re
from typing import NamedTuple

from iced_x86 import Decoder

from splitlock._errors import ImageError, SplitlockError
from splitlock.image.bzimage import is_bzimage, vmlinux
from splitlock.image.compressed import compression, expand
from splitlock.image.data import Data, fixed
from splitlock.image.elf import ET_REL, Elf
from splitlock.image.kallsyms import Kallsyms
from splitlock.image.module import KernelImage
from splitlock.image.symbols import Frame as Named
from splitlock.image.symbols import Symbols
from splitlock.x86.locked import static_address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from splitlock.image.module import Code as Section
    from splitlock.linux.oops import Dump, Frame

_LARGEST = 2 << 30  # bytes of a kernel: with debug information it has some 700 MB
_LONGEST = 15  # bytes of an instruction
_SAFE = re.compile(r"\d[\w.+~-]*")  # a release that can be a part of a path: a log may say anything
_BANNER = re.compile(rb"Linux version (\d[^ \0]{1,128}) ")
_DEBUG = "/usr/lib/debug"
_ENDINGS = ("", ".gz", ".xz", ".zst")


class Code(NamedTuple):
    """The code from an instruction on, as a file has it.

    address      in the file; None in a module, whose place is known to nobody before it is loaded
    unfinished   a module's bytes that the loader fills in (relocations) are not those that ran
    data         what a fixed operand is, where it is one
    """

    path: str
    bytes: bytes
    address: int | None
    unfinished: bool
    data: Data | None


class _Image:
    """One file: a vmlinux, with or without symbols, as a boot image holds it, or a module."""

    def __init__(self, path: str) -> None:
        self.path = path
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not 0 < size < _LARGEST:
                raise ImageError("empty, or too large for a kernel")
            self.data: bytes | mmap.mmap = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.plain = True  # the file itself is ELF: libdw can read it
        head = bytes(self.data[:0x400])
        if is_bzimage(head):
            self.data, self.plain = vmlinux(bytes(self.data), _LARGEST), False
        elif compression(head):
            self.data, self.plain = expand(bytes(self.data), _LARGEST), False
        self.image = KernelImage(self.data)
        self.symbols = Symbols(path)
        self._kallsyms: Kallsyms | None = None
        self._places: dict[str, list[tuple[int, int]]] = {}

    def release(self) -> str:
        """Of which kernel it is; empty where it does not say."""
        if self.image.type == ET_REL:
            return next(iter(self.image.modinfo.get("vermagic", [])), "").partition(" ")[0]
        section = Elf(self.data).section(".rodata")
        start, end = (section.offset, section.offset + section.size) if section else (0, len(self.data))
        found = _BANNER.search(self.data, start, end)
        return found[1].decode("ascii", "replace") if found else ""

    def module(self) -> str:
        """The module's name as it says itself; empty where it does not, or is none."""
        return next(iter(self.image.modinfo.get("name", [])), "") if self.image.type == ET_REL else ""

    def code(self, frame: Frame) -> list[Code]:
        """The code from a place on; of each function of that name and size."""
        assert frame.offset is not None
        found = {}
        for code, start, size in self.image.functions_named(frame.symbol):
            if _fits(frame, size):
                at = start + frame.offset
                found[code.index, at] = self._code(code, at)
        return list(found.values()) or self._by_kallsyms(frame)

    def _code(self, code: Section, at: int) -> Code:
        raw = code.data[at : at + _LONGEST]
        loose = self.image.type == ET_REL
        address = None if loose else code.address + at
        instruction = Decoder(64, raw, ip=address or 0).decode()
        data = fixed(self.image, code, at, instruction.len, static_address(instruction))
        return Code(self.path, raw, address, loose and data is not None, data)

    def _by_kallsyms(self, frame: Frame) -> list[Code]:
        """In a kernel that was stripped: its own table of symbols tells."""
        if self.image.type == ET_REL:
            return []
        try:
            if self._kallsyms is None:
                self._kallsyms = Kallsyms(bytes(self.data))
            address = self._kallsyms.addresses[frame.symbol] + (frame.offset or 0)
            raw = Elf(self.data).read(address, _LONGEST)
        except (ImageError, KeyError):
            return []
        operand = static_address(Decoder(64, raw, ip=address).decode())
        data = None if operand is None else Data(self._object(operand), operand % 64)
        return [Code(self.path, raw, address, False, data)]

    def _object(self, address: int) -> str:
        """The last symbol before an address."""
        assert self._kallsyms is not None
        name, start = max(
            ((name, at) for name, at in self._kallsyms.addresses.items() if at <= address), key=lambda each: each[1]
        )
        return f"{name}+{address - start:#x}"

    def lines(self, frame: Frame, back: int) -> list[Named]:
        """The functions and lines at a place, innermost first."""
        if not self.plain or frame.offset is None:
            return []
        if frame.symbol not in self._places:
            self._places[frame.symbol] = self.symbols.named(frame.symbol)
        fitting = {at for at, size in self._places[frame.symbol] if _fits(frame, size)}
        return self.symbols.frames(fitting.pop() + max(frame.offset - back, 0)) if len(fitting) == 1 else []


def _same_code(code: Code, marked: bytes) -> bool:
    """Whether a file's code is what the dump shows. What the loader fills in is passed over: the opcode is compared."""
    length = 3 if code.unfinished else min(len(marked), Decoder(64, code.bytes, ip=0).decode().len)
    return not marked or code.bytes[:length] == marked[:length]


def _fits(frame: Frame, size: int) -> bool:
    """Whether a function can be the one: the kernel counts what lies between it and the next one as its own."""
    if not size:  # hand-written code without one
        return True
    return (frame.offset or 0) < size and (not frame.size or size <= frame.size)


class Files:
    """Code and debug information for dumps. `vmlinux`, `modules`: files that were given; `debug`: a directory of such.
    `root`: where this machine's own begin; None: they are not looked for.

    Raises SplitlockError where a given file cannot be read.
    """

    def __init__(
        self,
        vmlinux: str | None = None,
        modules: tuple[str, ...] = (),
        debug: str | None = None,
        root: str | None = "/",
    ) -> None:
        self._given = [_opened(vmlinux, "--vmlinux")] if vmlinux else []
        opened = [_opened(path, "--module") for path in modules]
        self._given_modules = {image.module() or _module_name(image.path): image for image in opened}
        self._debug, self._root = debug, root
        if debug is not None and not os.path.isdir(debug):
            raise SplitlockError(f"--debug {debug}: no directory; name one that holds vmlinux or NAME.ko", 2)
        self._found: dict[tuple[str, str], list[_Image]] = {}
        self._release = ""
        self._others: dict[str, str] = {}  # files that are of no use: path, and why

    def code(self, dump: Dump) -> Code | None:
        """The code at the place of a dump, from the first file that has the same; None where none has."""
        self._release = dump.release
        if dump.place is None or dump.place.offset is None or dump.bits != 64:
            return None
        marked = dump.code[dump.at : dump.at + _LONGEST] if dump.at is not None else b""
        images = self._images(dump.place.module)
        for image in list(images):
            candidates = image.code(dump.place)
            fitting = [code for code in candidates if _same_code(code, marked)]
            if len(fitting) == 1:
                return fitting[0]
            if candidates and not fitting:
                self._others[image.path] = "its code is not the dump's: it is another build"
                images.remove(image)
        return None

    def lines(self, frame: Frame, *, back: bool) -> list[Named]:
        """The functions and source lines of a frame; `back`: its address is that after a call."""
        for image in self._images(frame.module):
            found = image.lines(frame, 1 if back else 0)
            if any(name.source for name in found):
                return found
        return []

    def missing(self, dump: Dump) -> list[str]:
        """What could not be told for want of a file, and the way to it."""
        said = [f"{path} was not used: {why}" for path, why in self._others.items()]
        place = dump.place
        if place is None or place.source or self.lines(place, back=False):
            return said
        if place.module:
            said.append(
                f"the source line: give the module's file with debug information: --module {place.module}.ko"
                f"{_package(dump) if not _foreign(dump) else ''}"
            )
        else:
            said.append(
                f"the source line: give the kernel's file with debug information: --vmlinux FILE{_package(dump)}"
            )
        return said

    def _images(self, module: str) -> list[_Image]:
        """The files for the kernel, or for a module of it, those that were given first."""
        key = self._release, module
        if key not in self._found:
            given = [self._given_modules[module]] if module in self._given_modules else []
            given = [image for image in (given if module else self._given) if self._same(image)]
            paths = [*self._below(module), *self._installed(module)]
            self._found[key] = [*given, *(image for path in paths if (image := self._tried(path)))]
        return self._found[key]

    def _same(self, image: _Image) -> bool:
        release = image.release()
        if self._release and release != self._release:
            self._others[image.path] = f"it is of Linux {release or 'of unknown release'}, the dump of {self._release}"
            return False
        return True

    def _tried(self, path: str) -> _Image | None:
        try:
            image = _Image(path)
            return image if not self._release or image.release() == self._release else None
        except (OSError, ImageError):
            return None

    def _below(self, module: str) -> Iterator[str]:
        """What the directory that was given holds."""
        if self._debug is None:
            return
        for directory, folders, names in os.walk(self._debug):
            folders.sort()
            for name in sorted(names):
                if name.startswith(("vmlinux", "vmlinuz")) if not module else _module_name(name) == module:
                    yield os.path.join(directory, name)

    def _installed(self, module: str) -> Iterator[str]:
        if self._root is None or not _SAFE.fullmatch(self._release) or ".." in self._release:
            return
        release, tree = self._release, f"lib/modules/{self._release}"
        if not module:
            names = (f"usr/lib/debug/{tree}/vmlinux", f"usr/lib/debug/boot/vmlinux-{release}", f"{tree}/build/vmlinux",
                     f"boot/vmlinux-{release}", f"boot/vmlinuz-{release}", f"{tree}/vmlinuz")  # fmt: skip
            yield from (path for name in names if os.path.isfile(path := os.path.join(self._root, name)))
            return
        for top in (f"usr/lib/debug/{tree}", tree):
            for directory, _, files in os.walk(os.path.join(self._root, top)):
                yield from (os.path.join(directory, name) for name in files if _module_name(name) == module)


def _opened(path: str, option: str) -> _Image:
    try:
        return _Image(path)
    except OSError as error:
        raise SplitlockError(
            f"{option} {path}: {error.strerror}; name a file that is there and yours to read", 2
        ) from None
    except ImageError as error:
        what = "a kernel (vmlinux, or vmlinuz)" if option == "--vmlinux" else "a kernel module (NAME.ko)"
        raise SplitlockError(f"{option} {path}: {error}; name {what} of 64 bits", 2) from None


def _module_name(path: str) -> str:
    """A module's name by its file's, empty where that is none's."""
    name = os.path.basename(path).removesuffix(".debug")
    for ending in _ENDINGS:
        if name.endswith(f".ko{ending}"):
            return name.removesuffix(f".ko{ending}").replace("-", "_")
    return ""


def _foreign(dump: Dump) -> bool:
    letters = dump.modules.get(dump.place.module, "") if dump.place else ""
    return bool({"P", "O"} & set(letters))


def _package(dump: Dump) -> str:
    """The package that has the debug information."""
    words = f"{dump.release} {dump.version}"
    if "Debian" in words:
        return f" (package linux-image-{dump.release}-dbg)"
    if "Ubuntu" in words:
        return f" (package linux-image-unsigned-{dump.release}-dbgsym)"
    if ".fc" in words or ".el" in words:
        return " (dnf debuginfo-install kernel)"
    return ""
