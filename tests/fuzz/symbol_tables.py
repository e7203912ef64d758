"""Kernels' tables of symbols, of each layout, and damaged: a guest's memory is whatever the guest makes of it."""

from __future__ import annotations

from functools import cache
from random import Random

from fuzz.mutate import EXTREME, damage, put
from image.symbol_tables import BASE, LAYOUTS, Symbol, image

from splitlock._errors import ImageError
from splitlock.image.kallsyms import Kallsyms

_SYMBOLS = 2400


@cache
def _symbols() -> list[Symbol]:
    marks = {"_stext": BASE, "_etext": BASE + 16 * _SYMBOLS}
    named = [*marks, *(f"function_{number}" for number in range(_SYMBOLS))]
    return sorted(Symbol(marks.get(name, BASE + 16 * number), "T", name) for number, name in enumerate(named))


@cache
def seeds() -> list[bytes]:
    """One of each layout, with and without the numbers by name."""
    return [
        image(_symbols(), layout, lead=b"lead", percpu=order, order=order)
        for layout in LAYOUTS
        for order in (False, True)
    ]


def mutate(raw: bytes, chance: Random) -> bytes:
    """Numbers among the tables changed, or anything."""
    if chance.random() < 0.5:
        return put(raw, 4 * chance.randrange(len(raw) // 4 or 1), chance.choice(EXTREME), 4)
    return damage(raw, chance)


def check(raw: bytes) -> None:
    """Names and addresses, or one line that says why not."""
    try:
        found = Kallsyms(raw, BASE)
    except ImageError:
        return
    assert all(isinstance(name, str) and 0 <= address < 1 << 64 for name, address in found.addresses.items())
    for address in (0, BASE, BASE + 4711, (1 << 64) - 1):
        named = found.function(address)
        assert named is None or named[1] >= 0
