"""Where are the code and the debug information of a kernel that oopsed? In files that were given, or found here.

Where distributions put them: Debian and Fedora /usr/lib/debug/lib/modules/RELEASE, Ubuntu /usr/lib/debug/boot; the code
itself: /boot/vmlinuz-RELEASE, /lib/modules/RELEASE. A file of another release is never used.
"""

from __future__ import annotations

import os
import re

from iced_x86 import Decoder

from splitlock._errors import ImageError, SplitlockError
from splitlock.host.oops.image import Code, Image, same_code
from splitlock.host.oops.types import Words
from splitlock.image.btf import Btf
from splitlock.image.symbols import Frame as Named
from splitlock.x86.locked import split_size
from splitlock.x86.origin import operand

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from splitlock.linux.dump import Dump, Frame

_LONGEST = 15  # bytes of an instruction
_SAFE = re.compile(r"\d[\w.+~-]*")  # a release that can be a part of a path: a log may say anything
_DEBUG = "/usr/lib/debug"
_ENDINGS = ("", ".gz", ".xz", ".zst")


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
        self._found: dict[tuple[str, str], list[Image]] = {}
        self._release = ""
        self._others: dict[tuple[str, str], str] = {}  # files that are of no use: for a release, path; and why

    def code(self, dump: Dump) -> tuple[Code, str] | None:
        """The code at the place of a dump, from the first file that has the same, and what its operand is in words of
        the source (may be empty). None where no file has it."""
        self._release = dump.release
        if dump.place is None or dump.place.offset is None or dump.bits != 64:
            return None
        marked = dump.code[dump.at : dump.at + _LONGEST] if dump.at is not None else b""
        images = self._images(dump.place.module)
        for image in list(images):
            candidates = image.code(dump.place)
            fitting = [code for code in candidates if same_code(code, marked)]
            if len(fitting) == 1:
                return fitting[0], self._words(image, fitting[0], dump.place)
            if candidates and not fitting:
                self._others[self._release, image.path] = "its code is not the dump's: it is another build"
                images.remove(image)
        return None

    def _words(self, image: Image, code: Code, frame: Frame) -> str:
        if code.data is not None:
            return code.data.name
        instruction, address = Decoder(64, code.raw, ip=0).decode(), operand(code.function, frame.offset or 0)
        if address is None:
            return ""
        try:
            base = self._types()
            btf = base if not frame.module else image.btf(base)
            return Words(btf, frame.symbol).operand(address, split_size(instruction)) if btf else ""
        except (LookupError, ImageError):
            return ""

    def _types(self) -> Btf | None:
        """The kernel's types: in its file, or where the running kernel is the one, from itself."""
        for image in self._images(""):
            if (found := image.btf(None)) is not None:
                return found
        if self._root is None or os.uname().release != self._release:
            return None
        try:
            with open(os.path.join(self._root, "sys/kernel/btf/vmlinux"), "rb") as file:
                return Btf(file.read())
        except OSError:
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
        others = [(path, why) for (release, path), why in self._others.items() if release == dump.release]
        said = [f"{path} was not used: {why}" for path, why in others]
        images = [image for (release, _), found in self._found.items() if release == dump.release for image in found]
        said += dict.fromkeys(image.symbols.trouble for image in images if image.symbols.trouble)
        place = dump.place
        if place is None or place.source or self.lines(place, back=False):
            return said
        if place.module:
            said.append(
                f"the source line: give the module's file, with debug information: --module {place.module}.ko"
                f"{_package(dump) if not _foreign(dump) else ''}"
            )
        else:
            said.append(
                f"the source line: give the kernel's file with debug information: --vmlinux FILE{_package(dump)}"
            )
        return said

    def _images(self, module: str) -> list[Image]:
        """The files for the kernel, or for a module of it, those that were given first."""
        key = self._release, module
        if key not in self._found:
            given = [self._given_modules[module]] if module in self._given_modules else []
            given = [image for image in (given if module else self._given) if self._same(image)]
            paths = [*self._below(module), *self._installed(module)]
            self._found[key] = [*given, *(image for path in paths if (image := self._tried(path)))]
        return self._found[key]

    def _same(self, image: Image) -> bool:
        release = image.release()
        if self._release and release != self._release:
            self._others[self._release, image.path] = (
                f"it is of Linux {release or 'of unknown release'}, the dump of {self._release}"
            )
            return False
        return True

    def _tried(self, path: str) -> Image | None:
        try:
            image = Image(path)
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


def _opened(path: str, option: str) -> Image:
    try:
        return Image(path)
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
