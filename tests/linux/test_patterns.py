"""Can a line that a stranger wrote hold up whoever reads it, or stop him? By the patterns that read it."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import patterns
import pytest

SOURCE = Path(__file__).parents[2] / "src" / "splitlock"
ROOMS = ("commands", "guest", "host", "image", "linux", "model", "modules", "report")
#: What reads lines that any user can write: their cost has to grow as the line does.
LINES = ("host/log/", "host/oops/", "host/explain/", "linux/")
#: Worse by itself than as it is used.
KNOWN = {"host/log/jsons.py:_TOKEN": "_tokens() stops at the first quote that has no end"}


def _patterns(value: object) -> Iterator[re.Pattern[Any]]:
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _patterns(each)


def _inline(tree: ast.Module) -> Iterator[tuple[str, str, str | bytes]]:
    """Name, method and text of each pattern that stands where it is used."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
            continue
        text = node.args[0]
        ours = isinstance(node.func.value, ast.Name) and node.func.value.id == "re" and node.func.attr != "compile"
        if ours and isinstance(text, ast.Constant) and isinstance(text.value, str | bytes):
            yield f"line {node.lineno}", node.func.attr, text.value


def _assigned(tree: ast.Module) -> Iterator[str]:
    """What a file gives a name, outside of functions."""
    for statement in tree.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            yield from (each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name))


@cache
def found() -> list[tuple[str, re.Pattern[Any], bool]]:
    """All patterns: where they stand, and whether they are looked for anywhere in a text."""
    every = []
    for path in sorted(path for room in ROOMS for path in (SOURCE / room).rglob("*.py")):
        text, where = path.read_text(), path.relative_to(SOURCE).as_posix()
        if not re.search(r"^import re$", text, re.M):
            continue
        module = importlib.import_module(".".join(("splitlock", *path.relative_to(SOURCE).with_suffix("").parts)))
        tree = ast.parse(text)
        for name in _assigned(tree):
            used = set(re.findall(rf"\b{name}\.(\w+)", text))
            searched = not used or not used <= {"match", "fullmatch"}
            every += [(f"{where}:{name}", each, searched) for each in _patterns(getattr(module, name, None))]
        for name, method, constant in _inline(tree):
            every.append((f"{where}:{name}", re.compile(constant), method not in ("match", "fullmatch")))
    return every


def test_they_are_found() -> None:
    names = {name for name, _, _ in found()}
    assert len(names) > 150
    assert {"host/log/passing.py:_LINE", "linux/log.py:_SENTENCES", "host/oops/words.py:_BPF"} <= names


def test_numbers_have_an_end() -> None:
    """int() raises ValueError of more than 4,300 digits, and no number that is meant has twenty."""
    assert [name for name, pattern, _ in found() if patterns.numbers(patterns.parse(pattern))] == []


def test_no_bound_became_a_group() -> None:
    """In an f-string `{1, 9}` is a tuple of Python's: the pattern then looks for "1, 9"."""
    texts = {name: str(pattern.pattern) for name, pattern, _ in found()}
    assert [name for name, text in texts.items() if re.search(r"\(\d+, \d*\)", text)] == []


def test_a_line_is_not_taken_apart_in_many_ways() -> None:
    assert [name for name, pattern, _ in found() if patterns.nested(patterns.parse(pattern))] == []
    for name, pattern, searched in found():
        most = 1 if name.startswith(LINES) and name not in KNOWN else 2
        assert patterns.degree(patterns.parse(pattern), searched=searched) <= most, (name, pattern.pattern)


@pytest.mark.parametrize(
    ("pattern", "number", "nested", "degree"),
    [
        (r"\[ *(\d+)\.", True, False, 1),
        (r"\[ *(\d{1,12})\.\d+", False, False, 1),
        (r"(-?[0-9]*)x", True, False, 2),  # 1111111: from each of them to the end
        (r"(?:a+)+b", False, True, 2),
        (r"(?: *[0-9a-f]{0,2}(?: |$))+", False, True, 1),
        (r"(?:a+,)+b", False, False, 2),  # a comma ends each
        (r"(?:[^\"]++|x)*+b", False, False, 2),
        (r"^(?:[^\"]++|x)*+b", False, False, 1),
        (r"rsyslogd.*?: (?:[^:]{1,99}: ?)?\d lost", False, False, 2),
        (r"a.*b.*c", False, False, 3),
        (r"^a.*b.*c", False, False, 2),
        (r"^a[^b]*b.*c", False, False, 1),
        (r"Command line: (.*)", False, False, 1),
        (r"x\S* y", False, False, 2),
        (r"x \S* y", False, False, 1),
        (r"(?:^|\n)x+y", False, False, 1),
    ],
)  # fmt: skip
def test_what_is_held_against_one(pattern: str, number: bool, nested: bool, degree: int) -> None:
    """The check itself, by patterns of which the cost is known."""
    tree = patterns.parse(re.compile(pattern))
    said = patterns.numbers(tree), patterns.nested(tree), patterns.degree(tree, searched=True)
    assert said == (number, nested, degree)
