"""The image file of one ELF file: its arena, and its text as it looks when patched. Its layout: inside/image.h.

Made once for a file and mapped by every process that maps the file.
"""

from __future__ import annotations

import gc
import struct
from typing import NamedTuple

from splitlock._errors import ImageError
from splitlock.process.agent.arena import PAGE, Arena, can_leave
from splitlock.process.agent.calls import is_linker, wanted_calls
from splitlock.process.agent.named import VERSION, Named, SiteName, Unwatched
from splitlock.process.agent.operands import PACKED
from splitlock.process.runs import JUMP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from splitlock.image.elf import Buffer, Elf
    from splitlock.process.agent.calls import Call
    from splitlock.process.agent.islands import Islands
    from splitlock.process.runs import Run

    Key = tuple[int, ...]
    Raw = bytes | bytearray

MAGIC = 0x31474D494C4C5053
_HEAD = struct.Struct("<QIIQ5Qq2Q4I12IQ3I32s3IQ")
_PATCH = struct.Struct("<QII")
_PAIR = struct.Struct("<II")
_HOOK = struct.Struct("<IIII")
_TEXT = struct.Struct("<QQQ")
_JUMP = 0xE9
_ID = 32  # bytes of a build-id that are compared
#: bytes below the dynamic linker where something else is already: the vDSO, the agent itself
_LINKERS_GAP = 32 << 20
_NEAR = 64 * PAGE  # patched pages with no more than this between them are mapped together


class _Patch(NamedTuple):
    address: int
    new: bytes
    old: bytes


class _Place(NamedTuple):
    """Where a jump to the arena goes, how many bytes it may take, and to whose code there."""

    address: int
    size: int
    entry: int


class Tables(NamedTuple):
    """Where the tables of an image file are, counted from the arena's start, and how much the whole arena takes."""

    patches: int
    fields: int
    copies: int
    resumes: int
    hooks: int
    texts: int
    jumps: int
    operands: int
    total: int


def load() -> None:
    """Import and load all that `make` needs."""
    from splitlock.image import elf  # noqa: F401
    from splitlock.image.scan.library import library
    from splitlock.process import functions, outside, runs  # noqa: F401
    from splitlock.process.agent import islands  # noqa: F401

    library()


def make(data: Buffer, key: Key) -> tuple[Raw, Named]:
    """The image file, and the names, of an ELF file's contents; of one that cannot be watched, without patches."""
    collects = gc.isenabled()
    gc.disable()  # a large image makes millions of objects, none of which is part of a circle
    try:
        return _judge(data, key)
    finally:
        if collects:
            gc.enable()


def _judge(data: Buffer, key: Key) -> tuple[Raw, Named]:
    from splitlock.image.elf import EM_X86_64, PF_W, Elf

    if data[:4] != b"\x7fELF":
        return _nothing(key, Named(0, 0, [Unwatched("no ELF image", len(data), None)], [], None))
    try:
        elf = Elf(data)
        size = sum(s.filesz for s in elf.executable())
        if elf.machine != EM_X86_64:
            return _nothing(key, Named(0, 0, [Unwatched("not x86-64 code", size, None)], [], None))
        if elf.has_text_relocations():
            reason = "text relocations: the dynamic linker rewrites the code"
            return _nothing(key, Named(0, 0, [Unwatched(reason, size, None)], [], elf.build_id()))
        if any(s.flags & PF_W for s in elf.executable()):
            return _nothing(key, Named(0, 0, [Unwatched("code in writable segments", size, None)], [], elf.build_id()))
        return _make(elf, key)
    except ImageError as error:
        return _nothing(key, Named(0, 0, [Unwatched(f"malformed image: {error}", len(data), None)], [], None))
    except (ValueError, OverflowError) as error:  # a displacement that does not reach: some 2 GB of code
        return _nothing(key, Named(0, 0, [Unwatched(f"too large to patch: {error}", len(data), None)], [], None))


