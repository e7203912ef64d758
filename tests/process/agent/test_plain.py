"""What the agent itself finds plain: nothing that Python, asked about the same file, would patch or name."""

from __future__ import annotations

import ctypes
import random
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Run
from process.agent.conftest import Compiled, Executed

from splitlock.process.agent.image import make
from splitlock.x86.patterns import CANDIDATE

Plain = Callable[[bytes], int]
_BEYOND = 16
_LARGEST = 128 << 10


@pytest.fixture(scope="module")
def plain(compiled: Compiled) -> Plain:
    """`plain(file)`: the bytes of its code, or 0."""
    library = ctypes.CDLL(str(compiled("plain.so", "-ffreestanding")))
    library.asked.restype = ctypes.c_uint64

    def ask(file: bytes) -> int:
        return int(library.asked(file + bytes(_BEYOND), ctypes.c_uint64(len(file))))

    return ask


def of_code(code: bytes) -> bytes:
    """An ELF file with nothing but this code."""
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 3, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return header + struct.pack("<IIQQQQQQ", 1, 5, 120, 0x1000, 0, len(code), len(code), 4096) + code


def test_what_is_installed(plain: Plain) -> None:
    files = [*Path("/usr/bin").iterdir(), *Path("/usr/lib/x86_64-linux-gnu").glob("**/*.so*")]
    small = sorted({file.resolve() for file in files if file.is_file() and 0 < file.stat().st_size <= _LARGEST})
    found = 0
    for file in small:
        data = file.read_bytes()
        if data[:4] == b"\x7fELF" and (size := plain(data)):
            found += 1
            named = make(data, (0,) * 5)[1]
            assert (named.watched, named.unwatched, named.size) == (0, [], size), file
    assert found > 50, "which files are here?"


@pytest.mark.parametrize("seed", range(20))
def test_no_locked_instruction_is_plain(plain: Plain, seed: int) -> None:
    """Random bytes, many of them such as locked instructions and calls have, and what Python's patterns find there."""
    rng = random.Random(seed)
    held = (
        b"\xf0\xf2\xf3\x66\x67\x26\x2e\x36\x3e\x64\x65\x48\x4f\x0f\xcd\x80\x05\x86\x87\x01\xb1\xc1\xff\xba\xab\xc7\x83"
    )
    plains = 0
    for _ in range(20_000):
        common = rng.random()
        code = bytes(
            rng.choice(held) if rng.random() < common else rng.randrange(256) for _ in range(rng.randrange(1, 12))
        )
        matters = CANDIDATE.search(code) or b"\x0f\x05" in code or b"\xcd\x80" in code
        size = plain(of_code(code))
        assert not (size and matters), code.hex()
        plains += size == len(code)
    assert plains > 1000


def test_each_lockable_instruction(plain: Plain, forms: dict[str, Path]) -> None:
    """One at a time, from the programs that have them all."""
    found = 0
    for file in forms.values():
        data = file.read_bytes()
        for match in CANDIDATE.finditer(data):
            found += 1
            assert not plain(of_code(b"\x90" + match[0] + bytes(9))), match[0].hex()
    assert found > 100


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files(plain: Plain, seed: int) -> None:
    """What does not hold together is not plain, or is so as Python finds it; nothing outside of the file is read."""
    rng = random.Random(seed)
    whole = Path("/usr/bin/true").read_bytes()
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(0x400) if rng.random() < 0.8 else rng.randrange(len(data))
            data[at] = rng.choice((0, 1, 0x7F, 0xFF, rng.randrange(256)))
        data = data[: rng.choice((len(data), rng.randrange(len(data)), rng.randrange(0x400)))]
        if size := plain(bytes(data)):
            named = make(bytes(data), (0,) * 5)[1]
            if any(u.reason.startswith("malformed image") for u in named.unwatched):
                continue  # its sections, say, for which the code's bytes need not be asked
            assert (named.watched, named.unwatched, named.size) == (0, [], size)


def test_text_relocations_are_not_plain(plain: Plain, tmp_path: Path) -> None:
    source = tmp_path / "moved.c"
    source.write_text("extern int there; long f(void) { return (long)&there; }\n")
    words = ["gcc", "-shared", "-fno-pic", "-mcmodel=large", "-O1", "-nostdlib", "-Wl,-z,notext", "-o"]
    subprocess.run([*words, tmp_path / "moved.so", source], check=True, capture_output=True)
    data = (tmp_path / "moved.so").read_bytes()
    assert "text relocations" in make(data, (0,) * 5)[1].unwatched[0].reason
    assert not plain(data)


def test_a_new_program_takes_no_python(executed: Executed, tmp_path: Path) -> None:
    """As `configure` makes hundreds: compiled, executed, gone."""
    (tmp_path / "new.c").write_text("int main(void) { return 3; }\n")
    subprocess.run(["gcc", "-O1", "-o", tmp_path / "new", tmp_path / "new.c"], check=True)
    assert executed(tmp_path / "new") == ["splitlock", "new", "3"]


def test_it_is_in_the_report_when_it_is_gone(watch: Callable[..., Run], plain: Plain, tmp_path: Path) -> None:
    (tmp_path / "new.c").write_text("int main(void) { return 3; }\n")
    subprocess.run(["gcc", "-O1", "-o", tmp_path / "new", tmp_path / "new.c"], check=True)
    size = plain((tmp_path / "new").read_bytes())
    assert size
    remove = f"rm -f {tmp_path}/new"
    with_it, without = (watch(["sh", "-c", script]).report for script in (f"{tmp_path}/new; {remove}", remove))
    assert with_it["unmonitored"] == []
    assert with_it["watched"]["images"] == without["watched"]["images"] + 1
    assert with_it["watched"]["bytes"] == without["watched"]["bytes"] + size
