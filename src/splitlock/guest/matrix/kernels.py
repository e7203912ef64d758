"""Which kernels are there to boot, and which headers to build a module for them with?"""

from __future__ import annotations

import os
import re
import subprocess
from contextlib import closing
from typing import NamedTuple

from splitlock._errors import ImageError, SplitlockError
from splitlock.image import bzimage
from splitlock.image.archive import deb, rpm
from splitlock.image.compressed import compression, expand
from splitlock.image.package import LIMIT, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

PACKAGES = {b"!<arch>\ndebian-": deb, b"\xed\xab\xee\xdb": rpm}
# where packages, and trees that they are unpacked to, have the kernel
_IN_PACKAGE = re.compile(r"(usr/)?(boot/vmlinu[xz]-[^/]+|lib/modules/[^/]+/vmlinuz)")
_HEADERS = re.compile(r"linux-(headers|kbuild)-.*\.deb")
_NAMED = re.compile(r"(vmlinu[xz]|bzImage|linux-(image|binary)-).*(?<!\.ko)")
_WITH_KERNEL = re.compile(r"(?:^|,)\s*(linux-(?:image|binary)-[^\s,]+)")  # in a package's Depends
_PVH = re.compile(rb"\x04\0\0\0[\x04\x08]\0\0\0\x12\0\0\0Xen\0")  # ELF note XEN_ELFNOTE_PHYS32_ENTRY
_BANNER = re.compile(rb"Linux version (\S+) [^\n]*")

_REMEDY = "name a vmlinuz of x86-64, or a package with one"


class Kernel(NamedTuple):
    """A kernel."""

    path: str  #: the file it is in
    member: str | None  #: its name in that package
    release: str  #: what `uname -r` says
    banner: str
    #: the file that is booted: vmlinux where it may be, and can be entered directly (PVH), which is quicker in QEMU,
    #: else as it is
    image: str


def kernels(paths: Iterable[str], directory: str, *, direct: bool = True) -> tuple[list[Kernel], list[str]]:
    """The kernels in files, packages, and directories of them, ready to boot from `directory`; and what of these
    directories is no kernel to boot, with the reason, a line each. `direct`: vmlinux may be booted, else only
    a bzImage.

    Packages of headers are passed over. Raises SplitlockError where there is no kernel, or a path is something else.
    """
    found: list[Kernel] = []
    passed_over: list[str] = []
    for path in paths:
        files = _files(path, _NAMED)
        if not files:
            raise SplitlockError(f"--kernels {path}: no kernel there; name a vmlinuz, a package, or their directory", 2)
        for file in files:
            if _HEADERS.fullmatch(os.path.basename(file)):
                continue
            try:
                kernel = _kernel(file, os.path.join(directory, f"kernel{len(found)}"), direct)
            except (OSError, ImageError) as error:
                reason = error.strerror if isinstance(error, OSError) else str(error)
                if file == path:
                    raise SplitlockError(f"--kernels {shown(file)}: {reason}; {_REMEDY}", 2) from None
                passed_over.append(f"{shown(file)}: {reason}")
                continue
            if all(kernel.banner != other.banner for other in found):  # a package, and what it was unpacked to
                found.append(kernel)
    if not found and passed_over:
        raise SplitlockError(f"--kernels {passed_over[0]}; {_REMEDY}", 2)
    if not found:
        raise SplitlockError("--kernels: headers alone; name a vmlinuz, a package with one, or their directory", 2)
    return found, passed_over


def _files(path: str, names: re.Pattern[str]) -> list[str]:
    """The path itself; of a directory what in it has one of these names, or in its boot/ where it is a root."""
    if not os.path.isdir(path):
        return [path]
    places = [path, os.path.join(path, "boot")]
    files = [os.path.join(place, name) for place in places if os.path.isdir(place) for name in os.listdir(place)]
    return sorted(file for file in files if names.fullmatch(os.path.basename(file)) and os.path.isfile(file))


def _kernel(path: str, target: str, direct: bool) -> Kernel:
    """The kernel in a file, written to `target`. Raises OSError and ImageError."""
    with open(path, "rb") as file:
        head = file.read(bzimage.HEAD)
        size = os.fstat(file.fileno()).st_size
        for magic, walk in PACKAGES.items():
            if head.startswith(magic):
                with closing(walk(file.fileno(), size, LIMIT * 8)) as members:
                    for stream, name, length in members:
                        if _IN_PACKAGE.fullmatch(name) and length <= LIMIT:
                            return _identify(path, name, stream.read(length), target, direct)
                return _named_by(path, target, direct)
        if size > LIMIT:
            raise ImageError(f"{size:,} bytes are no kernel")
        return _identify(path, None, head + file.read(), target, direct)


