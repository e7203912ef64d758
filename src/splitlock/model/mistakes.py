"""What is wrong with a TOML file whose shape is a msgspec Struct? The place, and a sentence with what it may be."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import inspect

from splitlock.model.places import Place

_STEP = re.compile(r"\.([A-Za-z0-9_]+)|\[(\d{1,12})\]")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`")
_MISSING = re.compile(r"Object missing required field `(.*)`")


def said(error: str, raw: Any, whole: type[msgspec.Struct]) -> tuple[Place, str]:
    """Of msgspec's ValidationError: where it is, and what to write instead."""
    what, _, where = error.partition(" - at `$")
    place: Place = tuple(name or int(number) for name, number in _STEP.findall(where))
    kind, value = inspect.type_info(whole), raw
    for step in place:
        kind, value = _inner(kind, step), value[step]
    if found := _UNKNOWN.match(what):
        return (*place, found[1]), f"there is no such key; there are {_list(sorted(_fields(kind)))}"
    if found := _MISSING.match(what):
        return place, f"`{found[1]}` is missing, {_words(_fields(kind)[found[1]])}"
    return place, f"{_shown(value)} is not {_words(kind)}"


def _inner(kind: inspect.Type, step: str | int) -> inspect.Type:
    for one in kind.types if isinstance(kind, inspect.UnionType) else (kind,):
        if isinstance(one, inspect.ListType) and isinstance(step, int):
            return one.item_type
        if isinstance(one, inspect.StructType) and isinstance(step, str):
            return _fields(one)[step]
    return kind


def _fields(kind: inspect.Type) -> dict[str, inspect.Type]:
    return {field.encode_name: field.type for field in kind.fields} if isinstance(kind, inspect.StructType) else {}


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value) if isinstance(value, int | float) else "this"


def _words(kind: inspect.Type) -> str:
    """What may stand there."""
    match kind:
        case inspect.LiteralType(values):
            every = [_shown(value) for value in values]
            return every[0] if len(every) == 1 else f"one of {_list(every)}"
        case inspect.StrType():
            return 'a text in quotes ("...")'
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType() | inspect.FloatType():
            what = "a whole number" if isinstance(kind, inspect.IntType) else "a number"
            return f"{what} from {kind.ge:,} to {kind.le:,}" if kind.ge is not None and kind.le is not None else what
        case inspect.ListType(inspect.StructType()):
            return "a list of tables, each with its name in two pairs of brackets"
        case inspect.ListType():
            return f"a list, [...], of this: {_words(kind.item_type)}"
        case inspect.UnionType():
            return _either([one for one in kind.types if not isinstance(one, inspect.NoneType)])
        case _:
            return "a table"


def _either(kinds: list[inspect.Type]) -> str:
    words = []
    for one in kinds:
        such = isinstance(one, inspect.ListType) and one.item_type in kinds
        words.append("a list of such, [...]" if such else _words(one))
    return ", or ".join(words)


def _list(words: list[str]) -> str:
    return ", ".join(words)
