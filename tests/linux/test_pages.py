"""What lies in a range: held against /proc/self/maps, and against what the test has done to the memory itself."""

from __future__ import annotations

import mmap
import os
import random
import tempfile
from collections.abc import Iterator
from ctypes import addressof, c_char

import pytest

from splitlock.linux import pages
from splitlock.linux.pages import all_written, mappings_within
from splitlock.linux.proc import Mapping, mappings

PAGE = 4096


def _at(memory: mmap.mmap) -> int:
    return addressof(c_char.from_buffer(memory))


def _values(found: list[Mapping]) -> list[tuple[object, ...]]:
    return [(m.start, m.end, m.permissions, m.offset, m.inode, m.path) for m in found]


@pytest.fixture(params=["as-this-kernel", "before-6.11"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With PROCMAP_QUERY where the kernel has it, and without: an ioctl(2) that no file knows."""
    if request.param == "before-6.11":
        monkeypatch.setattr(pages, "_QUERY", 0x5401_66FF)


@pytest.mark.usefixtures("kernel")
def test_mappings_within_are_those_of_maps() -> None:
    chance = random.Random(19)
    pid = os.getpid()
    every = mappings(pid)
    ranges = [(m.start, m.end) for m in every if not m.path.startswith("[vsyscall")]
    for _ in range(60):
        low, high = sorted((chance.choice(chance.choice(ranges)), chance.choice(chance.choice(ranges))))
        ranges.append((max(0, low - chance.randrange(3 * PAGE)), low + chance.randrange(1, 9 * PAGE)))
        ranges.append((low, high))
    compared = 0
    for low, high in ranges:
        found = _values(mappings_within(pid, low, high))
        now = _values([m for m in mappings(pid) if m.start < high and low < m.end and "[vsys" not in m.path])
        if _values(every) == _values(mappings(pid)):
            assert found == now, (hex(low), hex(high))
            compared += 1
        every = mappings(pid)
    assert compared > 40
    assert mappings_within(pid, 0, PAGE) == []


@pytest.fixture
def file() -> Iterator[int]:
    """A file of 8 pages."""
    with tempfile.TemporaryFile() as made:
        made.write(bytes(8 * PAGE))
        made.flush()
        yield made.fileno()


@pytest.mark.parametrize("touched", [0, 3, 8])
@pytest.mark.parametrize("kind", ["private", "private-file", "shared", "shared-file"])
def test_written_is_what_was_written(kind: str, touched: int, file: int) -> None:
    flags = mmap.MAP_PRIVATE if "private" in kind else mmap.MAP_SHARED
    where = file if "file" in kind else -1
    with mmap.mmap(where, 8 * PAGE, flags if "file" in kind else flags | mmap.MAP_ANONYMOUS) as memory:
        for page in range(touched):
            memory[page * PAGE] = 1
        at = _at(memory)
        pid = os.getpid()
        assert all_written(pid, at, 8 * PAGE) == ("private" in kind and touched == 8)
        if touched:
            assert all_written(pid, at, touched * PAGE) == ("private" in kind)
            assert all_written(pid, at, touched * PAGE - 17) == ("private" in kind)
        if touched < 8:
            assert not all_written(pid, at + touched * PAGE, PAGE)


def test_what_is_read_from_a_file_is_not_written(file: int) -> None:
    with mmap.mmap(file, 8 * PAGE, mmap.MAP_PRIVATE) as memory:
        assert memory[0] == memory[5 * PAGE] == 0
        assert not all_written(os.getpid(), _at(memory), PAGE)


def test_ranges_that_are_none() -> None:
    pid = os.getpid()
    for start, size in ((0, PAGE), (0, 0), (1 << 46, PAGE), (1 << 63, PAGE), (PAGE, 1 << 40), ((1 << 47) - PAGE, 8192)):
        assert not all_written(pid, start, size)


def test_a_process_that_is_gone() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(OSError, match="No such"):
        all_written(pid, PAGE, PAGE)
    with pytest.raises(OSError, match="No such"):
        mappings_within(pid, 0, PAGE)
