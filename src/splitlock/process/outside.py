"""What outside the known functions could be an `xchg` with memory, which locks without a LOCK prefix?

There nothing says where instructions begin, so each byte may be the first of one. An `xchg` is told from data by what
follows it: code goes on as code until control leaves, and its branches lead into the image's code. Data that passes for
that is counted, too: the number is an upper bound. Entries of procedure linkage tables, which have no function of their
own, are known by their shape.
"""

from __future__ import annotations

import bisect
import re

from iced_x86 import Decoder, FlowControl, OpKind

from splitlock.image.elf import Elf
from splitlock.x86.locked import decided, split_size
from splitlock.x86.patterns import EXCHANGE, LOCK_PREFIXED, PREFIXES

_LONGEST = 15  # bytes of an instruction
_FOLLOWED = 16  # instructions
_LEAVES = {FlowControl.UNCONDITIONAL_BRANCH, FlowControl.INDIRECT_BRANCH, FlowControl.RETURN}
_NEAR = {OpKind.NEAR_BRANCH16, OpKind.NEAR_BRANCH32, OpKind.NEAR_BRANCH64}
# As ld, gold and lld write them: jump through the GOT and push a number; the same for CET; the jump alone; the first.
_LINKAGE = re.compile(
    rb"\xff\x25.{4}\x68.{4}\xe9.{4}"
    rb"|\xf3\x0f\x1e\xfa\x68.{4}\xf2?\xe9.{4}"
    rb"|(?:\xf3\x0f\x1e\xfa)?\xf2?\xff\x25.{4}(?:\x66\x90|\x66?\x0f\x1f\x44\x00\x00?)"
    rb"|\xff\x35.{4}\xf2?\xff\x25.{4}",
    re.DOTALL,
)


def exchanges(elf: Elf, ranges: list[tuple[int, int]], undecoded: list[tuple[int, int]]) -> tuple[int, int]:
    """Bytes that hold such an `xchg` and no LOCK prefix pattern, and how many of them there are at most.

    `ranges`: `(start, end)` of the known functions, sorted, without overlap; `undecoded`: the parts of them behind what
    is no code. What holds LOCK prefix patterns as well is in somebody else's sum of bytes already (Text.outside).
    """
    code = [(s.vaddr, s.vaddr + s.filesz) for s in elf.executable()]
    size = sites = 0
    for low, high in [*_gaps(elf, ranges), *undecoded]:
        at = elf.offset(low, high - low)
        if EXCHANGE.search(elf.data, at, at + high - low):  # rare: most gaps are padding
            raw = bytes(elf.data[at : at + high - low])
            if found := _count(raw, low, code):
                sites += found
                size += 0 if LOCK_PREFIXED.search(raw) else high - low
    return size, sites


def _gaps(elf: Elf, ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The code between the functions, section by section."""
    found = []
    ends = [end for _, end in ranges]
    for low, high in elf.code_ranges():
        at = low
        for start, end in ranges[bisect.bisect_right(ends, low) :]:
            if start >= high:
                break
            if start - at > 1:
                found.append((at, start))
            at = end
        if high - at > 1:
            found.append((at, high))
    return found


def _count(raw: bytes, address: int, code: list[tuple[int, int]]) -> int:
    # an xchg with a LOCK prefix is counted as such
    known = sorted(match.span() for match in (*_LINKAGE.finditer(raw), *LOCK_PREFIXED.finditer(raw)))
    found = passed = 0
    match = EXCHANGE.search(raw)
    while match:
        at = match.start()
        while passed < len(known) and known[passed][1] <= at:
            passed += 1
        hidden = passed < len(known) and known[passed][0] <= at
        found += not hidden and is_exchange(raw, at, address, code)
        match = EXCHANGE.search(raw, at + 1)
    return found


def is_exchange(raw: bytes, at: int, address: int, code: list[tuple[int, int]]) -> bool:
    """Whether an `xchg` that could split may have its opcode at `at` of `raw`, which lies at `address`.

    What follows it must do as code; `code`: where that is, `(start, end)`. Its prefixes do not matter.
    """
    instructions = iter(Decoder(64, raw[at : at + _LONGEST * _FOLLOWED], ip=address + at))
    first = next(instructions, None)
    if first is None or not (size := split_size(first)):
        return False
    if decided(first, size) and (not at or raw[at - 1] not in PREFIXES):
        return False
    for _, x in zip(range(_FOLLOWED), instructions, strict=False):
        if x.is_invalid:  # or cut off, where the stretch ends
            return bool(x.next_ip >= address + len(raw))
        if x.op_count and x.op0_kind in _NEAR and not any(low <= x.near_branch_target < high for low, high in code):
            return False
        if x.flow_control in _LEAVES:
            return True
    return True
