"""A report as a JSON document, with the name and version of its schema in it."""

from __future__ import annotations

from typing import Any, Self

import msgspec


class Document(msgspec.Struct, kw_only=True):
    """What every report is. The first field of each is `schema`, a Literal: another version is no such report."""

    @classmethod
    def from_json(cls, raw: bytes | str) -> Self:
        """The report in a JSON text. Raises msgspec.DecodeError when it is none."""
        try:
            return msgspec.json.decode(raw, type=cls)
        except RecursionError:
            raise msgspec.DecodeError("too deeply nested") from None

    def to_json(self) -> bytes:
        """As JSON, indented, with a newline at the end."""
        return msgspec.json.format(encoded(self), indent=2) + b"\n"


def encoded(value: object) -> bytes:
    """Plain data as JSON. Bytes of a name that are no UTF-8 become escapes, as in a text: JSON has none of its own."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return msgspec.json.encode(_escaped(msgspec.to_builtins(value)))


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_escaped(key): _escaped(one) for key, one in value.items()}
    return [_escaped(one) for one in value] if isinstance(value, list) else value
