"""How long an instruction is and where control goes after it: as iced-x86 says, for all that can be written."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from iced_x86 import Decoder, FlowControl
from x86.building import CRYPTO, LIBC

from splitlock.image.elf import Elf
from splitlock.image.functions import function_ranges
from splitlock.image.scan.library import LIBRARY, library, opened

SCRIPTS = Path(__file__).parents[3] / "scripts"

# enum flow in decode.h
FLOWS = {
    FlowControl.CONDITIONAL_BRANCH: 2,
    FlowControl.UNCONDITIONAL_BRANCH: 3,
    FlowControl.CALL: 4,
    FlowControl.XBEGIN_XABORT_XEND: 5,
    FlowControl.INDIRECT_BRANCH: 6,
    FlowControl.RETURN: 7,
    FlowControl.EXCEPTION: 7,
}
ESCAPES = [b"", b"\x0f", b"\x0f\x38", b"\x0f\x3a"]
PREFIXES = [
    b"\x66", b"\xf2", b"\xf3", b"\x67", b"\xf0", b"\x48", b"\x41", b"\x44", b"\x42", b"\x4f", b"\x2e", b"\x66\xf2",
    b"\xf3\x66", b"\x66\x48", b"\xf2\x48", b"\xf3\x48", b"\x66\xf3\x4d", b"\xf0\x48", b"\x67\x48", b"\x48\x66",
    b"\xf3\x41\x2e", b"\xf0\xf2", b"\xf0\x66", b"\x67\xf0",
]  # fmt: skip
TAIL = bytes(range(1, 17))
LEGACY = bytes([0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3, *range(0x40, 0x50)])


@pytest.fixture(scope="module")
def scan() -> Iterator[int]:
    """A scan of nothing: decoding needs no image."""
    handle = opened(b"", [])
    assert handle is not None
    yield handle
    library().scan_close(handle)


Differ = Callable[[Iterator[bytes]], list[str]]


@pytest.fixture(scope="module")
def differences(scan: int) -> Differ:
    """Those byte sequences about which the two disagree, with what each says."""
    decode = library().scan_decode

    def differ(sequences: Iterator[bytes]) -> list[str]:
        found = []
        for raw in sequences:
            x = Decoder(64, raw).decode()
            expected = len(x) | FLOWS.get(x.flow_control, 1) << 8 if x else 0
            said = decode(scan, raw, len(raw))
            if said != expected:
                found.append(f"{raw.hex(' ')}: {said:#x}, not {expected:#x}")
        return found

    return differ


def test_the_tables_are_what_the_script_makes_of_iced(tmp_path: Path) -> None:
    made = tmp_path / "tables.h"
    subprocess.run([sys.executable, SCRIPTS / "scan_tables.py", made], check=True)
    assert made.read_text() == LIBRARY.with_name("tables.h").read_text()


def opcodes(prefix: bytes, forms: range = range(256)) -> Iterator[bytes]:
    """Every opcode of every map with every ModRM byte, behind some prefixes."""
    return (
        prefix + escape + bytes([opcode, form]) + TAIL for escape in ESCAPES for opcode in range(256) for form in forms
    )


def test_every_opcode_with_every_modrm(differences: Differ) -> None:
    assert differences(opcodes(b"")) == []


def test_every_opcode_with_every_prefix(differences: Differ) -> None:
    some = range(0, 256, 7)  # each of the 8 in the middle and the lower field, and the modes, many times
    assert differences(itertools.chain.from_iterable(opcodes(prefix, some) for prefix in PREFIXES)) == []


@pytest.mark.slow
@pytest.mark.parametrize("prefix", PREFIXES, ids=bytes.hex)
def test_every_opcode_with_every_modrm_and_prefix(differences: Differ, prefix: bytes) -> None:
    assert differences(opcodes(prefix)) == []


@pytest.mark.parametrize("opcode", [b"\x8b", b"\x0f\xb1", b"\x0f\x38\xf0", b"\xf7", b"\xc4\xe2\x61\x90"], ids=bytes.hex)
def test_every_sib(differences: Differ, opcode: bytes) -> None:
    forms = (mode << 6 | reg << 3 | 4 for mode in range(3) for reg in range(8))
    assert differences(opcode + bytes([form, sib]) + TAIL for form in forms for sib in range(256)) == []


def vectors() -> Iterator[bytes]:
    """Every opcode of every map of VEX and XOP, with every pp, W, L and some operands; of EVEX, of some of these."""
    forms = (0x05, 0x0C, 0x44, 0x80, 0xC0, 0xFF)
    for first, last in itertools.product((0x61, 0xE1), (0x00, 0x78, 0x7F)):
        for m, low, opcode, form in itertools.product(range(32), range(8), range(256), forms[:2]):
            yield bytes([0xC4, first & 0xE0 | m, last & 0xF8 | low, opcode, form]) + TAIL
    for second, opcode, form in itertools.product(range(256), range(256), forms):
        yield bytes([0xC5, second, opcode, form]) + TAIL
    for m, low, opcode, form in itertools.product(range(8, 12), range(8), range(256), forms):
        yield bytes([0x8F, 0xE0 | m, 0x78 | low, opcode, form]) + TAIL
    for m, low, rest, opcode in itertools.product(range(8), (4, 5, 6, 7, 0x84, 0x85), (0x08, 0x48, 0xDF), range(256)):
        for form in forms:
            yield bytes([0x62, 0xF0 | m, 0x78 | low, rest, opcode, form]) + TAIL


def test_vector_instructions(differences: Differ) -> None:
    assert differences(vectors()) == []


def test_what_is_remembered_of_one_instruction_is_not_said_of_another(differences: Differ) -> None:
    # vpaddb with a short and with a long VEX prefix; only with pp = 66h it is one. With ModRM, SIB and map alike.
    assert differences(bytes.fromhex(raw) + TAIL for raw in ("c5e1fcc0", "c4e100fcc0", "c5e1fcc0", "c4e101fcc0")) == []


def test_immediates_and_displacements_do_not_decide(differences: Differ) -> None:
    # so the answer for one holds for all: decode.c remembers it without them
    every = itertools.product((1, 2, 3), range(8), range(256), (0x80, 0xC0), (b"\0", b"\xff", b"\x5a", b"\x0f"))
    sequences = (bytes([0xC4, 0xE0 | m, 0x78 | low, opcode, form]) + tail * 11 for m, low, opcode, form, tail in every)
    assert differences(sequences) == []


def chance(seed: int, rounds: int) -> Iterator[bytes]:
    """Bytes drawn: behind escapes of vector instructions, behind many prefixes, cut short."""
    random = Random(seed)
    for _ in range(rounds):
        yield random.randbytes(16)
        yield random.choice((b"\xc4", b"\xc5", b"\x62", b"\x8f", b"\x0f\x0f")) + random.randbytes(16)
        yield random.randbytes(random.randrange(9))
        yield bytes(random.choices(LEGACY, k=random.randrange(1, 16))) + random.randbytes(random.randrange(16))


def test_chance_bytes(differences: Differ) -> None:
    assert differences(chance(1, 50_000)) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 10))
def test_more_chance_bytes(differences: Differ, seed: int) -> None:
    assert differences(chance(seed, 500_000)) == []


@pytest.mark.parametrize("path", [LIBC, CRYPTO], ids=lambda path: path.name)
def test_libraries(differences: Differ, path: Path) -> None:
    elf = Elf(path.read_bytes())

    def instructions() -> Iterator[bytes]:
        for start, end in function_ranges(elf):
            code = elf.read(start, end - start)
            for x in Decoder(64, code, ip=start):
                if not x:
                    break
                yield code[x.ip - start : x.ip - start + 15]

    assert differences(instructions()) == []
