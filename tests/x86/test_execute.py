"""What we say a locked instruction does is what this processor does: on an aligned operand, so that nothing splits."""

from __future__ import annotations

import ctypes
import mmap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from iced_x86 import Decoder, Mnemonic

from splitlock.x86.execute import execute
from splitlock.x86.locked import split_size

_STATUS, _CF, _AF = 0x8D5, 1, 0x10
_AT = 5  # the operand's place in the words at RDI: RAX, RCX, RDX, RBX, flags
_BEFORE = "53 488b07 488b4f08 488b5710 488b5f18 ff7720 9d"  # push rbx; load the registers; flags by popf
_AFTER = "9c 8f4720 488907 48894f08 48895710 48895f18 5b c3"


def _forms() -> list[bytes]:
    """Each instruction with operands of 2, 4 and 8 bytes; registers are RCX and RBX, immediates -3 and 37."""
    found = []
    for prefix in (b"\x66\xf0", b"\xf0", b"\xf0\x48"):
        modrm = {number: bytes([0x47 | number << 3, 0x28]) for number in range(8)}
        found += [prefix + bytes([8 * group + 1]) + modrm[1] for group in range(7)]  # add or adc sbb and sub xor, rcx
        found += [prefix + b"\x83" + modrm[group] + b"\xfd" for group in range(7)]
        found += [prefix + b"\xf7" + modrm[group] for group in (2, 3)]  # not neg
        found += [prefix + b"\xff" + modrm[group] for group in (0, 1)]  # inc dec
        found += [prefix + b"\x87" + modrm[3]]  # xchg
        found += [prefix + b"\x0f" + bytes([code]) + modrm[3] for code in (0xC1, 0xB1, 0xAB, 0xB3, 0xBB)]
        found += [prefix + b"\x0f\xba" + modrm[group] + b"\x25" for group in (5, 6, 7)]
    return [*found, b"\xf0\x0f\xc7\x4f\x28"]  # cmpxchg8b


@pytest.fixture(scope="module")
def code() -> mmap.mmap:
    """Memory for a function."""
    return mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)


_WORD = st.one_of(st.sampled_from([0, 1, 2**15, 2**31, 2**32, 2**63, 2**64 - 1]), st.integers(0, 2**64 - 1))


@pytest.mark.parametrize("instruction", _forms(), ids=lambda code: str(Decoder(64, code).decode()))
def test_as_the_processor(code: mmap.mmap, instruction: bytes) -> None:
    """Memory, registers, and the flags that are defined."""
    decoded = Decoder(64, instruction).decode()
    size = split_size(decoded)
    assert size
    code[:128] = (bytes.fromhex(_BEFORE) + instruction + bytes.fromhex(_AFTER)).ljust(128, b"\xcc")
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    memory = ctypes.create_string_buffer(128)
    at = -(-ctypes.addressof(memory) // 64) * 64  # on one cache line
    words = (ctypes.c_uint64 * 6).from_address(at)
    offset = decoded.mnemonic in (Mnemonic.BTS, Mnemonic.BTR, Mnemonic.BTC) and decoded.op1_register
    defined = _STATUS & ~(_AF if decoded.mnemonic in (Mnemonic.AND, Mnemonic.OR, Mnemonic.XOR) else 0)
    defined = _CF if decoded.mnemonic in (Mnemonic.BTS, Mnemonic.BTR, Mnemonic.BTC) else defined

    @settings(max_examples=40)
    @given(_WORD, st.lists(_WORD, min_size=4, max_size=4), st.integers(0, _STATUS), st.booleans())
    def same(operand: int, general: list[int], flags: int, equal: bool) -> None:
        flags = flags & _STATUS | 0x202
        if equal:  # compare and exchange succeeds
            general[0], general[2] = operand, operand >> 32
        if offset:
            general[3] %= 8 * size  # else it is another operand's
        words[:] = [*general, flags, operand]
        function(at)
        mask = (1 << 8 * size) - 1
        new, changed, now = execute(decoded, size, operand & mask, [*general, *[0] * 12], flags)
        assert words[_AT] == operand & ~mask | new
        assert list(words[:4]) == [changed.get(i, general[i]) for i in range(4)]
        assert words[4] & defined == now & defined

    same()
