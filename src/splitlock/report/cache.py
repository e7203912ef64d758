"""The report of `splitlock cache`: plain data, what is in the JSON of schema `splitlock/cache/1`."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from splitlock.report.document import Document

SCHEMA: Final = "splitlock/cache/1"


class Failure(msgspec.Struct, kw_only=True):
    """An image whose first run will wait, or that cannot be watched, and why."""

    path: str
    reason: str


class Cache(msgspec.Struct, kw_only=True):
    """One directory of images that are made ready."""

    directory: str
    is_shared: bool  #: root's, which every user's programs use
    images: int
    bytes: int  #: of all its files
    removed: int = 0  #: files, by `clear`


class Report(Document, kw_only=True):
    """The caches that are used here, and what was done to them."""

    schema: Literal["splitlock/cache/1"] = SCHEMA
    caches: list[Cache]
    made: int = 0  #: images, by `warm`
    found: int = 0  #: images that `warm` did not have to make
    failed: list[Failure] = msgspec.field(default_factory=list)
