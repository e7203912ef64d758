"""Which locked instructions of a file can an address mean, when nobody knows where the file was mapped?

It is mapped in whole pages, wherever it is (PE: in whole 64 KiB, as Windows and Wine do): the last digits stay.
"""

from __future__ import annotations

from itertools import chain, islice

from iced_x86 import Decoder

from splitlock.x86 import logged

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.image.loaded import Loaded

_PAGE, _GRANULE = 1 << 12, 1 << 16
_PLACES = 1 << 16  # that are looked at: of 256 MiB of code
_LONGEST = 15  # bytes of an instruction
_BEFORE = 64  # bytes looked at before an address where no function's start is known


def digits(image: Loaded) -> int:
    """How many hexadecimal digits of an address stay, wherever the file is mapped."""
    return 4 if image.is_pe else 3


def likely(image: Loaded, address: int, exception: str) -> list[int]:
    """The addresses in the file of the locked instructions that a logged address may mean."""
    step = _GRANULE if image.is_pe else _PAGE
    find = _behind if exception == "#DB" else _here
    ranges = (range(start + (address - start) % step, start + held + 1, step) for start, held in image.code)
    places = dict.fromkeys(islice(chain.from_iterable(ranges), _PLACES))
    found = (find(image, place) for place in places)
    return sorted({at for at in found if at is not None})


def _here(image: Loaded, place: int) -> int | None:
    if logged.at(image.read(place, _LONGEST), place, image.bits) is None:
        return None
    start = image.start(place + 1)
    return place if start is None or begins(image, start, place) else None


def begins(image: Loaded, start: int, place: int) -> bool:
    """Does an instruction begin there, by a sweep from the function's start?"""
    return any(found.ip == place for found in Decoder(image.bits, image.read(start, place - start + 1), ip=start))


def _behind(image: Loaded, place: int) -> int | None:
    start = image.start(place)
    code = image.read_before(place, place - start if start is not None else _BEFORE)
    found, certain = logged.before(code, place, image.bits, start=start is not None)
    return place - found.len if found is not None and (certain or start is None) else None