def _make(elf: Elf, key: Key) -> tuple[Raw, Named]:
    from splitlock.process.agent.islands import find_islands
    from splitlock.process.functions import Text
    from splitlock.process.outside import exchanges
    from splitlock.process.runs import choose_runs

    text = Text(elf)
    chosen = choose_runs(text)
    islands = find_islands(text, chosen)
    left = [*islands.left, *(run for run in chosen if not can_leave(run))]
    runs = sorted([run for run in chosen if run not in left] + islands.moved, key=lambda run: run.start)
    unwatched = []
    more, exchanged = exchanges(elf, text.scan.ranges(), text.undecoded)
    if text.outside_sites or exchanged:
        where = "code outside known functions"
        unwatched.append(Unwatched(where, text.outside + more, text.outside_sites + exchanged))
    if left:
        unwatched.append(Unwatched("no room for a jump", sum(run.size for run in left), len(left)))
    size = max(0, sum(s.filesz for s in elf.executable()) - sum(u.size or 0 for u in unwatched))
    taken = {address for run in [*runs, *left] for address in range(run.start, run.start + run.size)}
    taken |= {address + i for address in islands.at.values() for i in range(JUMP)}
    calls, unseen = wanted_calls(elf, text.scan).without(taken)
    if unseen:
        where = "place" if len(unseen) == 1 else "places"
        what = f"calls the kernel at {len(unseen)} {where} of its own: programs and code so brought are not seen"
        unwatched.append(Unwatched(what, None, None))
    decided = text.decided
    del text, chosen, left, taken  # a browser's are 100 MB and more
    if not runs and not calls:
        return _nothing(key, Named(decided, size, unwatched, [], elf.build_id()))
    below = elf.span()[0] - (_LINKERS_GAP if is_linker(elf) else 0)
    places = _places(runs, calls, islands)
    arena = Arena(runs, calls, below, elf.span()[0])
    patches = _patches(elf, arena, places, islands)
    texts = list(_page_runs(elf, patches))
    tables = _tables(arena, patches, texts)
    arena.settle(tables.total - arena.code_size - PAGE)
    names = [SiteName(*site) for site in arena.sites]
    named = Named(len(names) + decided, size, unwatched, names, elf.build_id())
    patches = _patches(elf, arena, places, islands)
    del runs, calls, places, islands
    return _write(elf, key, named, arena, patches, texts, tables), named


def _places(runs: list[Run], calls: list[Call], islands: Islands) -> list[_Place]:
    moved = {run.start for run in islands.moved}
    places = [_Place(run.start, JUMP if run.start in moved else run.size, run.start) for run in runs]
    places = [place for place in places if place.address not in islands.at]
    places += [_Place(island, JUMP, start) for start, island in islands.at.items()]
    return places + [_Place(call.start, call.address - call.start, call.start) for call in calls]


def _patches(elf: Elf, arena: Arena, places: list[_Place], islands: Islands) -> list[_Patch]:
    made = []
    for address, size, entry in places:
        displacement = arena.base + arena.entry[entry] - (address + JUMP)
        new = b"\xe9" + displacement.to_bytes(4, "little", signed=True) + b"\xcc" * (size - JUMP)
        made.append(_Patch(address, new, elf.read(address, size)))
    for start, island in islands.at.items():
        new = b"\xeb" + (island - start - 2).to_bytes(1, "little", signed=True)
        made.append(_Patch(start, new, elf.read(start, 2)))
    return sorted(made)


def _page_runs(elf: Elf, patches: list[_Patch]) -> Iterator[tuple[int, int]]:
    """Pages that hold patches, as (address, size), joined where little is between them, all within a segment.

    Little at a segment's ends comes along: each mapping more makes every fork of the program slower.
    """
    for segment in elf.executable():
        low, high = segment.vaddr & -PAGE, segment.vaddr + segment.filesz + PAGE - 1 & -PAGE
        begin = end = -1
        for patch in patches:
            if not segment.vaddr <= patch.address < segment.vaddr + segment.filesz:
                continue
            first = patch.address & -PAGE
            if begin >= 0 and first - end > _NEAR:
                yield begin, end - begin
                begin = first
            elif begin < 0:
                begin = first if first - low > _NEAR else low
            end = patch.address + len(patch.new) + PAGE - 1 & -PAGE
        if begin >= 0:
            yield begin, (end if high - end > _NEAR else high) - begin


def _tables(arena: Arena, patches: list[_Patch], texts: list[tuple[int, int]]) -> Tables:
    at = arena.code_size + _HEAD.size + 7 & -8
    offsets = []
    for size, count in (
        (_PATCH.size, len(patches)), (4, len(arena.fields)), (_PAIR.size, len(arena.copies)),
        (_PAIR.size, len(arena.resume)), (_HOOK.size, len(arena.hooks)), (_TEXT.size, len(texts)),
        (_PAIR.size, len(patches)), (PACKED.size, len(arena.operands)),
    ):  # fmt: skip
        offsets.append(at)
        at = at + size * count + 7 & -8
    at += sum(2 * len(p.new) for p in patches)
    return Tables._make((*offsets, (at + PAGE - 1 & -PAGE) + PAGE))


