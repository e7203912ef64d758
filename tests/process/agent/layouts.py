"""What a C compiler says of a header: its DWARF, flattened."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from elftools.dwarf.die import DIE
from elftools.elf.elffile import ELFFile


class Field(NamedTuple):
    """One number: its path within the structure, where it is, and its size, bytes."""

    name: str
    offset: int
    size: int


class Header:
    """A C file's structures and enumerators."""

    def __init__(self, directory: Path, *lines: str, include: Path) -> None:
        (directory / "layout.c").write_text("\n".join(lines) + "\n")
        made = directory / "layout.o"
        command = ["gcc", "-g", "-fno-eliminate-unused-debug-types", f"-I{include}", "-c", "-o", str(made)]
        subprocess.run([*command, str(directory / "layout.c")], check=True)
        self.enumerators: dict[str, int] = {}
        self._structs: dict[str, DIE] = {}
        with made.open("rb") as file:
            for unit in ELFFile(file).get_dwarf_info().iter_CUs():
                for die in unit.iter_DIEs():
                    self._note(die)
            self.fields = {name: self._fields(die, "", 0) for name, die in self._structs.items()}
            self.sizes = {name: _value(die, "DW_AT_byte_size") for name, die in self._structs.items()}

    def _note(self, die: DIE) -> None:
        name = _name(die)
        if die.tag == "DW_TAG_structure_type" and name and "DW_AT_byte_size" in die.attributes:
            self._structs[name] = die
        elif die.tag == "DW_TAG_enumerator":
            self.enumerators[name] = _value(die, "DW_AT_const_value")

    def offset(self, name: str, field: str) -> int:
        """Of a member, or of the first number in it."""
        return next(f.offset for f in self.fields[name] if re.match(rf"{field}(\W|$)", f.name))

    def _fields(self, die: DIE, prefix: str, base: int) -> list[Field]:
        found = []
        for member in die.iter_children():
            if member.tag == "DW_TAG_member":
                at = base + (_value(member, "DW_AT_data_member_location") if die.tag != "DW_TAG_union_type" else 0)
                found += self._flat(member.get_DIE_from_attribute("DW_AT_type"), prefix + _name(member), at)
        return found

    def _flat(self, kind: DIE, name: str, at: int) -> list[Field]:
        while kind.tag in ("DW_TAG_typedef", "DW_TAG_atomic_type", "DW_TAG_volatile_type", "DW_TAG_const_type"):
            kind = kind.get_DIE_from_attribute("DW_AT_type")
        if kind.tag == "DW_TAG_structure_type":
            return self._fields(kind, f"{name}.", at)
        if kind.tag != "DW_TAG_array_type":
            return [Field(name, at, _value(kind, "DW_AT_byte_size"))]
        element = kind.get_DIE_from_attribute("DW_AT_type")
        counts = [_value(d, "DW_AT_upper_bound") + 1 for d in kind.iter_children()]
        first = self._flat(element, f"{name}[0]", at)
        size = max(f.offset + f.size for f in first) - at
        if len(counts) != 1 or counts[0] > 64 or size < 2:  # of a large one, or of bytes, where it begins is enough
            return [Field(name, at, size * counts[0])]
        return [f for i in range(counts[0]) for f in self._flat(element, f"{name}[{i}]", at + i * size)]


def of_format(format_: str) -> list[tuple[int, int]]:
    """(offset, size) of each value of a `struct` format without padding of its own, such as "<II3Q"."""
    assert format_[0] == "<"
    found, at = [], 0
    for count, code in re.findall(r"(\d*)([a-zA-Z])", format_):
        if code == "s":
            found.append((at, int(count)))
            at += int(count)
            continue
        size = struct.calcsize(f"<{code}")
        for _ in range(int(count or 1)):
            found.append((at, size))
            at += size
    return found


def _name(die: DIE) -> str:
    attribute = die.attributes.get("DW_AT_name")
    return attribute.value.decode() if attribute else ""


def _value(die: DIE, attribute: str) -> int:
    value: Any = die.attributes[attribute].value
    return int(value)
