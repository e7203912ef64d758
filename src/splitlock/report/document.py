"""A report as a JSON document, with the name and version of its schema in it."""

from __future__ import annotations

from typing import Self

import msgspec


class Document(msgspec.Struct, kw_only=True):
    """What every report is. The first field of each is `schema`, a Literal: another version is no such report."""

    @classmethod
    def from_json(cls, raw: bytes | str) -> Self:
        """The report in a JSON text. Raises msgspec.ValidationError when it is none."""
        return msgspec.json.decode(raw, type=cls)

    def to_json(self) -> bytes:
        """As JSON, indented, with a newline at the end."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"
