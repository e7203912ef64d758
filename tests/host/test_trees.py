"""`status` and `advise` on other machines' files, against the kernel's sources (tests/host/trees/README.md)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from host import trees_read as read

from splitlock.commands import main

TREES = read.trees()
GROUPS = ("exit", "detection", "fates", "agree", "log", "machines", "recommended", "settings", "words")
#: Pairs of tree and group that the code does not reach yet. Strict: what passes must go from the file.
NOT_YET = frozenset((read.PLACE / "not-yet.txt").read_text().split("\n"))
_COMMANDS = ("status", "advise")


@pytest.fixture(scope="session")
def said(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What both commands say of a tree, asked once."""
    known: dict[str, dict[str, read.Said]] = {}

    def ask(name: str) -> dict[str, read.Said]:
        if name not in known:
            place = tmp_path_factory.mktemp("tree")
            root = read.build(TREES[name], place / "root")
            known[name] = {command: _ask(command, root, place) for command in _COMMANDS}
        return known[name]

    return ask


def _ask(command: str, root: Path, place: Path) -> read.Said:
    told = []
    for form in ("json", "text"):
        output = place / f"{command}.{form}"
        status = main([command, "--root", str(root), "--format", form, "-o", str(output)])
        told.append(output.read_text() if output.exists() else "")
    text = told[1].replace(str(root), "ROOT")
    return read.Said(status, json.loads(told[0] or "{}"), " ".join(text.split()))


def _cases() -> list[Any]:
    return [
        pytest.param(
            name, group, id=f"{name}-{group}",
            marks=[pytest.mark.xfail(strict=True, reason="not yet")] if f"{name} {group}" in NOT_YET else [],
        )
        for name in TREES for group in GROUPS
    ]  # fmt: skip


def _any(expected: str, found: str) -> bool:
    return found in expected.split("|")


@pytest.mark.parametrize(("name", "group"), _cases())
def test_tree(said: Any, name: str, group: str) -> None:
    told = said(name)
    wrong = globals()[f"_wrong_{group}"](TREES[name], told["status"], told["advise"])
    assert not wrong, TREES[name]["right"]["why"]


def _wrong_exit(tree: read.Json, status: read.Said, advise: read.Said) -> list[str]:
    right, found = tree["right"], {"status": status.exit, "advise": advise.exit}
    return [
        f"{command}: exit {found[command]}, right is {right[f'{command}_exit']}"
        for command in _COMMANDS if found[command] != right.get(f"{command}_exit", found[command])
    ]  # fmt: skip


def _wrong_detection(tree: read.Json, status: read.Said, advise: read.Said) -> list[str]:
    split, bus = read.uses(advise.report)
    found = {"split_lock": split, "bus_lock": bus, "mode": read.mode(status.report)}
    right = tree["right"]
    return [
        f"{key}: {found[key]}, right is {right[key]}"
        for key in found
        if not _any(right.get(key, found[key]), found[key])
    ]


def _wrong_fates(tree: read.Json, status: read.Said, advise: read.Said) -> list[str]:
    wrong = []
    for mode in read.MODES:
        for pair in filter(None, tree["right"].get(mode, "").split(", ")):
            who, expected = pair.split()
            for command, one in (("status", status), ("advise", advise)):
                found = read.fates(one.report, mode)[who]
                if not found or not all(_any(expected, fate) for fate in found):
                    wrong.append(f"{command}: {mode}: {who}: {sorted(found) or 'not told'}, right is {expected}")
    return wrong


def _wrong_agree(_tree: read.Json, status: read.Said, advise: read.Said) -> list[str]:
    """One judgement: both say the same of every mode."""
    pairs = {mode: (read.fates(status.report, mode), read.fates(advise.report, mode)) for mode in read.MODES}
    return [f"{mode}: status {one}, advise {other}" for mode, (one, other) in pairs.items() if one != other]


def _wrong_log(tree: read.Json, status: read.Said, _advise: read.Said) -> list[str]:
    right = tree["right"]
    if "lines" not in right:
        return []
    there, lines, whole = read.log(status.report)
    if right["lines"] == "no-log":
        return [] if not there and not lines else ["there is no log"]
    wrong = [] if there and lines == right["lines"] else [f"{lines} lines, right is {right['lines']}"]
    return wrong + ([f"whole: {whole}"] if whole != right.get("whole", whole) else [])


def _wrong_machines(tree: read.Json, status: read.Said, advise: read.Said) -> list[str]:
    found = read.machines(status.report)
    wrong = []
    if not read.processes(tree):
        wrong = [] if found is None else [f"{found}: no process is listed"]
        wrong += ["none running" for one in (status, advise) if "none running" in one.text]
    right = tree["right"].get("vms")
    expected = None if right == "not-known" else right
    return wrong + ([f"{found}, right is {right}"] if right is not None and found != expected else [])


def _wrong_recommended(tree: read.Json, _status: read.Said, advise: read.Said) -> list[str]:
    found, right = read.recommended(advise.report), tree["right"].get("recommend")
    return [f"{found}, right is {right}"] if right and found not in right else []


def _wrong_settings(tree: read.Json, status: read.Said, _advise: read.Said) -> list[str]:
    found = read.settings(status.report)
    wrong = []
    for right in tree["right"].get("settings", []):
        some = [s for s in found if right["text"] in s.text and re.search(right.get("where", ""), s.where)]
        if not some:
            wrong.append(f"not found: {right}")
        elif not any(_any(_counts(right), s.counts) and re.search(right.get("why", ""), s.why) for s in some):
            wrong.append(f"{some}, right is {right}")
    return wrong


def _counts(right: read.Json) -> str:
    return {True: "yes", False: "no"}.get(right["counts"], str(right["counts"]))


def _wrong_words(tree: read.Json, status: read.Said, advise: read.Said) -> list[str]:
    right, texts = tree["right"], {"status": status.text, "advise": advise.text}
    wrong = []
    for command, text in texts.items():
        for pattern in [*right.get("both_say", []), *right.get(f"{command}_says", [])]:
            if not re.search(pattern, text, re.I):
                wrong.append(f"{command} does not say {pattern!r}")
        for pattern in right.get("never", []):
            if found := re.search(pattern, text, re.I):
                wrong.append(f"{command} says {found[0]!r}")
    return wrong


def test_every_file_is_read() -> None:
    """No machine twice, none without what it must come to and why; nothing in `right` that nobody looks at."""
    known = {
        "split_lock", "bus_lock", "mode", *read.MODES, "lines", "whole", "vms", "recommend", "settings",
        "status_exit", "advise_exit", "status_says", "advise_says", "both_say", "never", "why",
    }  # fmt: skip
    assert len(TREES) >= 40
    for tree in TREES.values():
        assert set(tree) <= {"name", "cpu", "flags", "release", "cmdline", "files", "right"}
        assert set(tree["right"]) <= known
        assert tree["right"]["why"]
    pairs = {f"{name} {group}" for name in TREES for group in GROUPS}
    assert set(filter(None, NOT_YET)) <= pairs, "not-yet.txt names what is not there"
