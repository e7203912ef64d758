"""Which locked instruction does an address of the kernel's log mean? `#AC`: the one there. `#DB`: the one before it."""

from __future__ import annotations

from iced_x86 import Decoder, Instruction

from splitlock.x86.locked import locked_size, split_size

_LONGEST = 15  # bytes
_RUN_UP = 48  # bytes before an instruction from where sweeps start that are to agree on it


def at(code: bytes, address: int, bits: int = 64) -> Instruction | None:
    """The locked instruction that `code`, the bytes at an address, begins with. `#AC` is a fault (SDM vol. 3A, 6.5)."""
    found = Decoder(bits, code[:_LONGEST], ip=address).decode()
    return found if split_size(found) else None


def before(code: bytes, address: int, bits: int = 64, *, start: bool = False) -> tuple[Instruction | None, bool]:
    """The locked instruction that `code`, the bytes before an address, ends with, and whether it is certain.

    `#DB` for a bus lock is a trap: its address is the next instruction's (SDM vol. 3A, 19.3.1.6). An operand of any
    size counts: a lock of memory that is not write-back is a bus lock, too. `start`: an instruction is known to begin
    where `code` does; a sweep from there decides, also that there is none. Otherwise the candidate wins that most
    sweeps from the bytes before it arrive at: x86 code falls into step by itself.
    """
    ends = len(code)
    candidates = {}
    for length in range(2, min(_LONGEST, ends) + 1):
        found = Decoder(bits, code[ends - length :], ip=address - length).decode()
        if found.len == length and locked_size(found):
            candidates[ends - length] = found
    if not candidates:
        return None, start
    if start:
        swept = list(Decoder(bits, code, ip=0))
        if swept and swept[-1].ip in candidates:
            return candidates[swept[-1].ip], True
        if not any(instruction.is_invalid for instruction in swept[:-1]):  # the last may reach beyond the address
            return None, True
    votes = dict.fromkeys(candidates, 0)
    for first in range(max(0, min(candidates) - _RUN_UP), min(candidates) + 1):
        for instruction in Decoder(bits, code[first:], ip=first):
            if instruction.ip in votes:
                votes[instruction.ip] += 1
                break
    best = max(votes, key=lambda place: (votes[place], -place))
    return candidates[best], len(candidates) == 1
