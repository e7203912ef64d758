"""The report of exports as text: 80 columns, grammar, and names that others chose."""

from __future__ import annotations

from typing import Any

from splitlock.report.exports import SCHEMA, Error, Loss, Report, Symbol
from splitlock.report.exports_text import render
from splitlock.report.lines import count, cut, printable, wrap


def loss(module: str, **fields: Any) -> Loss:
    whole: dict[str, Any] = {"path": "/m.ko", "member": None, "wanted": False, "direct": [], "through": [], **fields}
    return Loss(module=module, **whole)


def report(**fields: Any) -> Report:
    whole: dict[str, Any] = {
        "schema": SCHEMA,
        "question": "without",
        "kernels": ["6.1.0"],
        "modules": 4023,
        "kernel_exports": None,
        "symbols": [Symbol(name="vmap", exporters=["vmlinux"], users=1, breaks=2)],
        "wanted": [],
        "direct": 0,
        "losses": [],
        "optimal": True,
        "unresolved": [],
        "errors": [],
        **fields,
    }
    return Report(**whole)


HEAD = "SYMBOL                                    USERS  BREAKS  EXPORTED BY\n"
VMAP = "vmap                                          1       2  vmlinux\n"


def test_nothing_fails() -> None:
    assert render(report()) == HEAD + VMAP + "\n4,023 modules read: all of them still load\n"


def test_reasons() -> None:
    losses = [loss("a", direct=["vmap"]), loss("x" * 29, through=["a"])]
    assert render(report(losses=losses, direct=1)) == (
        HEAD + VMAP + "\n2 of 4,023 modules no longer load: 1 directly, 1 through others\n"
        "\nMODULE                       WHY\n"
        "a                            imports vmap\n"
        "xxxxxxxxxxxxxxxxxxxxxxxxxxxxx\n"
        "                             through a\n"
    )


def test_broken() -> None:
    losses = [loss("a", direct=["vmap"], wanted=True), loss("b", through=["a"])]
    text = render(report(question="break", losses=losses, direct=1, optimal=False))
    assert "without vmap 1 module asked for and 1 more fail\n" in text
    assert "b                            through a (not asked for)\n" in text
    assert text.endswith("the search was cut short: there may be a set that costs less\n")
    assert "without vmap only what was asked for fails: 1 module\n" in render(
        report(question="break", losses=losses[:1])
    )


def test_long_lists_are_cut_unless_verbose() -> None:
    names = [f"module_{number:02}" for number in range(30)]
    long = report(losses=[loss(name, through=names) for name in names], unresolved=names)
    brief, everything = render(long), render(long, verbose=True)
    assert "and 22 more" in brief
    assert "... and 10 more (-v lists all)" in brief
    assert "more" not in everything
    assert all(len(line) <= 80 for line in (brief + everything).splitlines())


def test_names_cannot_drive_a_terminal() -> None:
    errors = [Error(path="/\x1b[2J", member="\udcff", reason="bad\x07")]
    assert render(report(errors=errors)).endswith("not read: /\\x1b[2J: \\udcff: bad\\x07\n")


def test_lines() -> None:
    assert wrap("a " * 60) == [("a " * 40).rstrip(), "  " + ("a " * 20).rstrip()]
    assert wrap("x" * 100 + " y", "  ", "    ") == ["  " + "x" * 100, "    y"]
    assert (cut("abcd", 3), cut("abc", 3)) == ("ab…", "abc")
    assert (count(1, "file"), count(2000, "file"), count(2, "process", "processes")) == (
        "1 file",
        "2,000 files",
        "2 processes",
    )
    assert printable("a\nb\x1b") == "a\\nb\\x1b"
