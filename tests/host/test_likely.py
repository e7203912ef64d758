"""With a file and no base: all that an address may mean, by its last digits. The oracle is objdump."""

from __future__ import annotations

import re
import struct
import subprocess
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import pytest

from splitlock._errors import SplitlockError
from splitlock.host.explain.based import Based
from splitlock.host.explain.likely import likely
from splitlock.host.explain.line import explain
from splitlock.linux.log import lines

_LIBC = "/lib/x86_64-linux-gnu/libc.so.6"


@pytest.mark.parametrize("exception", ["#AC", "#DB"])
def test_over_a_whole_libc(exception: str) -> None:
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", "-j", ".text", _LIBC], capture_output=True, text=True, check=True
    ).stdout
    found = [(int(m[1], 16), m[2]) for m in re.finditer(r"^ *([0-9a-f]+):\t(.*)$", listing, re.M)]
    expected = defaultdict(set)
    for (at, text), (after, _) in pairwise(found):
        # a byte cannot split a line, but #DB is for memory that is not write-back, too
        if re.match(r"lock " if exception == "#DB" else r"lock (?!\w+b )", text):
            expected[(at if exception == "#AC" else after) & 0xFFF].add(at)
    exchanges = {at for at, text in found if re.match(r"xchg .*\(", text)}
    image = Based(_LIBC).image
    wrong = 0
    for ends, places in [*expected.items()][::4]:
        told = set(likely(image, 0x7F1234567000 + ends, exception))
        assert places <= told, hex(ends)
        wrong += len(told - places - exchanges)
    assert len(expected) > 300
    assert wrong <= len(expected) // 200


def test_the_words(tmp_path: Path) -> None:
    source = Path(__file__).parents[1] / "programs" / "demo.c"
    subprocess.run(["gcc", "-O2", "-g", "-pthread", "-o", tmp_path / "demo", source], check=True)
    listing = subprocess.run(["objdump", "-d", tmp_path / "demo"], capture_output=True, text=True, check=True).stdout
    at = int(next(line for line in listing.splitlines() if "lock add" in line).split(":")[0], 16)
    for address, words in (
        (
            0x55D0C42C0000 + at,
            f"bump (demo.c:23, {at:#x}): by its last digits, {at & 0xFFF:x}. To be sure give `--base`",
        ),
        (0x55D0C42C0000 + at + 1, f"no locked instruction in it has an address that ends in {at + 1 & 0xFFF:x}"),
    ):
        (line,) = lines(f"#AC: demo/12 took a split_lock trap at address: {address:#x}")
        event = explain(line, Based(str(tmp_path / "demo"), None, line))
        assert (event.cause, event.place) == ("outside", None)
        assert words in event.note


def _head(bits: int, number: int) -> bytes:
    """An ELF header, and program headers that load the whole file, at places that overlap."""
    size, step = 0xC0000, 0 if number > 256 else 0x1000
    if bits == 32:
        head = struct.pack("<16sHHIIIIIHHHHHH", b"\x7fELF\1\1\1", 3, 3, 1, 0, 52, 0, 0, 52, 32, number, 40, 0, 0)
        loads = (struct.pack("<8I", 1, 0, at * step, 0, 0xFFFFF000, 0xFFFFF000, 5, 4096) for at in range(number))
    else:
        head = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 3, 62, 1, 0, 64, 0, 0, 64, 56, number, 64, 0, 0)
        loads = (struct.pack("<IIQQQQQQ", 1, 5, 0, at * step, 0, size, size, 4096) for at in range(number))
    return head + b"".join(loads)


@pytest.mark.parametrize("bits", [32, 64])
def test_a_hostile_file_takes_no_time(tmp_path: Path, bits: int) -> None:
    """Many segments, each as large as the file: whatever they hold, it is told within seconds. More are refused."""
    (tmp_path / "demo").write_bytes(_head(bits, 60_000) + b"\xf0\xff\x00" * 300_000)
    with pytest.raises(SplitlockError, match="neither ELF nor PE"):
        Based(str(tmp_path / "demo"))
    (tmp_path / "demo").write_bytes(_head(bits, 256) + b"\xf0\xff\x00" * 300_000)
    for text in (
        "#AC: demo/12 took a split_lock trap at address: 0x55d0c42c5260",
        "#DB: demo/12 took a bus_lock trap at address: 0x55d0c42c5260",
        "traps: demo[12] trap alignment check ip:55d0c42c5260 sp:7ff error:0 in demo[55d0c42c5000+1000]",
    ):
        (line,) = lines(text)
        before = time.monotonic()
        event = explain(line, Based(str(tmp_path / "demo"), None, line))
        assert event.place is None
        assert time.monotonic() - before < 30
