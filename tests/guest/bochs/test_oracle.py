"""The processor of `--vmx` against a rule of its own: which instruction, where, gets what, in each place it can be.

oracle.c runs the instructions and says of each whether what happened was whole; here is what should have happened.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from guest.bochs.image import Kind, disc, kinds
from guest.conftest import Run

_OFFSETS = range(-8, 1)  # of an operand, from where a line or a page ends
_ENDS = ("line", "page", "missing page", "read-only page", "read-only page before")
_KINDS = kinds()
_ROW = re.compile(r"^oracle: ([0-9a-f]+) ([0-9a-f]+) (\S+)\r?$", re.M)


class Place(NamedTuple):
    """A place of oracle.c, at CPL 0; the next number is the same at CPL 3."""

    name: str  #: as the report has it
    splits: str  #: what a split lock gets there at CPL 0 and at CPL 3: letters of oracle.c
    asked: str = ""  #: what a misaligned access gets at CPL 3, where CR0.AM and EFLAGS.AC are set


_SPLIT_LOCKS = {
    0x00: Place("no VMX", ".."),
    0x02: Place("no VMX", "..", asked="A"),
    0x04: Place("no VMX", "AA"),
    0x06: Place("VMX root", "AA"),
    0x08: Place("guest", "AA"),
    0x0A: Place("guest", "II"),
    0x0C: Place("guest", ".."),
    0x0E: Place("guest", "II", asked="I"),
}
_BUS_LOCKS = {
    0x10: Place("no VMX", ".."),
    0x12: Place("no VMX", ".D"),
    0x14: Place("VMX root", ".D"),
    0x16: Place("guest", ".."),
    0x18: Place("guest", ".D"),
    0x1A: Place("guest", ".Q"),
    0x1C: Place("guest", "EE"),
    0x1E: Place("guest", "EF"),
}


def splits(kind: Kind, offset: int) -> bool:
    """A locked access that has bytes on both sides (Intel SDM vol. 3, 10.1.2.3)."""
    return kind.locked and offset < 0 < offset + kind.size


def expected(kind: Kind, place: Place, cpl: int, end: str, offset: int) -> str:
    """The letters that are right. A page fault comes before what the access itself is (SDM vol. 3, 7.9, table 7-2).

    Which of page fault and alignment check comes first is left open for those who asked: all of these are faults of
    one class there.
    """
    faults = end == "read-only page before" and offset < 0
    faults = faults or (end in ("missing page", "read-only page") and offset + kind.size > 0)
    if place.asked and cpl == 3 and offset % kind.size:
        return place.asked + "P" * faults
    if faults:
        return "P"
    return place.splits[cpl == 3] if splits(kind, offset) else "."


def _check(rows: dict[tuple[int, int], str], places: dict[int, Place]) -> None:
    assert {place for place, _ in rows} == {number + cpl for number in places for cpl in (0, 1)}
    assert len(rows) == 2 * len(places) * len(_KINDS)
    where = [(end, offset) for end in _ENDS for offset in _OFFSETS]
    wrong = []
    for (number, which), letters in rows.items():
        assert len(letters) == len(where)
        kind, place, cpl = _KINDS[which], places[number & ~1], 3 * (number & 1)
        for letter, (end, offset) in zip(letters, where, strict=True):
            wanted = expected(kind, place, cpl, end, offset)
            if letter not in wanted:
                wrong.append(f"{number:#x} CPL {cpl}, {kind.text} at {end} {offset:+}: {letter}, not {wanted}")
    assert not wrong, f"{len(wrong)} wrong:\n" + "\n".join(wrong[:20])


def _counts(places: dict[int, Place]) -> Counter[tuple[str, str]]:
    """How many of each letter each place is to have, of split locks."""
    found: Counter[tuple[str, str]] = Counter()
    for place in places.values():
        for cpl in (0, 3):
            for kind in _KINDS:
                for end in ("line", "page"):
                    split = [offset for offset in _OFFSETS if splits(kind, offset)]
                    letters = [expected(kind, place, cpl, end, offset) for offset in split]
                    for letter in letters:
                        asked = place.asked and cpl == 3  # none of these is for the split lock
                        found[place.name, "asked" if asked else letter] += 1
    return found


def _ran(guest: Run, iso: Path, traps: Path, *words: str) -> tuple[dict[tuple[int, int], str], dict[str, Any]]:
    command = ["--vmx", *words, "--cdrom", iso, "-m", "32M", "--until", "oracle: done", "--duration", "200"]
    _, report = guest(*command, "--traps", traps, timeout=260)
    rows = {(int(place, 16), int(kind, 16)): letters for place, kind, letters in _ROW.findall(report["console"])}
    assert rows, report["console"][-2000:]
    return rows, report


def _of(report: dict[str, Any], place: str) -> Counter[str]:
    """What the report counts at a place."""
    found: Counter[str] = Counter()
    for site in report["sites"]:
        processor = site["processor"]
        if processor["place"] == place:
            found.update(hits=site["hits"], traps=site["traps"])
            found.update({count: processor[count] for count in ("delivered", "exits", "injected", "triple_faults")})
    return found


@pytest.fixture(scope="module")
def iso(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image."""
    return disc(tmp_path_factory.mktemp("oracle"))


@pytest.mark.usefixtures("emulator")
def test_split_locks(guest: Run, iso: Path, tmp_path: Path) -> None:
    """#AC for each split lock and for nothing else, and the report counts what became of each."""
    rows, report = _ran(guest, iso, tmp_path / "traps")
    _check(rows, _SPLIT_LOCKS)
    wanted = _counts(_SPLIT_LOCKS)
    for place in ("no VMX", "VMX root", "guest"):
        traps, injected = wanted[place, "A"] + wanted[place, "I"], wanted[place, "I"]
        assert _of(report, place) == Counter(
            hits=wanted[place, "."], traps=traps, delivered=wanted[place, "A"], exits=injected, injected=injected,
            triple_faults=0,
        )  # fmt: skip
    assert (tmp_path / "traps").read_text().count('"trap":"#AC"') == report["detection"]["traps"]


@pytest.mark.usefixtures("emulator")
def test_bus_locks(guest: Run, iso: Path, tmp_path: Path) -> None:
    """#DB behind each split lock at CPL 3 where DEBUGCTL asks for it, VM exits where the hypervisor does."""
    rows, report = _ran(guest, iso, tmp_path / "traps", "--bus-lock")
    _check(rows, _BUS_LOCKS)
    wanted = _counts(_BUS_LOCKS)
    for place in ("no VMX", "VMX root", "guest"):
        of = Counter({letter: wanted[place, letter] for letter in ".DQEF"})
        assert _of(report, place) == Counter(
            hits=of.total(), traps=of["D"] + of["Q"] + of["E"] + of["F"], delivered=of["D"] + of["F"],
            exits=of["Q"] + of["E"] + of["F"], injected=of["Q"], triple_faults=0,
        )  # fmt: skip
