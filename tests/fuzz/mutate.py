"""Damage to bytes of which nothing is known: what the mutators that know a format fall back on."""

from __future__ import annotations

from random import Random

EXTREME = (
    0, 1, 2, 3, 7, 8, 0x18, 0x3F, 0x40, 0x7F, 0x80, 0xFF, 0x100, 0xFFF, 0x1000, 0x7FFF, 0x8000, 0xFF00, 0xFFFF, 1 << 16,
    1 << 20, 1 << 24, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 4096,
    (1 << 64) - 1,
)  # fmt: skip
_LARGEST = 1 << 16  # bytes that an input may grow to


def number(chance: Random, *others: int) -> int:
    """One that matters: an extreme, one of `others`, or one next to these."""
    value = chance.choice((*others, *others, *EXTREME) if chance.random() < 0.9 else (chance.getrandbits(64),))
    return value + chance.choice((0, 0, 0, 0, 1, -1))


def put(raw: bytes, at: int, value: int, width: int, order: str = "little") -> bytes:
    """The bytes with one number in them set."""
    code = (value % (1 << 8 * width)).to_bytes(width, "big" if order == "big" else "little")
    return raw[:at] + code + raw[at + width :]


def damage(raw: bytes, chance: Random) -> bytes:
    """Bits, bytes or numbers changed, pieces taken out, doubled or moved, the end cut off."""
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        at = chance.randrange(len(raw) + 1)
        length = min(len(raw), chance.choice((1, 2, 4, 8, 24, 64, 512)))
        match chance.randrange(8):
            case 0 if at < len(raw):
                raw = put(raw, at, raw[at] ^ 1 << chance.randrange(8), 1)
            case 1:
                raw = put(raw, at, chance.choice((0, 1, 0x7F, 0x80, 0xFF)), 1)
            case 2:
                width = chance.choice((1, 2, 4, 8))
                raw = put(raw, at - at % width, number(chance, len(raw)), width, chance.choice(("little", "big")))
            case 3:
                raw = raw[:at] + raw[at + length :]
            case 4:
                raw = raw[:at] + raw[at : at + length] * 2 + raw[at + length :]
            case 5:
                to = chance.randrange(len(raw) + 1)
                raw = raw[:to] + raw[at : at + length] + raw[to + length :]
            case 6:
                raw = raw[:at] + chance.randbytes(length) + raw[at + length :]
            case 7 if chance.random() < 0.3:
                raw = raw[:at]
    return raw[:_LARGEST]


def damage_text(raw: bytes, chance: Random, words: tuple[bytes, ...]) -> bytes:
    """Words put in, lines doubled, moved or left out, bytes damaged; the first byte, which says what it is, stays."""
    first, raw = raw[:1], raw[1:]
    for _ in range(chance.choice((1, 1, 2, 4))):
        at, lines = chance.randrange(len(raw) + 1), raw.split(b"\n")
        place = chance.randrange(len(lines))
        match chance.randrange(4):
            case 0:
                raw = raw[:at] + chance.choice(words) + raw[at + chance.choice((0, 1, 8)) :]
            case 1:
                raw = b"\n".join(lines[:place] + lines[place + 1 :])
            case 2:
                raw = b"\n".join([*lines[:place], chance.choice(lines), *lines[place:]])
            case _:
                raw = damage(raw, chance)
    return (first + raw)[: 1 << 16]
