"""Damaged files: the readers refuse them or read them, soon and with little memory; making a plan never fails."""

from __future__ import annotations

import random
import resource
import signal
import struct
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from image.test_elf import without_sections
from x86.building import function, link

from splitlock._errors import ImageError
from splitlock.image.elf import Elf
from splitlock.image.functions import function_ranges
from splitlock.process.plan import build

SECONDS = 5.0  # for one step on one file; it takes a thousandth of that
MEMORY = 256 << 20  # bytes of address space above what is in use

# A file of some 6,000 bytes with all that the readers look at: a jump table, a branch behind a LOCK prefix,
# short sites, a function without frame entry, pointers to code, a build-id.
SOURCE = (
    function(
        "one",
        """lea rdx, [rip+table]; movsxd rax, [rdx+rdi*4]; add rax, rdx; jmp rax
        case0: lock inc dword ptr [rdi]; mov eax, 1
        case1: cmp eax, 1; je 1f; lock; 1: cmpxchg [rdi], ecx; ret""",
    )
    + function(
        "two",
        """lock inc qword ptr [rsp+8]; xchg [rdi], eax; lock bts [rsi], rcx; lock add dword ptr [rip+data], 1
        lock xadd fs:[rdi], rax; call one; jmp two""",
    )
    + function("three", "xchg [rdi], eax; ret", frame=False)
    + ".section .rodata; .balign 4; table: .long case0-table, case1-table\n.data; data: .quad 0, one, case0\n"
)
EXTREME = [
    0, 1, 2, 7, 8, 24, 56, 64, 0xFF, 0x1000, 0x7FFF, 0xFFFF, 1 << 20, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 1 << 32,
    (1 << 63) - 1, 1 << 63, (1 << 64) - 4096, (1 << 64) - 1,
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The file, with and without its section headers."""
    path = link(tmp_path_factory.mktemp("whole"), SOURCE, "-Wl,--build-id=sha1,-z,noseparate-code,--hash-style=sysv")
    raw = path.read_bytes()
    assert build(raw)[0].sites == build(without_sections(raw))[0].sites + 1 == 7
    return [raw, without_sections(raw)]


class TooLong(BaseException):
    """A step took more than `SECONDS`."""


def _alarm(_signal: int, _frame: object) -> None:
    raise TooLong


@contextmanager
def limited() -> Iterator[None]:
    """Little memory, and an alarm clock that only needs to be set."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = signal.signal(signal.SIGALRM, _alarm)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, before)


def attempt(step: Callable[[], object], refusal: tuple[type[Exception], ...]) -> str:
    """Take a step; what went wrong, or an empty string."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        step()
    except refusal:
        pass
    except (Exception, TooLong):
        return traceback.format_exc(limit=-3)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return ""


def check_ranges(elf: Elf) -> None:
    reached = 0
    for start, end in function_ranges(elf):
        assert reached <= start <= end, (reached, start, end)
        reached = end


def wrong(raw: bytes) -> list[str]:
    """Everything that goes wrong with a file and must not."""
    try:
        elf = Elf(raw)
    except ImageError:
        steps: list[Callable[[], object]] = []
    else:
        steps = [
            lambda: elf.sections,
            lambda: list(elf.symbols()),
            elf.build_id,
            elf.has_text_relocations,
            elf.span,
            lambda: check_ranges(elf),
        ]
    found = [attempt(lambda: Elf(raw), (ImageError,)), *(attempt(step, (ImageError,)) for step in steps)]
    found.append(attempt(lambda: build(raw), ()))
    return [text for text in found if text]


def changed(raw: bytes, at: int, value: int, width: int) -> bytes:
    """The file with one little-endian number in it set."""
    return raw[:at] + (value % (1 << 8 * width)).to_bytes(width, "little") + raw[at + width :]


def header_fields(raw: bytes) -> Iterator[tuple[str, int, int]]:
    """Name, offset and width of each field of the file header, program headers and section headers."""
    phoff, shoff = struct.unpack_from("<QQ", raw, 32)
    phnum, _, shnum = struct.unpack_from("<HHH", raw, 56)
    tables: list[tuple[str, int, tuple[int, ...]]] = [("file", 16, (2, 2, 4, 8, 8, 8, 4, 2, 2, 2, 2, 2, 2))]
    tables += [(f"segment {i}", phoff + 56 * i, (4, 4, 8, 8, 8, 8, 8, 8)) for i in range(phnum)]
    tables += [(f"section {i}", shoff + 64 * i, (4, 4, 8, 8, 8, 8, 4, 4, 8, 8)) for i in range(shnum)]
    for name, at, widths in tables:
        for number, width in enumerate(widths):
            yield f"{name} field {number}", at, width
            at += width


@pytest.mark.parametrize("form", [0, 1], ids=["sections", "no-sections"])
def test_every_header_field_at_its_extremes(whole: list[bytes], form: int) -> None:
    raw = whole[form]
    with limited():
        for name, at, width in header_fields(raw):
            for value in {v % (1 << 8 * width) for v in EXTREME}:
                assert wrong(changed(raw, at, value, width)) == [], f"{name} = {value:#x}"


def mutated(raw: bytes, chance: random.Random) -> bytes:
    """Some bits, bytes or numbers changed, or the end cut off, or something added."""
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        way, at = chance.random(), chance.randrange(len(raw))
        if way < 0.4:
            raw = changed(raw, at, raw[at] ^ 1 << chance.randrange(8), 1)
        elif way < 0.5:
            raw = changed(raw, at, chance.choice((0, 0x7F, 0x80, 0xFF)), 1)
        elif way < 0.6:
            raw = raw[: max(1, at)]
        elif way < 0.65:
            raw += chance.randbytes(64)
        else:
            width = chance.choice((2, 4, 8))
            raw = changed(raw, at - at % width, chance.choice((*EXTREME, chance.getrandbits(64))), width)
    return raw


def test_random_damage(whole: list[bytes]) -> None:
    chance = random.Random(20)
    with limited():
        for number in range(2000):
            assert wrong(mutated(chance.choice(whole), chance)) == [], f"mutation {number}"


@pytest.mark.parametrize("name", [".text", ".eh_frame", ".eh_frame_hdr", ".dynamic", ".symtab", ".rodata"])
def test_random_damage_where_it_hurts(whole: list[bytes], name: str) -> None:
    section = Elf(whole[0]).section(name)
    assert section is not None
    chance = random.Random(21)
    with limited():
        for number in range(400):
            raw = chance.choice(whole)
            for _ in range(chance.choice((1, 1, 2, 4))):
                width = chance.choice((1, 1, 1, 2, 4, 8))
                at = section.offset + chance.randrange(section.size - width + 1)
                raw = changed(raw, at, chance.choice((*EXTREME, *(chance.getrandbits(64) for _ in EXTREME))), width)
            assert wrong(raw) == [], f"mutation {number}"


def test_contents_that_are_no_elf_file_at_all() -> None:
    chance = random.Random(22)
    for raw in (b"", b"\x7f", b"\x7fELF", b"#!/bin/sh\n", bytes(4096), *(chance.randbytes(200) for _ in range(50))):
        hot, cold = build(raw)
        assert (hot.watched, hot.sites, hot.chunks, cold.sites) == (0, 0, [], [])
        expected = "malformed image: " if raw[:4] == b"\x7fELF" else "no ELF image"
        ((reason, size, count),) = hot.unmonitored
        assert reason.startswith(expected)
        assert (size, count) == (len(raw), None)
