"""Exactness: every lockable instruction, size and addressing mode, site by site, in every kind of program.

The programs compare registers, flags, memory, stack and red zone with an unlocked twin of each form
themselves, and exit with 1 for any difference.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Run


def _sites(image: Path) -> dict[str, int]:
    listing = subprocess.run(["nm", image], capture_output=True, text=True, check=True).stdout
    fields = (line.split() for line in listing.splitlines())
    return {f[2]: int(f[0], 16) for f in fields if len(f) == 3 and "__site" in f[2]}


def _expected(image: Path, out: Path) -> dict[int, int]:
    sites = _sites(image)
    expected: dict[int, int] = {}
    for line in out.read_text().splitlines():
        if not line.startswith("#"):
            name, _, *hits = line.split()
            for number, count in enumerate(hits):
                address = sites[f"{name}__site{number + 1 if number else ''}"]
                expected[address] = expected.get(address, 0) + int(count)
    return {address: count for address, count in expected.items() if count}


@pytest.mark.parametrize(
    ("engine", "build", "every", "words", "least"),  # each is some hundred real split locks
    [
        ("ptrace", "static", 2, ["1"], 300),
        ("agent", "pie", 12, ["1", "threads", "fork", "exec"], 200),
        ("agent", "pie", 12, ["1", "threads", "fork", "dlopen"], 120),
        ("agent", "nopie", 16, ["1", "fork"], 50),
        ("ptrace", "nopie", 16, ["1", "fork"], 50),
        ("ptrace", "static_pie", 8, ["1", "threads"], 100),
    ],
)
def test_every_form_is_counted_exactly(
    watch: Callable[..., Run],
    forms: dict[str, Path],
    tmp_path: Path,
    build: str,
    every: int,
    words: list[str],
    least: int,
) -> None:
    out = tmp_path / "expected"
    arguments = [*words, str(forms["lib"])] if "dlopen" in words else words
    image = forms["lib"] if "dlopen" in words else forms[build]
    run = watch([forms[build], *arguments], env={"FORMS_OUT": str(out), "FORMS_EVERY": str(every)})
    assert run.status == 0, run.out + run.err
    expected = _expected(image, out)
    assert sum(expected.values()) >= least
    assert run.hits(image) == expected
    assert run.report["hits"] == sum(expected.values())


@pytest.mark.parametrize("build", ["pie", "nopie", "static", "static_pie"])
def test_aligned_operands_are_no_hits_and_nothing_is_disturbed(
    watch: Callable[..., Run], forms: dict[str, Path], build: str
) -> None:
    run = watch([forms[build], "0", "threads", "fork", "exec"])
    assert run.status == 0, run.out + run.err
    assert run.report["hits"] == 0
    assert run.report["watched"]["sites"] > 1000 or build.startswith("static")
    assert "intact" in run.out


def test_data_between_functions_is_left_alone_and_reported(watch: Callable[..., Run], forms: dict[str, Path]) -> None:
    run = watch([forms["pie"], "0"])
    rest = [u for u in run.report["unmonitored"] if u["image"] == str(forms["pie"])]
    assert [u["reason"] for u in rest] == ["code outside known functions"]
    assert rest[0]["sites"] >= 8