def _write(
    elf: Elf, key: Key, named: Named, arena: Arena, patches: list[_Patch], texts: list[tuple[int, int]], tables: Tables
) -> bytearray:
    low, high = elf.span()
    jumps = [(int.from_bytes(p.new[1:5], "little"), i) for i, p in enumerate(patches) if p.new[0] == _JUMP]
    place = PAGE + tables.total
    size = place + sum(of_text for _, of_text in texts)
    raw = bytearray(size)  # once: it may take 100 MB
    code = memoryview(raw)[PAGE:place]
    code[: len(arena.code)] = arena.code
    id_at, id_size, build_id = _build_id(elf)
    head = _HEAD.pack(
        MAGIC, VERSION, len(arena.sites), size, *key, arena.base, low, high, arena.code_size, tables.total, arena.twin,
        len(arena.check_code()), tables.patches, len(patches), tables.fields, len(arena.fields), tables.copies,
        len(arena.copies), tables.resumes, len(arena.resume), tables.hooks, len(arena.hooks), tables.texts, len(texts),
        id_at, id_size, named.watched, len(named.unwatched), build_id, tables.jumps, len(jumps), tables.operands,
        named.size,
    )  # fmt: skip
    raw[: len(head)] = head
    code[arena.code_size : arena.code_size + len(head)] = head
    data = tables.operands + PACKED.size * len(arena.operands) + 7 & -8
    for i, patch in enumerate(patches):
        _PATCH.pack_into(code, tables.patches + i * _PATCH.size, patch.address, len(patch.new), data)
        both = patch.new + patch.old
        code[data : data + len(both)] = both
        data += len(both)
    struct.pack_into(f"<{len(arena.fields)}I", code, tables.fields, *arena.fields)
    _put_pairs(code, tables.copies, ((offset, address - low) for offset, address in arena.copies.items()))
    _put_pairs(code, tables.resumes, ((address - low, offset) for address, offset in arena.resume.items()))
    _put_pairs(code, tables.jumps, jumps)
    for i, operand in enumerate(sorted(arena.operands)):
        PACKED.pack_into(code, tables.operands + i * PACKED.size, *operand)
    for i, hook in enumerate(arena.hooks):
        _HOOK.pack_into(code, tables.hooks + i * _HOOK.size, hook.start, hook.begin, hook.end, hook.address - low)
    for i, (address, of_text) in enumerate(texts):
        _TEXT.pack_into(code, tables.texts + i * _TEXT.size, address, of_text, place)
        with memoryview(raw)[place : place + of_text] as pages:
            _put_text(pages, elf, address, patches)
        place += of_text
    code.release()
    return raw


def _put_pairs(code: memoryview, at: int, pairs: Iterable[tuple[int, int]]) -> None:
    for i, pair in enumerate(sorted(pairs)):
        _PAIR.pack_into(code, at + i * _PAIR.size, *pair)


def _build_id(elf: Elf) -> tuple[int, int, bytes]:
    """Where in the image its build-id lies, its size, and itself; zeros without one."""
    place = elf.build_id_at()
    return (0, 0, b"") if place is None else (place[0], min(len(place[1]), _ID), place[1][:_ID])


def _put_text(pages: memoryview, elf: Elf, address: int, patches: list[_Patch]) -> None:
    """Whole pages of text, as the file has them, patched."""
    size = len(pages)
    segment = next(s for s in elf.executable() if s.vaddr < address + size and address < s.vaddr + s.filesz)
    start = segment.offset + address - segment.vaddr
    with memoryview(elf.data)[start : start + size] as text:
        pages[: len(text)] = text
    for patch in patches:
        if address <= patch.address < address + size:
            pages[patch.address - address : patch.address - address + len(patch.new)] = patch.new


def _nothing(key: Key, named: Named) -> tuple[Raw, Named]:
    """The image file of a file in which nothing is patched, and what it was given."""
    tail = named.watched, len(named.unwatched), b"", 0, 0, 0, named.size
    return _HEAD.pack(MAGIC, VERSION, 0, PAGE, *key, *bytes(19), 0, 0, *tail).ljust(PAGE, b"\0"), named
