"""Whatever a name holds: it looks like no line and no column of ours. Each field of each report, each kind of name."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import msgspec
import pytest
from report.made import HEX, RENDERERS

from splitlock.report import lines

#: What a line of ours may begin with; `forged` marks it.
OURS = "module: forged"
NAMES = {
    "newline": f"a\n    {OURS}",
    "CR": f"a\r    {OURS}",
    "ANSI": f"\x1b[2J\x1b[1;1H{OURS}",
    "U+2028": f"a\u2028    {OURS}",
    "U+0085": f"a\x85{OURS}",
    "no-break": f"a\xa0\xa0\xa0{OURS}",
    "leading blanks": f"    {OURS}",
    "columns": f"a  {OURS}",
    "private": f"a\ue000\ue000{OURS}",
    "wide": f"a\u3000\u2003{OURS}",
} | {f"{number} letters before": f"{'a' * number} {OURS} is here" for number in range(24, 84, 9)}
#: Fields whose texts are sentences or words of our own, in which no name stands by itself. All others hold names.
WORDS = frozenset(
    [
        "allowed",
        "answers",
        "because",
        "build_id",
        "certainty",
        "checks",
        "code",
        "command_line",
        "context",
        "counters",
        "deaf",
        "detail",
        "digest",
        "doubt",
        "doubts",
        "end",
        "error",
        "event",
        "evidence",
        "exception",
        "first",
        "fix",
        "hardware",
        "holes",
        "host",
        "inside",
        "installed",
        "instruction",
        "instruction_address",
        "kernel",
        "kernels",
        "kind",
        "leaf",
        "links",
        "linux",
        "log",
        "means",
        "missing",
        "mode",
        "module_taint",
        "not_told",
        "note",
        "number",
        "offset",
        "oopses",
        "panic",
        "ignored",
        "parameter",
        "policy",
        "qemu",
        "reason",
        "reasons",
        "recommended",
        "registers",
        "release",
        "report",
        "said",
        "says",
        "scenario",
        "schema",
        "sha256",
        "srcversion",
        "stamp",
        "started",
        "taint",
        "tells",
        "text",
        "time",
        "title",
        "unknown",
        "unscanned",
        "unwatched",
        "verdict",
        "version",
        "versions",
        "victim",
        "vmm",
        "vmms_why",
        "what",
        "where",
        "who",
        "why",
    ]
)
BOTH = {("Use", "source"), ("Effect", "source"), ("Detection", "source"), ("Report", "source"), ("Log", "source"),
        ("Step", "source"), ("KnownCause", "name")}  # fmt: skip


def fields(kind: Any) -> Iterator[tuple[type, str]]:
    """The fields with texts that are names, of a type and of all that it holds."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        for field, held in typing.get_type_hints(kind).items():
            if list(fields(held)) == [(str, "")] and field not in WORDS | HEX and (kind.__name__, field) not in BOTH:
                yield kind, field
            yield from (each for each in fields(held) if each[1])
    elif typing.get_origin(kind) is typing.Literal:
        return
    elif typing.get_args(kind):
        yield from dict.fromkeys(each for argument in typing.get_args(kind) for each in fields(argument))
    elif kind is str:
        yield str, ""


hints_of = cache(typing.get_type_hints)


def made(kind: Any, target: tuple[type, str], name: str, choice: int, field: str = "", owner: Any = None) -> Any:
    """A value of a type, with `name` in the field that is the target."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return arguments[choice % len(arguments)]
    if origin is list:
        return [made(arguments[0], target, name, choice, field, owner)]
    if origin is dict:
        return {made(arguments[0], target, name, choice, field, owner): made(arguments[1], target, name, choice)}
    if arguments:
        return made(arguments[0], target, name, choice, field, owner)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        hints = hints_of(kind)
        return kind(**{each: made(hints[each], target, name, choice, each, kind) for each in kind.__struct_fields__})
    if kind is str:
        return name if (owner, field) == target else "0x10" if field in HEX else "word"
    return {bool: True, int: 3, float: 2.5}[kind]


CASES = [
    pytest.param(kind, render, target, id=f"{number}-{target[0].__name__}.{target[1]}")
    for number, (kind, render) in enumerate(RENDERERS)
    for target in dict.fromkeys(fields(kind))
]


@pytest.mark.parametrize(("kind", "render", "target"), CASES)
def test_no_line_is_a_name_s(kind: Any, render: Callable[[Any], str], target: tuple[type, str]) -> None:
    for what, name in NAMES.items():
        for choice in range(3):
            for line in render(made(kind, target, name, choice)).split("\n"):
                assert line.isprintable(), (what, line)
                assert f"  {OURS}" not in line, (what, line)
                assert not line.strip().startswith(OURS) or name.startswith("\x1b"), (what, line)


def test_a_name_is_not_changed_otherwise() -> None:
    for name in ("a", "a b", "lock_slow(int, char const*)", "/opt/My Game/game.exe", "größe", ""):
        assert lines.page([lines.named(name)]) == f"{name}\n"
    assert lines.page([lines.named("  a   b ")]) == "\\x20\\x20a \\x20\\x20b\\x20\n"


def test_a_broken_name_goes_on_behind_a_mark() -> None:
    name = " ".join(["word"] * 40)
    wrapped = lines.page(lines.wrap(f"in {lines.named(name)} here", "", "  ")).splitlines()
    assert max(map(len, wrapped)) <= lines.WIDTH
    assert all(line.startswith("  … word") for line in wrapped[2:])
    assert "".join(wrapped).replace(" ", "").replace("…", "") == f"in{name}here".replace(" ", "")
