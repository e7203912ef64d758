"""The gate's decoder, as built for user space, against iced-x86."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from guard.native import SOURCES, Native, native
from hypothesis import given, settings
from hypothesis import strategies as st
from iced_x86 import Code, Decoder
from modules.debian import ROOT

from splitlock.image.module import KernelImage
from splitlock.x86.privileged import classify

# Code of many hands, with every instruction set: whatever of it is installed.
LIBRARIES = ("libc.so.6", "libcrypto.so.3", "libgcrypt.so.20", "libm.so.6", "libstdc++.so.6")
SEED = 816918
PREFIXES = [b"\x66", b"\xf2", b"\xf3", b"\x67", b"\xf0", b"\x2e", b"\x64", b"\x36"]
ESCAPES = [b"", b"", b"\x0f", b"\x0f", b"\x0f\x38", b"\x0f\x3a", b"\xc4", b"\xc5", b"\x62", b"\x8f", b"\xd5"]
NEAR = [bytes([0x0F, opcode]) for opcode in range(0x80, 0x90)]  # Jcc
GETSECQ = Code.GETSECQ  # the scanner's classify() does not know it; the gate takes it for GETSEC


@pytest.fixture(scope="module")
def gate() -> Native:
    return native()


def vendors_differ(raw: bytes) -> bool:
    """Is it a branch with 66h, which AMD's processors end two bytes earlier? The gate takes it for no instruction."""
    short, rex = False, 0
    for at, byte in enumerate(raw):
        if byte in b"\x66\xf2\xf3\x67\xf0\x26\x2e\x36\x3e\x64\x65":
            short, rex = short or byte == 0x66, 0  # REX counts as the last prefix only
        elif 0x40 <= byte <= 0x4F:
            rex = byte
        else:
            branch = byte in (0xE8, 0xE9) or raw[at : at + 2] in NEAR
            return short and not rex & 8 and branch
    return False


def compare(gate: Native, raw: bytes) -> str | None:
    """How the gate's decoder differs from iced-x86, None where it does not. What it takes for none may be one."""
    instruction = Decoder(64, raw).decode()
    length, kind = gate.decode(raw)
    assert 0 <= length <= 15
    if not instruction:
        return None
    if vendors_differ(raw):
        return None if length == 0 else f"{raw.hex()}: {instruction}, {length} bytes, is no instruction everywhere"
    wanted = "GETSEC" if instruction.code == GETSECQ else classify(instruction)
    if (length, kind) == (instruction.len, wanted):
        return None
    return f"{raw.hex()}: {instruction}: {instruction.len} bytes, {wanted}; the gate: {length}, {kind}"


def made_up(chance: random.Random) -> bytes:
    raw = b"".join(chance.choice(PREFIXES) for _ in range(max(0, chance.randrange(-3, 4))))
    if chance.random() < 0.4:
        raw += bytes([0x40 | chance.randrange(16)])
    return (raw + chance.choice(ESCAPES) + chance.randbytes(16))[:16]


def test_made_up_instructions(gate: Native) -> None:
    chance = random.Random(SEED)
    differences = [said for _ in range(150_000) if (said := compare(gate, made_up(chance)))]
    assert not differences


@settings(max_examples=2000, deadline=None)
@given(st.binary(min_size=1, max_size=24))
def test_any_bytes(raw: bytes) -> None:
    gate = native()
    length, _ = gate.decode(raw)
    if length <= len(raw):  # else it needs more than there is: the sweep says so
        assert compare(gate, raw[:16].ljust(16, b"\0")) is None
    starts, end = gate.boundaries(raw)
    assert end <= len(raw)
    assert starts.count(1) <= end


def test_every_opcode(gate: Native) -> None:
    """All opcodes of all maps, with each prefix that selects one, over all ModRM bytes."""
    tails = [bytes([modrm, sib]) + bytes(9) for modrm in range(256) for sib in (0, 0x25)]
    differences = []
    for prefix in (b"", b"\x66", b"\xf3", b"\xf2", b"\x48", b"\x66\x48", b"\xf3\x4c", b"\x67"):
        for escape in (b"", b"\x0f"):
            for opcode in range(256):
                differences += [
                    said for tail in tails[:: 1 if escape else 7]
                    if (said := compare(gate, (prefix + escape + bytes([opcode]) + tail)[:16]))
                ]  # fmt: skip
    assert not differences


def test_short_way_says_what_the_long_one_says(gate: Native) -> None:
    """Lengths, kinds and flags of all that the short way can decode, and of what it must leave alone."""
    tails = [bytes([modrm, sib]) + bytes(range(1, 13)) for modrm in range(256) for sib in (0, 0x25)]
    for prefix in (b"", b"\x48", b"\x41", b"\x66", b"\x48\x48", b"\xf3"):
        for escape in (b"", b"\x0f"):
            for opcode in range(256):
                raws = [(prefix + escape + bytes([opcode]) + tail)[:16] for tail in tails]
                assert all(map(gate.decodes_alike, raws)), f"{prefix.hex()} {escape.hex()} {opcode:02x}"
    chance = random.Random(SEED)
    assert all(gate.decodes_alike(made_up(chance)) for _ in range(100_000))


def libraries() -> Iterator[Path]:
    for name in LIBRARIES:
        path = Path("/lib/x86_64-linux-gnu") / name
        if path.exists():
            yield path.resolve()


def disagreements(gate: Native, image: KernelImage) -> tuple[int, list[str]]:
    """How many instructions a file has, and where the gate's sweep takes other bytes for one."""
    count, differences = 0, []
    for code in image.code:
        data = code.data
        starts, _ = gate.boundaries(data)
        known = 0
        for instruction in Decoder(64, data):
            at = instruction.ip
            if not instruction:  # data in between: what follows is compared one by one
                known = -1
            elif known < 0:
                said = compare(gate, data[at : at + 16].ljust(16, b"\0"))
                if said:
                    differences.append(f"{code.section}+{at:#x}: {said}")
            elif not starts[at]:
                differences.append(f"{code.section}+{at:#x}: {instruction} is no boundary")
                known = -1
            else:
                known += 1
                if starts.find(1, at + 1, at + instruction.len) >= 0:
                    differences.append(f"{code.section}+{at:#x}: {instruction} is split")
            count += 1
    return count, differences


def test_boundaries_in_what_is_installed(gate: Native) -> None:
    paths = list(libraries())
    assert paths
    total = 0
    for path in paths[:3]:
        count, differences = disagreements(gate, KernelImage(path.read_bytes()))
        assert not differences, path
        total += count
    assert total > 300_000


@pytest.mark.slow
@pytest.mark.parametrize("path", list(libraries())[3:], ids=lambda path: path.name)
def test_boundaries_in_large_libraries(gate: Native, path: Path) -> None:
    assert not disagreements(gate, KernelImage(path.read_bytes()))[1]


def test_tables_are_those_of_the_generator() -> None:
    spec = importlib.util.spec_from_file_location("guard_tables", ROOT / "scripts" / "guard_tables.py")
    assert spec
    assert spec.loader
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert (SOURCES / "tables.h").read_text() == generator.generate()
