"""Whose code is at an address of one file, which was mapped at a base: given, told by the line itself, or not known?"""

from __future__ import annotations

import os

from splitlock._errors import SplitlockError
from splitlock.host.explain import reasons
from splitlock.host.explain.likely import digits, likely
from splitlock.host.explain.space import Found, Saved, frames, loaded
from splitlock.linux import below
from splitlock.report.frames import own, short
from splitlock.x86 import logged

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.host.explain.reasons import Reason
    from splitlock.image.loaded import Loaded
    from splitlock.linux.log import Line, Mapped

_PAGE = 4096
_LONGEST = 15  # bytes of an instruction
_SHOWN = 4  # places that an address may mean


class Based(Saved):
    """One image, loaded at `base`: where the first of it is mapped. Raises SplitlockError.

    Without a base it is where the line itself says that the code was mapped (`line`), else where it is linked to.
    """

    def __init__(self, path: str, base: int | None = None, line: Line | None = None) -> None:
        self.path = path
        try:
            image = loaded(below.opened("", path), path)
        except OSError as error:
            raise SplitlockError(f"--image {path}: {error.strerror}; name the program or library", 2) from None
        if image is None:
            raise SplitlockError(f"--image {path}: neither ELF nor PE; name the program or library", 2)
        self.image = image
        self._mapped = line.mapped if line and base is None else None
        self._movable = base is None and (image.is_pe or not image.base)
        self._exception = line.exception if line else "#AC"
        self._bias: int | None = (base if base is not None else image.base) - image.span[0]  # to the file's addresses
        if line and line.address is not None and self._mapped:
            self._bias = _bias(image, line.address, self._mapped)

    def find(self, address: int) -> Found | None:
        """What is at an address, None where it lies outside of the image."""
        low, high = self.image.span
        if self._bias is None or not low <= address - self._bias < high:
            return None
        return Found(self.path, address - self._bias, self.image, self.image.bits, None)

    def nothing(self, address: int) -> Reason:
        """Why there is nothing at an address."""
        if self._bias is None:
            assert self._mapped
            return reasons.does_not_fit(self.path, self._mapped)
        low, high = self.image.span
        if not self._movable:
            return reasons.outside(self.path, low + self._bias, high + self._bias)
        ends = f"{address:x}"[-digits(self.image) :]
        places = likely(self.image, address, self._exception)
        return reasons.movable(self.path, ends, len(places), [self._named(place) for place in places[:_SHOWN]])

    def _named(self, place: int) -> str:
        front = own(frames(self.image, place))
        if front is None or front.function is None:
            return f"{place:#x}"
        line = f"{front.source.rpartition('/')[2]}, " if front.source else ""
        return f"{short(front.function)} ({line}{place:#x})"

    def other(self, found: Found) -> Reason:
        """Why the bytes at an address are no locked instruction."""
        if self._mapped and self._mapped.file != os.path.basename(self.path):
            return reasons.another_file(self.path, self._mapped.file)
        return reasons.other_bytes(self.path, self.image.build_id)


def _bias(image: Loaded, address: int, mapped: Mapped) -> int | None:
    """What to add to an image's addresses, by what a line says of its mapping; None: it cannot be this image's.

    Newer kernels tell the offset in the file; before, the size of the mapping has to tell which part of it that is.
    """
    if mapped.offset is not None:
        place = image.address(mapped.offset)
        whole_pages = (mapped.offset - (address - mapped.start)) % _PAGE == 0
        return address - place if place is not None and whole_pages else None
    biases = [mapped.start - start for start in image.mapped(mapped.size)]
    locked = [bias for bias in biases if logged.at(image.read(address - bias, _LONGEST), address, image.bits)]
    best = locked or biases
    return best[0] if len(best) == 1 else None
