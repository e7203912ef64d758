"""Files that hold kernel code, wherever they are: plain, compressed, in packages, in bootable kernels.

`members` gives each ELF file in what it is pointed at, the contents of one at a time: packages are streamed,
never unpacked, and what is in the way in them is passed over. Whatever cannot be read is a Failure; the rest goes on.
"""

from __future__ import annotations

import os
import stat
from contextlib import closing
from typing import NamedTuple

from splitlock._errors import ImageError, SplitlockError
from splitlock.image import bzimage
from splitlock.image.archive import deb, packed, rpm
from splitlock.image.compressed import compression, expand
from splitlock.image.elf import EM_X86_64, elf_class
from splitlock.linux import below

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    from splitlock.image.archive import Stream

LIMIT = 512 << 20  #: bytes a file may have, decompressed (a vmlinux with debugging information has 400 MB)
_PACKAGE = 32  # times that, for all of a package: linux-image-*-dbg has 6 GB

_MODULE = (".ko", ".r0")  # names of files that are expected to be ELF files, whatever is in them
_COMPRESSED = (".gz", ".xz", ".zst", ".bz2", ".lz4", ".lzma")
_KERNEL_S_OWN = ("build", "source")  # links from a kernel's modules to its headers: no modules there, as for depmod


class File(NamedTuple):
    """A file to look into."""

    path: str
    given: bool  #: it was named by the user; false: found in a directory
    root: str = ""  #: the directory that its path begins at and cannot leave; empty: this machine's


class Member(NamedTuple):
    """An ELF file. Names that are not UTF-8 have escapes in place of what is not."""

    path: str  #: of the file that it is, or is in
    member: str | None  #: its name inside a package; None: it is in none
    data: bytes


class Failure(NamedTuple):
    """Something that could not be read: where, as in a Member."""

    path: str
    member: str | None
    reason: str  #: in one line


def default_paths() -> list[str]:
    """The modules of the running kernel. Raises SplitlockError where it has none on this file system."""
    release = os.uname().release
    for root in ("/lib/modules", "/usr/lib/modules"):
        if os.path.isdir(f"{root}/{release}"):
            return [f"{root}/{release}"]
    raise SplitlockError(
        f"/lib/modules/{release}: the running kernel has no modules there; name a directory, a file or a package", 2
    )


def members(paths: Iterable[str], *, limit: int = LIMIT) -> Iterator[Member | Failure]:
    """Each ELF file in files, directories and packages, in the order of their names; `limit`: bytes of a member.

    A file that the user named and that holds nothing for us is a Failure; one that was found in a directory is
    passed over, unless its name says that it is a module.
    """
    for file in files(paths):
        if isinstance(file, File):
            yield from read(file, limit=limit)
        else:
            yield file


def files(paths: Iterable[str], root: str = "") -> Iterator[File | Failure]:
    """The files to look into: those named, and those below the directories named, each directory once.

    Links are followed, but for `build` and `source` and where the target comes up anyhow. `root`: what the / of the
    paths is, which nothing leads out of; empty: this machine's.
    """
    for path in paths:
        try:
            mode = status(path, root).st_mode
        except (OSError, ValueError) as error:
            yield Failure(shown(path), None, _reason(error))
            continue
        if stat.S_ISDIR(mode):
            yield from _walk(path, root)
        else:
            yield File(path, True, root)


class _Entry(NamedTuple):
    """What is in a directory."""

    path: str
    name: str
    linked: bool
    kind: int  #: stat.S_IFDIR, S_IFREG, a link's own: S_IFLNK; 0: another


def _walk(top: str, root: str) -> Iterator[File | Failure]:
    seen: set[tuple[int, int]] = set()
    real = ""
    waiting: list[str | _Entry] = [top]  # what comes next is last; a directory to go into is a path
    while waiting:
        entry = waiting.pop()
        try:
            if isinstance(entry, str):
                entries, here = _entries(entry, root, seen)
                waiting += entries
                real = real or here
                continue
            kind, target = entry.kind, ""
            if entry.linked:  # a link to itself or to nothing has a reason to name
                kind, target = _target(entry.path, root)
            if stat.S_ISDIR(kind):
                if not (entry.linked and entry.name in _KERNEL_S_OWN):
                    waiting.append(entry.path)
            elif stat.S_ISREG(kind) and not target.startswith(real + "/"):
                yield File(entry.path, False, root)
        except OSError as error:
            if isinstance(entry, str):
                yield Failure(shown(entry), None, _reason(error))
            elif entry.name not in _KERNEL_S_OWN:  # headers that are not installed
                yield Failure(shown(entry.path), None, _reason(error))


def _entries(directory: str, root: str, seen: set[tuple[int, int]]) -> tuple[list[_Entry], str]:
    """What is in a directory, the last name first, nothing in one that was `seen`; and its path without links."""
    held = below.opened(root, directory, folder=True)
    try:
        info = os.fstat(held)
        real = below.real(held)
        if (info.st_dev, info.st_ino) in seen:
            return [], real
        seen.add((info.st_dev, info.st_ino))
        with os.scandir(held) as found:
            entries = [_entry(os.path.join(directory, one.name), one) for one in found]
        return sorted(entries, key=lambda entry: entry.name, reverse=True), real
    finally:
        os.close(held)


