"""What the C library finds in images, held against iced-x86 and regular expressions (plain.py); and bad files."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
from image.scan.plain import PlainScan
from image.test_elf import without_sections
from x86.building import CRYPTO, LIBC, LIBSTDCXX, LOADER, PYTHON, function, link, symbols

from splitlock._errors import ImageError, SplitlockError
from splitlock.image.elf import Elf
from splitlock.image.scan import library as binding
from splitlock.image.scan.scan import Scan
from splitlock.process import functions
from splitlock.process.plan import build

SOURCES = Path(binding.__file__).parent
NEIGHBOURS = 6  # instructions on either side of a site


@dataclass(frozen=True)
class Both:
    """An image, scanned in both ways."""

    scan: Scan
    plain: PlainScan


TABLES = """
    lea rax, [rip+table]; lea rcx, [rip+odd]; jmp rax; lock inc dword ptr [rdi]
    .balign 4, 0x90; table: .long target-table, target-table
    .byte 0; odd: .long other-odd, other-odd
    target: lock inc dword ptr [rdi]; other: xchg [rdi], eax; ret
"""


def test_tables_within_code(tmp_path: Path) -> None:
    path = link(tmp_path, function("f", TABLES))
    elf, at = Elf(path.read_bytes()), symbols(path)
    every = set(range(at["f"], at["other"] + 3))
    found = []
    for scan in (Scan(elf), PlainScan(elf)):
        scan.name()
        found.append((scan.into(every, set()), scan.leading_to(every)))
    assert found[0] == found[1]
    assert found[0][0] >= {at["target"], at["table"], at["odd"]}
    assert at["target"] in found[0][1]
    assert at["other"] not in found[0][1]  # compilers align their tables


@pytest.mark.parametrize("base", [0x10000, 0x5_0000_0000], ids=hex)
def test_a_label_computed_in_32_bits(tmp_path: Path, base: int) -> None:
    path = link(tmp_path, function("f", "lea rax, [eip+label]; label: jmp rax"), f"-Wl,-Ttext-segment={base:#x}")
    elf = Elf(path.read_bytes())
    shapes = [scan.shape(0, 0, [symbols(path)["f"]]) for scan in (Scan(elf), PlainScan(elf))]
    assert shapes[0] == shapes[1]
    assert shapes[0].labels == (base < 1 << 32)


def test_more_sites_than_are_fetched_at_a_time(tmp_path: Path) -> None:
    elf = Elf(link(tmp_path, function("f", ".rept 10000; lock inc dword ptr [rdi]; .endr; ret")).read_bytes())
    scan = Scan(elf)
    addresses = [address for found in scan.locked(scan.candidates()[0]) for address in found.addresses]
    assert addresses == [scan.starts[0] + 3 * i for i in range(10000)]


@pytest.fixture(scope="module", params=[LIBC, LIBSTDCXX, LOADER, CRYPTO, PYTHON], ids=lambda path: path.name)
def both(request: pytest.FixtureRequest) -> Both:
    """An installed library or program."""
    elf = Elf(request.param.read_bytes())
    return Both(Scan(elf), PlainScan(elf))


def test_functions(both: Both) -> None:
    assert len(both.plain.starts) > 100
    assert both.scan.starts == both.plain.starts
    assert both.scan.ends == both.plain.ends
    assert both.scan.handler_starts() == both.plain.handler_starts()


def test_locked_instructions(both: Both) -> None:
    marks, outside = both.scan.candidates()
    assert (marks, outside) == both.plain.candidates()
    found = {(f.function, address) for f in both.scan.locked(marks) for address in f.addresses}
    assert found == {(f.function, address) for f in both.plain.locked(marks) for address in f.addresses}
    assert len(found) > 10
    stops = {f.function: f.stopped for f in both.scan.locked(marks) if f.stopped is not None}
    assert stops == {f.function: f.stopped for f in both.plain.locked(marks) if f.stopped is not None}


def near(offsets: list[int], site: int, end: int) -> tuple[int, int]:
    """The bytes of a function that a run around a site could take up."""
    at = offsets.index(site)
    last = at + NEIGHBOURS + 1
    return offsets[max(0, at - NEIGHBOURS)], offsets[last] if last < len(offsets) else end


def test_shapes_of_functions(both: Both) -> None:
    random = Random(1)
    marks, _ = both.plain.candidates()
    for found in both.plain.locked(marks):
        code = both.plain.instructions(found.function)
        sites = found.addresses or [x.ip for x in random.sample(code, min(len(code), 2))]
        start, end, padding = both.plain.starts[found.function], both.plain.ends[found.function], random.randrange(64)
        ours, theirs = (each.shape(found.function, padding, sites) for each in (both.scan, both.plain))
        windows = [near(list(theirs.offsets), site - start, end + padding - start) for site in sites]
        expected = {b for b in theirs.branches if any(low <= b[0] - start < high for low, high in windows)}
        assert set(ours.branches) == expected
        assert ours._replace(branches=[]) == theirs._replace(branches=[])
        assert both.scan.unreached(found.function) == both.plain.unreached(found.function)


def test_ways_in(both: Both) -> None:
    random = Random(2)
    both.scan.name()
    both.plain.name()
    chosen = random.sample(range(len(both.plain.starts)), min(len(both.plain.starts), 1500))
    inside = [x.ip for number in chosen for x in both.plain.instructions(number)[1:]]
    instructions = set(random.sample(inside, min(len(inside), 3000)))
    between = {address + 1 for address in random.sample(inside, min(len(inside), 1000))} - instructions
    entered = both.plain.into(instructions, between)
    assert both.scan.into(instructions, between) == entered != set()
    assert both.scan.leading_to(instructions) == both.plain.leading_to(instructions)


# -- plans ------------------------------------------------------------------------------------------


def same_plan(raw: bytes, monkeypatch: pytest.MonkeyPatch) -> int:
    """Number of sites of an image, after making its plan in both ways."""
    hot, cold = build(raw)
    with monkeypatch.context() as patch:
        patch.setattr(functions, "Scan", PlainScan)
        plainly, slowly = build(raw)
    assert hot.values() == plainly.values()
    assert cold.values() == slowly.values()
    return hot.sites


INSTALLED = [
    LIBC, LIBSTDCXX, LOADER, CRYPTO, PYTHON,
    *(Path("/usr/bin", name) for name in ("bash", "git", "perl", "xz", "gdb", "openssl", "kmod")),
]  # fmt: skip


@pytest.mark.parametrize("path", INSTALLED, ids=lambda path: path.name)
def test_plans(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sites = same_plan(path.read_bytes(), monkeypatch)
    assert sites or path not in INSTALLED[:5]


def test_plans_of_a_file_without_section_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert same_plan(without_sections(LIBC.read_bytes()), monkeypatch)


def installed(*places: str) -> Iterator[Path]:
    """Programs and libraries for this machine, each once."""
    seen = set()
    for path in itertools.chain.from_iterable(Path(place).rglob("*") for place in places):
        if path.is_file() and not path.is_symlink() and path.stat().st_ino not in seen:
            seen.add(path.stat().st_ino)
            with path.open("rb") as file:
                head = file.read(20)
            if head[:5] == b"\x7fELF\x02" and head[16] in (2, 3) and head[18] == 62:
                yield path


@pytest.mark.slow
@pytest.mark.parametrize("place", ["/usr/lib/x86_64-linux-gnu", "/usr/bin", "/usr/sbin", "/usr/lib/jvm"])
def test_plans_of_all_that_is_installed(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sites = {path: same_plan(path.read_bytes(), monkeypatch) for path in installed(place)}
    assert sum(1 for count in sites.values() if count) > (0 if place == "/usr/sbin" else 3), sites


# -- bad files, bad builds --------------------------------------------------------------------------


def test_too_many_segments_are_an_error(tmp_path: Path) -> None:
    raw = bytearray(link(tmp_path, function("f", "lock inc dword ptr [rdi]; ret")).read_bytes())
    count, at = int.from_bytes(raw[56:58], "little"), int.from_bytes(raw[32:40], "little")
    headers = [raw[at + 56 * i : at + 56 * (i + 1)] for i in range(count)]
    code = next(header for header in headers if header[:8] == bytes((1, 0, 0, 0, 5, 0, 0, 0)))
    raw[32:40] = len(raw).to_bytes(8, "little")
    raw[56:58] = (65).to_bytes(2, "little")
    with pytest.raises(ImageError, match="65 loaded segments"):
        Scan(Elf(bytes(raw + code * 65)))
    hot, _ = build(bytes(raw + code * 65))
    ((reason, _, _),) = hot.unmonitored
    assert reason == "malformed image: 65 loaded segments, too many or too large to scan"


def test_segments_over_one_another_are_an_error() -> None:
    raw = bytearray(LOADER.read_bytes())
    at = int.from_bytes(raw[32:40], "little")
    assert raw[at : at + 8] == bytes((1, 0, 0, 0, 4, 0, 0, 0))  # the first is loaded, and no code
    raw[at + 16 : at + 24] = next(s.vaddr + 16 for s in Elf(bytes(raw)).executable()).to_bytes(8, "little")
    with pytest.raises(ImageError, match="over one another"):
        Scan(Elf(bytes(raw)))


def test_segments_over_one_another_can_be_too_large() -> None:
    size = 1 << 26
    segments = [binding.Segment(size * i, 0, size, True) for i in range(64)]
    assert binding.opened(bytes(size), segments) is None
    handle = binding.opened(bytes(size), segments[1:])
    assert handle is not None
    binding.library().scan_close(handle)


def test_a_package_that_was_not_built_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binding, "LIBRARY", tmp_path / "libscan.so")
    with pytest.raises(SplitlockError, match="not built; install splitlock from a wheel"):
        binding.library.__wrapped__()


def fuzz(directory: Path, seed: int, rounds: int) -> None:
    """Build the library so that it stops at the first step out of bounds, and give it `rounds` bad files."""
    program = directory / "fuzz"
    command = ["gcc", "-std=c11", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-I"]
    fuzzer = Path(__file__).with_name("fuzz.c")
    subprocess.run([*command, SOURCES, *SOURCES.glob("*.c"), fuzzer, "-o", program], check=True)
    pieces = []
    for path in (CRYPTO, LIBC, LIBSTDCXX):
        elf = Elf(path.read_bytes())
        for name in (".eh_frame", ".text"):
            section = elf.section(name)
            assert section is not None
            pieces.append(directory / f"{path.name}{name}")
            pieces[-1].write_bytes(elf.data[section.offset : section.offset + section.size])
    subprocess.run([program, str(seed), str(rounds), pieces[0], *pieces[1::2]], check=True)


def test_bad_files(tmp_path: Path) -> None:
    fuzz(tmp_path, 1, 4000)


@pytest.mark.slow
def test_more_bad_files(tmp_path: Path) -> None:
    fuzz(tmp_path, int.from_bytes(os.urandom(3), "little"), 200_000)
