"""What to write where, to watch an image: the result of analysing it, cached by file identity.

Everything is relative to the image, so one plan serves every process that maps it. A plan has a
hot half, read at every start, and a cold half (`Sites`), read when the first split lock is seen.
Building one needs iced-x86, which is imported only then.
"""

from __future__ import annotations

import gc

from splitlock._errors import ImageError
from splitlock.process.abi import data_layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from splitlock.image.elf import Buffer
    from splitlock.process.runs import Run

VERSION = 11  # of what is stored; change it whenever anything that builds plans changes its results
_GAP = 512  # bytes between patches that are written in one go
_HOT = (
    "watched", "unmonitored", "span", "segments", "sites", "arena", "code", "code_size", "asked", "trapped", "flag",
    "fields", "chunks", "traps",
)  # fmt: skip
#: What `Plan.values` and `Sites.values` give.
Hot = tuple[
    int, list[tuple[str, int, int | None]], tuple[int, int], list[tuple[int, int, int]], int, int, bytes, int, int, int,
    int, list[int], list[tuple[int, bytes, list[int]]], dict[int, int],
]  # fmt: skip
Cold = tuple[list[tuple[int, int, int, str]], dict[int, int], dict[int, int], str | None, list[bytes]]


class Plan:
    """The hot half.

    watched      locked instructions that are watched, those included whose address never splits
    unmonitored  [(reason, bytes, locked instructions or None)]: code of the image that is not
    span         (lowest, highest) address that is loaded
    segments     [(address, file offset, bytes)] of the executable segments
    sites        number of counters, one a patched site
    arena        address meant for the arena, in the file's terms: its code, then its data
    code         the arena's code; code_size its size in whole pages
    asked, trapped, flag  offsets in it: see splitlock.process.abi.Check
    fields       offsets in it of 32-bit displacements to the outside
    chunks       [(address, bytes, offsets of 32-bit displacements to the arena)]: text to write
    traps        {address of an int3: offset in the arena of its trampoline}
    """

    __slots__ = _HOT

    watched: int
    unmonitored: list[tuple[str, int, int | None]]
    span: tuple[int, int]
    segments: list[tuple[int, int, int]]
    sites: int
    arena: int
    code: bytes
    code_size: int
    asked: int
    trapped: int
    flag: int
    fields: list[int]
    chunks: list[tuple[int, bytes, list[int]]]
    traps: dict[int, int]

    def __init__(self, values: tuple[object, ...]) -> None:
        for name, value in zip(_HOT, values, strict=True):
            setattr(self, name, value)

    def values(self) -> tuple[object, ...]:
        """What `Plan()` takes, for storing."""
        return tuple(getattr(self, name) for name in _HOT)

    @property
    def data_size(self) -> int:
        """Bytes of counters and seen table, in whole pages."""
        return data_layout(self.sites)[1]

    def moved(self, delta: int) -> tuple[bytes, list[tuple[int, bytes, list[int]]]]:
        """`code` and `chunks` for an arena that lies `delta` bytes from where it was meant to."""
        if not delta:
            return self.code, self.chunks
        chunks = [(address, _shift(text, fields, delta), fields) for address, text, fields in self.chunks]
        return _shift(self.code, self.fields, -delta), chunks


def _shift(raw: bytes, fields: list[int], delta: int) -> bytes:
    shifted = bytearray(raw)
    for at in fields:
        value = int.from_bytes(shifted[at : at + 4], "little", signed=True) + delta
        shifted[at : at + 4] = value.to_bytes(4, "little", signed=True)
    return bytes(shifted)


class Sites:
    """The cold half: names for what the hot half only numbers.

    sites     [(address, address of the next instruction, operand size, text)] by site number
    copies    {offset in the arena of a moved instruction: its address}
    resume    {address within a run: offset in the arena to go on from}
    build_id  of the image, in hex, or None
    original  the image's own bytes under each of the hot half's chunks
    """

    __slots__ = ("build_id", "copies", "original", "resume", "sites")

    def __init__(
        self,
        sites: list[tuple[int, int, int, str]],
        copies: dict[int, int],
        resume: dict[int, int],
        build_id: str | None,
        original: list[bytes],
    ) -> None:
        self.sites, self.copies, self.resume, self.build_id, self.original = sites, copies, resume, build_id, original

    def values(self) -> tuple[object, ...]:
        """What `Sites()` takes, for storing."""
        return self.sites, self.copies, self.resume, self.build_id, self.original


def unnamed(plan: Plan) -> Sites:
    """A cold half for a plan whose own is lost."""
    return Sites([(0, 0, 0, "?")] * plan.sites, {}, {}, None, [])


