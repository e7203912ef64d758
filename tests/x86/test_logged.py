"""Which instruction does a logged address mean? Bytes from the SDM's opcode tables, by hand."""

from __future__ import annotations

import pytest
from iced_x86 import Decoder

from splitlock.x86 import logged
from splitlock.x86.locked import locked_size

LOCKED = {  # bytes, size of the operand, can it cross a line
    "lock inc byte [rax]": ("f0fe00", 1, False),
    "xchg [rax], al": ("8600", 1, False),
    "lock xadd [rax], bl": ("f00fc018", 1, False),
    "lock cmpxchg16b [rax]": ("f0480fc708", 16, False),
    "lock inc dword [rax]": ("f0ff00", 4, True),
    "xchg [rax], rax": ("488700", 8, True),
    "lock cmpxchg8b [rax]": ("f00fc708", 8, True),
    "lock add word [rax], 1": ("66f0830001", 2, True),
}
FREE = {"inc byte [rax]": "fe00", "xchg al, bl": "86d8", "mov [rax], al": "8800", "cmpxchg [rax], bl": "0fb018"}


@pytest.mark.parametrize("name", LOCKED)
def test_locked(name: str) -> None:
    """#DB comes of any locked access to memory that is not write-back; #AC of those alone that cross a line."""
    text, size, crosses = LOCKED[name]
    code = bytes.fromhex(text)
    assert locked_size(Decoder(64, code).decode()) == size
    for start in (True, False):
        found, certain = logged.before(code, 0x1000 + len(code), start=start)
        assert found is not None
        assert (found.ip, certain or not start) == (0x1000, True)
    assert (logged.at(code, 0x1000) is not None) == crosses


@pytest.mark.parametrize("name", FREE)
def test_not_locked(name: str) -> None:
    code = bytes.fromhex(FREE[name])
    assert locked_size(Decoder(64, code).decode()) == 0
    assert logged.before(code, 0x1000 + len(code), start=True) == (None, True)
    assert logged.at(code, 0x1000) is None
