"""Where control may enter code from outside its function: branches from elsewhere, and addresses that are kept.

Everything is looked for as raw bytes over the whole image, so that nothing depends on knowing all
functions; a chance match only costs a site a better run. Not seen: a table of distances from a label
that is not the table itself (hand-written code), and exception landing pads, which no instruction falls through to.
"""

from __future__ import annotations

import itertools
import re
import struct

from splitlock.image.elf import ET_EXEC, PF_X, PT_LOAD, Elf, Segment
from splitlock.process.functions import Text

_LONG_BRANCH = re.compile(rb"[\xe8\xe9]|\x0f[\x80-\x8f]|\xc7\xf8")
_SHORT_BRANCH = re.compile(rb"[\x70-\x7f\xe0-\xe3\xeb]")
_PREFIXES = b"\x26\x2e\x36\x3e\x64\x65\x66\xf2\xf3\x48"
_REACH = 130  # bytes, of a short branch with its own length
_LEA = re.compile(rb"[\x48\x4c]\x8d[\x05\x0d\x15\x1d\x25\x2d\x35\x3d]")  # lea r64, [rip+disp32]
_IMMEDIATE = re.compile(rb"[\x68\xb8-\xbf]")  # push imm32; mov r32, imm32
_LONGEST_TABLE = 1 << 16  # bytes: 16,384 cases of a switch


class Entries:
    """Finds what may enter the code of an image."""

    def __init__(self, elf: Elf, text: Text) -> None:
        self._elf, self._text = elf, text
        self._tables: set[int] = set()
        self._code = [
            (s.vaddr, self._elf.data[s.offset : s.offset + s.filesz]) for s in elf.executable()
        ]  # fmt: skip
        self._named = self._addresses_in_code()
        self._cases = self._jump_tables()

    def into(self, instructions: set[int], between: set[int]) -> set[int]:
        """Those addresses where control may arrive other than by a branch of their own function.

        `between` are no instructions of their own (behind a LOCK prefix, in filler): nobody keeps their
        addresses, so only branches are looked for.
        """
        if not instructions and not between:
            return set()
        kept = ((self._named | self._cases) & instructions) | self._pointers(instructions)
        return kept | self._branches(instructions | between)

    def leading_to(self, addresses: set[int]) -> set[int]:
        """Those addresses that are code because a branch or a jump table leads there.

        An address that is merely kept may be one of data.
        """
        return self._branches(addresses) | (self._cases & addresses)

    def _is_code(self, address: int) -> bool:
        return any(start <= address < start + len(code) for start, code in self._code)

    def _branches(self, addresses: set[int]) -> set[int]:
        found = set()
        for start, code in self._code:
            for match in _LONG_BRANCH.finditer(code, 0, max(0, len(code) - 4)):
                at = match.end()
                target = start + at + 4 + int.from_bytes(code[at : at + 4], "little", signed=True)
                if target in addresses and self._may_branch(start + match.start(), target):
                    found.add(target)
            for address in addresses:
                at = address - start
                if 0 <= at < len(code):
                    for match in _SHORT_BRANCH.finditer(code, max(0, at - _REACH), min(at + _REACH, len(code) - 1)):
                        end = match.end() + 1
                        step = int.from_bytes(code[end - 1 : end], "little", signed=True)
                        if end + step == at and self._may_branch(start + match.start(), address):
                            found.add(address)
        return found

    def _may_branch(self, source: int, target: int) -> bool:
        """Whether a raw match is a branch that its function's own list does not hold.

        Prefixes (branch hints, bnd) may stand before the opcode.
        """
        begins = self._text.begins(source)
        while begins is False and self._elf.read(source - 1, 1) in _PREFIXES:
            source -= 1
            begins = self._text.begins(source)
        return begins is None or (begins and not self._text.same_function(source, target))

    def _addresses_in_code(self) -> set[int]:
        """Code addresses that code computes or, where it is not position independent, holds as constants."""
        found: set[int] = set()
        for start, code in self._code:
            limit = max(0, len(code) - 4)
            for match in _LEA.finditer(code, 0, limit):
                at = match.end()
                target = start + at + 4 + int.from_bytes(code[at : at + 4], "little", signed=True)
                (found if self._is_code(target) else self._tables).add(target)
                self._tables.add(target)  # some compilers keep their tables in the text
            if self._elf.type == ET_EXEC:
                for match in _IMMEDIATE.finditer(code, 0, limit):
                    at = match.end()
                    target = int.from_bytes(code[at : at + 4], "little")
                    if self._is_code(target):
                        found.add(target)
        return found

    def _jump_tables(self) -> set[int]:
        """Code addresses that 32-bit offsets from a computed address name, as compilers write a switch.

        Each computed address is taken for a table that lasts until the next one, or to its first entry
        that names no code.
        """
        found: set[int] = set()
        low = min((start for start, _ in self._code), default=0)
        high = max((start + len(code) for start, code in self._code), default=0)
        tables = [*sorted(self._tables), high + (1 << 32)]
        for table, after in itertools.pairwise(tables):
            holder = next(
                (s for s in self._elf.segments if s.type == PT_LOAD and s.vaddr <= table < s.vaddr + s.filesz), None
            )
            if holder is None or (holder.flags & PF_X and table % 4):
                continue
            size = min(after - table, holder.vaddr + holder.filesz - table, _LONGEST_TABLE) & ~3
            at = holder.offset + table - holder.vaddr
            offsets = struct.unpack(f"<{size // 4}i", self._elf.data[at : at + size])
            for offset in offsets:
                if not low <= table + offset < high:
                    break
                found.add(table + offset)
        return found

    def _pointers(self, addresses: set[int]) -> set[int]:
        """Those of `addresses` that stand anywhere as an aligned pointer: tables, relocations."""
        found: set[int] = set()
        for s in self._elf.segments:
            if s.type == PT_LOAD:
                found |= addresses.intersection(self._words(s, 8).cast("Q"))
                if self._elf.type == ET_EXEC and not s.flags & PF_X:
                    found |= addresses.intersection(self._words(s, 4).cast("I"))
        return found

    def _words(self, segment: Segment, width: int) -> memoryview[int]:
        start = segment.offset + width - 1 & -width
        return memoryview(self._elf.data[start : start + (segment.offset + segment.filesz - start & -width)])