def unwatched(reason: str, size: int) -> tuple[Plan, Sites]:
    """The plan for an image none of whose code can be watched."""
    return _empty(0, [(reason, size, None)], (0, 0), []), Sites([], {}, {}, None, [])


def _empty(
    watched: int,
    unmonitored: list[tuple[str, int, int | None]],
    span: tuple[int, int],
    segments: list[tuple[int, int, int]],
) -> Plan:
    return Plan((watched, unmonitored, span, segments, 0, 0, b"", 0, 0, 0, 0, [], [], {}))


def load() -> None:
    """Import and load all that `build` needs."""
    from splitlock.image import elf  # noqa: F401
    from splitlock.image.scan.library import library
    from splitlock.process import functions, outside, runs, trampoline  # noqa: F401

    library()


def build(data: Buffer) -> tuple[Plan, Sites]:
    """Analyse an image's file contents. Never raises for a malformed one: its plan says so.

    Raises SplitlockError where the package was built without a C compiler.
    """
    collects = gc.isenabled()
    gc.disable()  # a large image makes millions of objects, none of which is part of a circle
    try:
        return _build(data)
    finally:
        if collects:
            gc.enable()


def _build(data: Buffer) -> tuple[Plan, Sites]:
    from splitlock.image.elf import EM_X86_64, Elf
    from splitlock.process.functions import Text
    from splitlock.process.outside import exchanges
    from splitlock.process.runs import choose_runs
    from splitlock.process.trampoline import Trampolines

    if data[:4] != b"\x7fELF":
        return unwatched("no ELF image", len(data))
    try:
        elf = Elf(data)
        size = sum(s.filesz for s in elf.executable())
        if elf.machine != EM_X86_64:
            return unwatched("not x86-64 code", size)
        if elf.has_text_relocations():
            return unwatched("text relocations: the dynamic linker rewrites the code", size)
        text = Text(elf)
        ranges = text.scan.ranges()
        segments = [(s.vaddr, s.offset, s.filesz) for s in elf.executable()]
        runs = choose_runs(text)
        unmonitored: list[tuple[str, int, int | None]] = []
        more, exchanged = exchanges(elf, ranges, text.undecoded)
        if text.outside_sites or exchanged:
            where = "code outside known functions"
            unmonitored.append((where, text.outside + more, text.outside_sites + exchanged))
        if not runs:
            return _empty(text.decided, unmonitored, elf.span(), segments), Sites([], {}, {}, elf.build_id(), [])
        try:
            made = Trampolines(runs, elf.span()[0])
            chunks = _chunks(elf.read, segments, runs, made.base, made.entry)
        except (ValueError, OverflowError) as error:  # a displacement that does not reach: some 2 GB of code
            return unwatched(f"too large to patch: {error}", size)
    except ImageError as error:
        return unwatched(f"malformed image: {error}", len(data))
    traps = {run.start: made.entry[run.start] for run in runs if run.trap}
    hot = Plan(
        (
            len(made.sites) + text.decided, unmonitored, elf.span(), segments, len(made.sites), made.base,
            bytes(made.code), made.code_size, made.check.asked, made.check.trapped, made.check.flag, made.fields,
            chunks, traps,
        )
    )  # fmt: skip
    original = [elf.read(address, len(text)) for address, text, _ in chunks]
    return hot, Sites(made.sites, made.copies, made.resume, elf.build_id(), original)


def _chunks(
    read: Callable[[int, int], bytes],
    segments: list[tuple[int, int, int]],
    runs: list[Run],
    arena: int,
    entry: dict[int, int],
) -> list[tuple[int, bytes, list[int]]]:
    groups: list[list[Run]] = []
    for run in runs:
        same = groups and any(a <= groups[-1][0].start and run.start < a + size for a, _, size in segments)
        if same and run.start - (groups[-1][-1].start + groups[-1][-1].size) <= _GAP:
            groups[-1].append(run)
        else:
            groups.append([run])
    chunks = []
    for group in groups:
        start = group[0].start
        text = bytearray(read(start, group[-1].start + group[-1].size - start))
        fields = []
        for run in group:
            at = run.start - start
            if run.trap:
                text[at] = 0xCC
                continue
            # int3 behind the jump: should anything enter there after all, the tracer sets it right
            text[at : at + run.size] = b"\xe9\0\0\0\0" + b"\xcc" * (run.size - 5)
            displacement = arena + entry[run.start] - (run.start + 5)
            text[at + 1 : at + 5] = displacement.to_bytes(4, "little", signed=True)
            fields.append(at + 1)
        chunks.append((start, bytes(text), fields))
    return chunks