def _named_by(path: str, target: str, direct: bool) -> Kernel:
    """The kernel of the package that this one depends on: Debian has packages that only name another.

    linux-image-amd64 always was one; since Linux 7.0 each linux-image is one, and the kernel is in linux-binary. Raises
    ImageError where it is not beside it.
    """
    try:
        depends = subprocess.run(
            ["dpkg-deb", "-f", path, "Depends"], capture_output=True, text=True, check=False
        ).stdout
    except OSError:
        depends = ""
    names = _WITH_KERNEL.findall(depends)
    if not names:
        raise ImageError("no kernel in this package")
    place, own = os.path.dirname(path) or ".", os.path.basename(path).partition("_")[0]
    for name in sorted(os.listdir(place)):
        if name.partition("_")[0] in names and name.endswith(".deb") and name.partition("_")[0] != own:
            return _kernel(os.path.join(place, name), target, direct)
    raise ImageError(f"no kernel in this package: it is in {names[0]}, on which this one depends")


def _identify(path: str, member: str | None, raw: bytes, target: str, direct: bool) -> Kernel:
    elf = raw
    if bzimage.is_bzimage(raw[: bzimage.HEAD]):
        elf = bzimage.vmlinux(raw, LIMIT)
    elif compression(raw):
        elf = raw = expand(raw, LIMIT)
    banner = _BANNER.search(elf)
    if elf[:5] != b"\x7fELF\x02" or banner is None:
        raise ImageError("no kernel of x86-64")
    enterable = direct and _PVH.search(elf) is not None
    if not enterable and elf is raw:
        what = "a vmlinux without CONFIG_PVH, which cannot be booted directly" if direct else "no bzImage"
        raise ImageError(what)
    with open(target, "wb") as image:
        image.write(elf if enterable else raw)
    text = banner[0].decode("utf-8", "replace")
    return Kernel(shown(path), member, banner[1].decode("utf-8", "replace"), text, target)


def headers(release: str, paths: Iterable[str], unpack_to: str) -> str | None:
    """The directory to build a module for a kernel in; None where there is none in these paths or on this machine.

    A path: such a directory, one that it or its packages are in, or a file that they are beside. Raises SplitlockError
    where packages cannot be unpacked.
    """
    places = [path if os.path.isdir(path) else os.path.dirname(path) or "." for path in paths]
    for place in [*places, "/"]:
        for tree in (place, f"{place}/usr/src/linux-headers-{release}", f"{place}/lib/modules/{release}/build"):
            if _release(tree) == release:
                return os.path.abspath(tree)
        packages = {os.path.basename(file).partition("_")[0]: file for file in _files(place, _HEADERS)}
        if f"linux-headers-{release}" in packages:
            return _unpacked(f"linux-headers-{release}", packages, unpack_to)
    return None


def _release(tree: str) -> str | None:
    """What kernel a directory of headers is for; None where it is none."""
    try:
        with open(os.path.join(tree, "include", "generated", "utsrelease.h"), encoding="utf-8") as file:
            found = re.search(r'UTS_RELEASE "([^"]+)"', file.read())
    except (OSError, UnicodeDecodeError):
        return None
    return found[1] if found else None


def _unpacked(name: str, packages: dict[str, str], root: str) -> str:
    """The headers in a package, unpacked below `root` with those of `packages` that it needs."""
    needs = re.findall(r"[^\s,|]+", _dpkg("-f", packages[name], "Depends"))
    for each in dict.fromkeys((name, *needs)):
        if each in packages:
            _dpkg("-x", packages[each], root)
    tree = os.path.join(root, "usr", "src", name)
    makefile = os.path.join(tree, "Makefile")
    if os.path.isfile(makefile) and not os.path.islink(makefile):  # Debian's includes another by its absolute path
        with open(makefile) as file:
            text = file.read()
        with open(makefile, "w") as file:
            file.write(text.replace("/usr/src/", f"{root}/usr/src/"))
    return tree


def _dpkg(option: str, package: str, word: str) -> str:
    try:
        done = subprocess.run(["dpkg-deb", option, package, word], capture_output=True, text=True, check=False)
    except OSError as error:
        raise SplitlockError(f"dpkg-deb: {error.strerror}; install dpkg, or name unpacked --headers", 2) from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["cannot be unpacked"])[0]
        raise SplitlockError(f"--headers {shown(package)}: {reason}; download it again", 2)
    return done.stdout
