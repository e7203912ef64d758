"""What GNU binutils say of a file: the oracle for what is found in it. objdump decodes linearly, section by section."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from x86.building import run

from splitlock.x86.privileged import DEFAULT

# One line of `objdump -d`: an address, what it is told to leave out, and an instruction that is of a kind of ours.
_MNEMONICS = sorted({kind.lower().split()[0] for kind in DEFAULT} - {"mov"}, key=len, reverse=True)
_PREFIXES = r"(?:(?:rep|repz|repnz|data16|rex\.?\w*|[c-gs]s) )*"
_LISTED = re.compile(
    r"^Disassembly of section (?P<section>.*):$|"
    rf"^ *(?P<at>[0-9a-f]+):\t{_PREFIXES}"
    rf"(?:(?P<kind>{'|'.join(_MNEMONICS)})[bwlqd]?(?:\s|$)|mov +[^#\n]*,%(?P<class>cr|dr|db)(?P<number>\d+))",
    re.MULTILINE,
)
_SECTION = re.compile(
    r"^ +\[ *(?P<number>\d+)\] (?P<name>\S+) +(?P<type>\S+) +(?P<address>[0-9a-f]{16}) (?P<offset>[0-9a-f]+) "
    r"(?P<size>[0-9a-f]+) [0-9a-f]+ +(?P<flags>[A-Za-z]*) +\d+ +\d+ +\d+$",
    re.MULTILINE,
)
_SYMBOL = re.compile(
    r"^ +\d+: (?P<value>[0-9a-f]{16}) +(?P<size>\d+|0x[0-9a-f]+) (?P<type>\w+) +(?P<bind>\w+) +(?P<visibility>\w+) +"
    r"(?P<section>\w+)(?: (?P<name>\S+))?$",
    re.MULTILINE,
)
_RELOCATION = re.compile(
    r"^Relocation section '\.rela(?P<section>\S*)'|^(?P<offset>[0-9a-f]{16})  [0-9a-f]{16} (?P<type>R_X86_64_\w+) +"
    r"[0-9a-f]{16} (?P<symbol>\S+) (?P<sign>[+-]) (?P<addend>[0-9a-f]+)$",
    re.MULTILINE,
)


class Section(NamedTuple):
    """A section header."""

    number: int
    name: str
    type: str
    address: int
    offset: int
    size: int
    flags: str


class Symbol(NamedTuple):
    """A symbol; `section` is a number, or UND, ABS, COM."""

    name: str
    value: int
    size: int
    type: str
    section: str


class Relocation(NamedTuple):
    """A relocation and the section that it changes."""

    section: str
    offset: int
    type: str
    symbol: str
    addend: int


def instructions(path: Path) -> list[tuple[str, int, str]]:
    """The privileged instructions that objdump lists: section, address and kind, sorted."""
    found = []
    section = ""
    for match in _LISTED.finditer(run("objdump", "-d", "--no-show-raw-insn", path)):
        if match["section"] is not None:
            section = match["section"]
            continue
        register = "CR" if match["class"] == "cr" else "DR"
        kind = match["kind"].upper() if match["kind"] else f"MOV {register}{match['number']}"
        found.append((section, int(match["at"], 16), kind))
    return sorted(found)


def sections(path: Path) -> list[Section]:
    """The section headers, but for the first, which is none."""
    found = []
    for match in _SECTION.finditer(run("readelf", "-SW", path)):
        address, offset, size = (int(match[field], 16) for field in ("address", "offset", "size"))
        found.append(Section(int(match["number"]), match["name"], match["type"], address, offset, size, match["flags"]))
    return found


def symbols(path: Path) -> list[Symbol]:
    """The symbols, unnamed ones too."""
    return [
        Symbol(match["name"] or "", int(match["value"], 16), int(match["size"], 0), match["type"], match["section"])
        for match in _SYMBOL.finditer(run("readelf", "-sW", path))
    ]


def relocations(path: Path) -> list[Relocation]:
    """The relocations against symbols."""
    found = []
    section = ""
    for match in _RELOCATION.finditer(run("readelf", "-rW", path)):
        if match["section"] is not None:
            section = match["section"]
            continue
        addend = int(match["addend"], 16) * (1 if match["sign"] == "+" else -1)
        found.append(Relocation(section, int(match["offset"], 16), match["type"], match["symbol"], addend))
    return found
