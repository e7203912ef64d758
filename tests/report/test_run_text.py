"""The text report of `splitlock run`, variant by variant, held against the files in golden/.

A file is what a person reads. Where the renderer changes, read what changes, then write the files anew:
`python tests/report/test_run_text.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from splitlock.report.run import SCHEMA, Frame, Report, Sample, Site, Unmonitored, Watched
from splitlock.report.run_text import coverage, render

GOLDEN = Path(__file__).parent / "golden"
CRYPTO = Unmonitored(reason="code outside known functions", image="/usr/lib/libcrypto.so.3", bytes=164_590, sites=149)
JIT = Unmonitored(
    reason="code made at run time (JIT)", mapping="anonymous executable memory", bytes=4_063_232, sites=None
)
HIDDEN = Unmonitored(reason="may not be read: Permission denied", mapping="process 4711")
OFF = Unmonitored(reason="split_lock_detect=off", mapping="everything")
LOST = Unmonitored(
    reason="2 ended without a last look at their counters; the hits are a lower bound", mapping="processes"
)
LONG = Unmonitored(
    reason="not x86-64 code", image="/opt/a program with blanks/and a name that is longer than a line has room for .so",
    bytes=12, sites=3,
)  # fmt: skip


def sample(**more: Any) -> Sample:
    """One split lock."""
    values: dict[str, Any] = {
        "time": "2026-11-30T12:00:00Z", "pid": 1786, "tid": 1787, "comm": "demo",
        "operand_address": "0x5592f0d4c07e", "operand": "stats+0x3e (.data)", "past_line": 2,
        "stack": ["bump demo+0x1260", "serve demo+0x12a0", "start_thread libc.so.6+0x891f5"],
    }  # fmt: skip
    return Sample(**{**values, **more})


def site(**more: Any) -> Site:
    """One instruction."""
    values: dict[str, Any] = {
        "image": "/home/me/demo", "offset": "0x1260", "build_id": None, "function": "bump", "source": "/src/demo.c:23",
        "frames": [Frame(function="bump", source="/src/demo.c:23", inlined=False)],
        "instruction": "lock add dword ptr [rip+0x2e56], 1", "operand_size": 4, "hits": 300, "processes": 1,
        "threads": 3, "samples": [sample()],
    }  # fmt: skip
    return Site(**{**values, **more})


def report(sites: list[Site], *unmonitored: Unmonitored, mode: str = "warn", watched: Watched | None = None) -> Report:
    """A whole run."""
    return Report(
        schema=SCHEMA, command=["./demo"], mode=mode, exit_status=0, hits=sum(s.hits for s in sites), sites=sites,
        watched=watched or Watched(sites=985, bytes=1_600_000, images=3, processes=1), unmonitored=list(unmonitored),
    )  # fmt: skip


INLINED = site(
    function="add", source="/src/atomic.h:7", hits=12_345, processes=2, threads=1,
    frames=[
        Frame(function="add", source="/src/atomic.h:7", inlined=True),
        Frame(function="count", source="/src/demo.c:31", inlined=True),
        Frame(function="main", source=None, inlined=False),
    ],
)  # fmt: skip
BARE = site(function=None, source=None, frames=[], hits=1, samples=[])
CASES = {
    "all-watched-nothing-found": report([]),
    "all-watched-found": report([site()]),
    "part-watched-nothing-found": report([], CRYPTO),
    "part-watched-found": report([site()], CRYPTO, LONG),
    "part-watched-unknown-sites": report([], CRYPTO, JIT),
    "part-watched-unknown-bytes": report([], HIDDEN),
    "nothing-watched": report([], OFF, mode="off", watched=Watched(sites=0, bytes=0, images=0, processes=1)),
    "fatal": report([site(hits=1, threads=1)], mode="fatal"),
    "lower-bound": report([site(hits=2)], LOST),
    "inlined-and-without-names": report([INLINED, BARE]),
    "alike-sites-are-told-once": report([site(offset=f"{0x1260 + 8 * i:#x}", hits=9 - i) for i in range(4)]),
    "more-than-twenty": report([site(offset=f"{8 * i:#x}", function=f"f{i}", hits=50 - i) for i in range(23)]),
}


@pytest.mark.parametrize("name", CASES)
def test_as_it_is_in_its_file(name: str) -> None:
    text = render(CASES[name])
    assert text == (GOLDEN / f"run-{name}.txt").read_text()
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.unmonitored])
def test_the_first_line_is_no_clean_bill_where_not_all_was_watched(name: str) -> None:
    first = render(CASES[name]).splitlines()[0]
    assert first.startswith(("only part was watched", "nothing was watched"))


def test_there_is_a_file_for_each_and_no_other() -> None:
    assert {path.name for path in GOLDEN.glob("run-*.txt")} == {f"run-{name}.txt" for name in CASES}


@pytest.mark.parametrize(
    ("watched", "unseen", "said"),
    [(999_999, 1, "99.9%"), (1, 999_999, "0.0%"), (1, 1, "50.0%"), (2, 1, "66.6%"), (1_600_000, 0, "100.0%")],
)
def test_shares_are_rounded_down(watched: int, unseen: int, said: str) -> None:
    """What is not all is never called all; code of no bytes, such as a tail without sites, takes nothing away."""
    assert f": {said} of the code" in coverage(10, watched, [("x", "why", unseen, 0)])


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name, case in CASES.items():
        (GOLDEN / f"run-{name}.txt").write_text(render(case))