def _entry(path: str, found: os.DirEntry[str]) -> _Entry:
    """The directory itself tells the kind, on most file systems."""
    if found.is_symlink():
        return _Entry(path, found.name, True, stat.S_IFLNK)
    whole = stat.S_IFREG if found.is_file(follow_symlinks=False) else 0
    return _Entry(path, found.name, False, stat.S_IFDIR if found.is_dir(follow_symlinks=False) else whole)


def _target(path: str, root: str) -> tuple[int, str]:
    """What kind of file a link leads to, and its path here without links."""
    held = below.handle(root, path)
    try:
        return os.fstat(held).st_mode, below.real(held)
    finally:
        os.close(held)


def status(path: str, root: str = "") -> os.stat_result:
    """What stat(2) says of a file. Raises OSError."""
    held = below.handle(root, path)
    try:
        return os.fstat(held)
    finally:
        os.close(held)


def read(file: File, *, limit: int = LIMIT) -> Iterator[Member | Failure]:
    """The ELF files in one file: itself, what is compressed in it, or the members of a package."""
    path = shown(file.path)
    try:
        fd = below.opened(file.root, file.path)
    except (OSError, ValueError) as error:
        yield Failure(path, None, _reason(error))
        return
    try:
        info = os.fstat(fd)
        head = os.pread(fd, bzimage.HEAD, 0)
        package = _package(fd, info.st_size, head, path, limit)
        if package is not None:
            yield from _inside(path, package, limit)
        elif (form := _form(path, head, file.given)) is not None:
            _check_size(info.st_size, limit)
            yield Member(path, None, _elf(form, _whole(fd, info.st_size), limit))
        elif file.given:
            raise ImageError("not an ELF file, a kernel, a module or a package")
    except (OSError, ImageError, MemoryError) as error:
        yield Failure(path, None, _reason(error))
    finally:
        os.close(fd)


def _package(fd: int, size: int, head: bytes, name: str, limit: int) -> Generator[tuple[Stream, str, int]] | None:
    """The files of a package; None where the file is none."""
    if head.startswith(b"!<arch>\ndebian-binary"):
        return deb(fd, size, limit * _PACKAGE)
    if head.startswith(b"\xed\xab\xee\xdb"):
        return rpm(fd, size, limit * _PACKAGE)
    if name.endswith(".tar") or (compression(head) and os.path.splitext(name)[0].endswith(".tar")):
        return packed(fd, 0, size, limit * _PACKAGE)
    return None


def _inside(path: str, package: Generator[tuple[Stream, str, int]], limit: int) -> Iterator[Member | Failure]:
    """The ELF files of a package. Raises ImageError where the package itself is damaged."""
    with closing(package):  # before its file is closed: other threads read ahead
        for stream, name, size in package:
            form = _form(name, stream.peek(min(size, bzimage.HEAD)), False)
            if form is None:
                continue
            try:
                _check_size(size, limit)
            except ImageError as error:
                yield Failure(path, name, _reason(error))
                continue
            raw = stream.read(size)
            try:
                data = _elf(form, raw, limit)
            except ImageError as error:
                yield Failure(path, name, _reason(error))
            else:
                del raw
                yield Member(path, name, data)


def _form(name: str, head: bytes, given: bool) -> str | None:
    """How a file holds what we look for, going by its name and its first bytes; None where it does not look as if."""
    plain, ending = os.path.splitext(name)
    if head.startswith(b"\x7fELF"):
        return "elf" if given or name.endswith(_MODULE) or elf_class(head) == (64, EM_X86_64) else None
    if bzimage.is_bzimage(head):
        return "bzimage"
    if given and compression(head):
        return "compressed"
    if ending in _COMPRESSED and (plain.endswith(_MODULE) or os.path.basename(plain).startswith("vmlinu")):
        return "compressed"
    return "elf" if name.endswith(_MODULE) else None


def _elf(form: str, raw: bytes, limit: int) -> bytes:
    """The ELF file in the contents of a file. Raises ImageError where there is none."""
    if form == "compressed":
        raw = expand(raw, limit)
    if bzimage.is_bzimage(raw[: bzimage.HEAD]):
        raw = bzimage.vmlinux(raw, limit)
    if raw[:4] != b"\x7fELF":
        raise ImageError("not an ELF file" if raw else "an empty file")
    return raw


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise ImageError(f"{size:,} bytes, more than the limit of {limit:,}")


def _whole(fd: int, size: int) -> bytes:
    data = os.pread(fd, size, 0)
    while len(data) < size and (more := os.pread(fd, size - len(data), len(data))):  # a call reads at most 2 GiB
        data += more
    return data


def shown(path: str) -> str:
    """A path as text that can be written anywhere: bytes that are no UTF-8 as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "not enough memory"
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
