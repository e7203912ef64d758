"""Does a program execute the files that it maps, or does it interpret them, as valgrind does?

An interpreter executes translations of its guest's files: patched text leads it to addresses that it knows nothing of.
A dynamic linker maps files that the processor then executes. Both map them executable, and nothing tells them apart but
where the call comes from, and what is mapped first: an interpreter's guest is a program, while a static program that
loads libraries (dlopen) loads no programs.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from splitlock._errors import ImageError
from splitlock.linux.pages import mappings_within

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from splitlock.linux.proc import Mapping
    from splitlock.process.space import Space

_AT_BASE = 7  # of the dynamic linker that the kernel has mapped; 0 without one
_PT_INTERP = 3
_DT_NEEDED, _DT_SONAME, _DT_FLAGS_1, _DF_1_PIE = 1, 14, 0x6FFF_FFFB, 0x0800_0000
_MOST_HEADERS, _MOST_DYNAMIC = 64, 16 << 10  # program headers, and bytes of dynamic section, that are looked at


class _Kind(NamedTuple):
    is_program: bool
    is_linker: bool  # it needs no library, and can be entered


def text_without_linker(tid: int, found: Sequence[Mapping]) -> list[tuple[int, int]]:
    """The text of a static program, from the mappings at its first instruction; none where a dynamic linker is there.

    Such a linker may be the program itself. Raises OSError.
    """
    with open(f"/proc/{tid}/auxv", "rb", buffering=0) as file:
        raw = memoryview(file.read(4096)).cast("Q")
    if any(kind == _AT_BASE and value for kind, value in zip(raw[::2], raw[1::2], strict=True)):
        return []
    if not _kind(f"/proc/{tid}/exe").is_program:
        return []
    return [(m.start, m.end) for m in found if "x" in m.permissions and m.inode]


def is_interpreted(tid: int, space: Space, rip: int, path: str) -> bool:
    """Whether a file that a task has just mapped is some interpreter's guest; `rip` is where the call came from.

    Raises OSError when the task is gone.
    """
    if not space.static_text:
        return False
    if not any(low <= rip <= high for low, high in space.static_text):  # text of a file that it has mapped: it does run
        return space.interprets and not any(
            m.inode and "x" in m.permissions for m in mappings_within(tid, rip, rip + 1)
        )
    if not space.interprets:
        kind = _kind(path)
        space.interprets = kind.is_program or (kind.is_linker and not space.loads)
        space.loads = True
    return space.interprets


def _kind(path: str) -> _Kind:
    """Of an ELF file; neither for anything else."""
    from splitlock.image.elf import ET_DYN, ET_EXEC, PHDR, PT_DYNAMIC, read_header

    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        return _Kind(False, False)
    try:
        kind, _, _, entry, at, _, _, _, _, count, *_ = read_header(os.pread(descriptor, 64, 0))
        raw = os.pread(descriptor, PHDR.size * min(count, _MOST_HEADERS), at)
        headers = list(PHDR.iter_unpack(raw[: len(raw) // PHDR.size * PHDR.size]))
        dynamic: dict[int, int] = {}
        for header in headers:
            if header[0] == PT_DYNAMIC:
                raw = os.pread(descriptor, min(header[5], _MOST_DYNAMIC), header[2])
                words = memoryview(raw[: len(raw) // 16 * 16]).cast("Q")
                dynamic.update(zip(words[::2], words[1::2], strict=True))
    except (OSError, OverflowError, ImageError):
        return _Kind(False, False)
    finally:
        os.close(descriptor)
    asks = any(header[0] == _PT_INTERP for header in headers)
    is_marked = bool(dynamic.get(_DT_FLAGS_1, 0) & _DF_1_PIE)
    is_program = kind == ET_EXEC or (kind == ET_DYN and (is_marked or (asks and _DT_SONAME not in dynamic)))
    is_linker = kind == ET_DYN and not is_program and not asks and entry != 0 and _DT_NEEDED not in dynamic
    return _Kind(is_program, is_linker)
