"""What is known of an image besides its image file: names for what that only numbers. Apart, since start-up counts."""

from __future__ import annotations

from typing import NamedTuple

VERSION = 25  # inside/image.h's IMAGE_VERSION; change it with whatever changes the image file or what is in it


class Unwatched(NamedTuple):
    """Code of an image that is not watched: why, bytes, and locked instructions in it where that is known."""

    reason: str
    size: int | None
    sites: int | None


class SiteName(NamedTuple):
    """An instruction that is watched."""

    address: int
    next: int
    size: int
    text: str


class Named(NamedTuple):
    """The names of an image. `watched`: its locked instructions that are, those included that never split; `size`:
    bytes of its code that are watched.
    """

    watched: int
    size: int
    unwatched: list[Unwatched]
    sites: list[SiteName]
    build_id: str | None

    def values(self) -> tuple[object, ...]:
        """Plain tuples, for storing."""
        return (
            self.watched,
            self.size,
            [tuple(u) for u in self.unwatched],
            [tuple(s) for s in self.sites],
            self.build_id,
        )

    @classmethod
    def of(cls, values: tuple[object, ...]) -> Named:
        """From what `values` gave. Raises TypeError, ValueError or AssertionError for anything else."""
        watched, size, unwatched, sites, build_id = values
        assert isinstance(watched, int)
        assert isinstance(size, int)
        assert isinstance(unwatched, list)
        assert isinstance(sites, list)
        assert build_id is None or isinstance(build_id, str)
        return cls(watched, size, [Unwatched(*u) for u in unwatched], [SiteName(*s) for s in sites], build_id)
