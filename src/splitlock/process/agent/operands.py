"""Where the operand of each site is, so that the agent can tell whether a site that has faulted had been counted.

Its count is taken before the lock executes, by the slow path; a lock that faults has not executed.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from iced_x86 import Register, RegisterExt

from splitlock.x86.locked import bit_offset_register, narrow_address, segment_register, split_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from iced_x86 import Instruction
    from iced_x86._iced_x86_py import Register as RegisterNumber

PACKED = struct.Struct("<III4B")  # inside/image.h, struct operand
_NONE, _IP = 16, 17  # no register; the instruction pointer
_FS, _GS, _NARROW = 4, 8, 16  # in `how`, above the scale's logarithm


class Operand(NamedTuple):
    """A site's: `offset` is its copy's, `what` its number and size as the slow path has them; see inside/image.h."""

    offset: int
    what: int
    displacement: int
    base: int
    scaled: int
    bits: int
    how: int


def operand_of(x: Instruction, number: int, offset: int, low: int) -> Operand:
    """That of a site, its image's lowest address being `low`."""
    how = {1: 0, 2: 1, 4: 2, 8: 3}[x.memory_index_scale]
    how |= {Register.FS: _FS, Register.GS: _GS}.get(segment_register(x), 0)
    how |= _NARROW if narrow_address(x) else 0
    base, displacement = _number(x.memory_base), x.memory_displacement
    if x.is_ip_rel_memory_operand:
        base, displacement = _IP, x.ip_rel_memory_address - low
    scaled, bits = _number(x.memory_index), _number(bit_offset_register(x))
    return Operand(offset, number << 8 | split_size(x), displacement & 0xFFFF_FFFF, base, scaled, bits, how)


def _number(register: RegisterNumber) -> int:
    return _NONE if register == Register.NONE else RegisterExt.number(register)
