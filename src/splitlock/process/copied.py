"""Patched text that the program has copied: there our jumps would lead astray, so it gets its own bytes back.

As agent/inside/copies.c does it. It is looked at when the copy becomes executable.
"""

from __future__ import annotations

import os
import re

from splitlock.linux.proc import Memory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.process.cache import Cache
    from splitlock.process.space import Module, Space

_MOST = 4 << 20  # bytes looked at: a compiler at run time asks often
_JUMPS = re.compile(rb"\xe9(?=(....))", re.DOTALL)


class Copies:
    """Of all programs of a run."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        #: of an image at a distance from its arena: displacement of a jump -> (chunk's number, where in it)
        self._jumps: dict[tuple[object, ...], dict[bytes, tuple[int, int]]] = {}

    def restore(self, tid: int, space: Space, start: int, size: int, file: str = "", offset: int = 0) -> None:
        """In a task's memory, or in a file that is mapped there: `offset` is where `start` is in it. Raises OSError."""
        modules = [module for module in space.modules if module.arena]
        if not modules or size > _MOST:
            return
        with Memory(tid, write=True) as memory:
            code = memory.read(start, size)
            for module in modules:
                for at, own in self._found(module, code):
                    if not file:
                        memory.write(start + at, own)
                        continue
                    with open(file, "r+b", buffering=0) as of_program:
                        os.pwrite(of_program.fileno(), own, offset + at)

    def _found(self, module: Module, code: bytes) -> list[tuple[int, bytes]]:
        """Where our bytes are, and what has to be there."""
        away = module.arena - module.bias - module.plan.arena
        chunks = module.plan.moved(away)[1]
        if (jumps := self._jumps.get((module.key, away))) is None:
            jumps = self._jumps[module.key, away] = {
                text[at : at + 4]: (i, at) for i, (_, text, fields) in enumerate(chunks) for at in fields
            }
        found = []
        for jump in _JUMPS.finditer(code):
            number, at = jumps.get(jump[1], (-1, 0))
            if number < 0:
                continue
            text, begin = chunks[number][1], jump.start() + 1 - at
            low, high = max(0, -begin), min(len(text), len(code) - begin)  # it may be copied in part
            if code[begin + low : begin + high] == text[low:high]:
                own = self._cache.sites(module.key, module.name).original[number]
                found.append((begin + low, own[low:high]))
        return found
