"""The plugin's own answer to "is it locked?" against iced-x86's, on millions of byte strings, in all three modes."""

from __future__ import annotations

import ctypes
import random
import subprocess
from pathlib import Path

import pytest
from iced_x86 import Decoder, Mnemonic

from splitlock.x86.locked import split_size

HEADER = Path(__file__).parents[2] / "src" / "splitlock" / "guest" / "plugin" / "locked.h"
_SHIM = """#include "{header}"
unsigned size_of(const uint8_t *code, size_t length, int *neg)
{{
    bool is_neg = false;
    unsigned size = locked_size(code, length, &is_neg);
    *neg = is_neg;
    return size;
}}
"""
_PREFIXES = b"\xf0\xf0\xf0\x66\x67\xf2\xf3\x26\x2e\x36\x3e\x64\x65\x40\x41\x48\x4f"


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The header, callable."""
    place = tmp_path_factory.mktemp("shim")
    (place / "shim.c").write_text(_SHIM.format(header=HEADER))
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", place / "shim.so", place / "shim.c"], check=True)
    return ctypes.CDLL(str(place / "shim.so"))


def _strings(count: int) -> list[bytes]:
    """Every opcode of one and of two bytes behind prefixes, with every ModRM byte first of all; then at random."""
    chance = random.Random(1)
    tail = bytes(range(16))
    found = [
        bytes([0xF0, *escape, opcode, modrm]) + tail
        for escape in ([], [0x0F])
        for opcode in range(256)
        for modrm in range(256)
    ]
    for _ in range(count):
        prefixes = bytes(chance.choices(_PREFIXES, k=chance.randrange(5)))
        found.append(prefixes + (b"\x0f" if chance.random() < 0.5 else b"") + chance.randbytes(16))
    return found


@pytest.mark.parametrize("mode", [16, 32, 64])
def test_agrees_with_iced(shim: ctypes.CDLL, mode: int) -> None:
    """Whatever is an instruction at all, QEMU gives its length."""
    neg = ctypes.c_int()
    locked = 0
    for code in _strings(300_000):
        instruction = Decoder(mode, code).decode()
        if instruction.is_invalid:
            continue
        length = instruction.len
        size = split_size(instruction)
        ours = shim.size_of(code, ctypes.c_size_t(length), ctypes.byref(neg))
        assert bool(ours) == bool(size), (code[:length].hex(" "), instruction)
        if size:
            locked += 1
            assert (ours == 8) == (instruction.mnemonic == Mnemonic.CMPXCHG8B), code[:length].hex(" ")
            assert bool(neg.value) == (instruction.mnemonic == Mnemonic.NEG), code[:length].hex(" ")
    assert locked > 3000
