"""`xchg` without a LOCK prefix outside the known functions: none that is code is missed, and data is no flood.

The oracle is objdump: which instructions there are, and in which shapes.
"""

from __future__ import annotations

import random
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Run
from x86.building import CRYPTO, LIBC, LIBSTDCXX, PYTHON, function, link, run

from splitlock.image.elf import Elf
from splitlock.image.functions import function_ranges
from splitlock.process.outside import exchanges, is_exchange
from splitlock.process.plan import build

Program = Callable[..., Path]

SITE = function("f", "lock inc dword ptr [rdi]; mov eax, 1; ret")
REASON = "code outside known functions"
OPERANDS = [
    "[rdi]", "[rdi+1]", "[rdi+0x12345678]", "[rdi+rsi*8+2]", "[rsi*2+0x40]", "[rsp]", "[rbp-3]", "[r13]", "[r12+r15]",
    "fs:[rdi]", "gs:[0x28]", "[edi]",
]  # fmt: skip
REGISTERS = ["ax", "si", "r9w", "eax", "edi", "r11d", "rax", "rbp", "r15"]


def outside(path: Path) -> list[tuple[int, int | None]]:
    """Bytes and possible locked instructions of the image's code outside known functions."""
    return [(size, sites) for reason, size, sites in build(path.read_bytes())[0].unmonitored if reason == REASON]


@pytest.mark.parametrize("operand", OPERANDS)
@pytest.mark.parametrize("register", REGISTERS)
def test_every_form_is_counted(tmp_path: Path, operand: str, register: str) -> None:
    """In front of it, what a function's text ends with; behind it, what code may be."""
    ((size, sites),) = outside(link(tmp_path, f"{SITE} nop; xchg {operand}, {register}; add eax, 1; ret"))
    assert sites is not None
    assert sites >= 1
    assert size > 3


@pytest.mark.parametrize("body", ["xchg [rdi], al", "xchg eax, esi", "xchg rax, rax", "mov eax, [rdi]"])
def test_what_never_splits_is_not(tmp_path: Path, body: str) -> None:
    assert outside(link(tmp_path, f"{SITE} nop; {body}; ret")) == []


def test_a_lock_prefix_is_counted_once(tmp_path: Path) -> None:
    ((_, sites),) = outside(link(tmp_path, f"{SITE} nop; lock xchg [rdi], eax; ret"))
    assert sites == 1


def test_behind_data_within_a_function(tmp_path: Path) -> None:
    """Decoding stops at what is no instruction (06h is none in 64-bit code); what follows is not watched."""
    ((size, sites),) = outside(
        link(tmp_path, function("f", "lock inc dword ptr [rdi]; ret; .byte 6; xchg [rdi], eax; ret"))
    )
    assert (size >= 4, sites) == (True, 1)


def test_as_a_program_meets_it(watch: Callable[..., Run], tmp_path: Path) -> None:
    """The address is aligned, so that nothing is locked across lines here."""
    (tmp_path / "raw.c").write_text(
        """
        #include <stdio.h>
        asm(".text\\n.globl raw_xchg\\nraw_xchg: mov $5, %eax\\n xchg %eax, (%rdi)\\n nop\\n ret\\n");
        int raw_xchg(void *at), value;
        int main(void) { raw_xchg(&value); printf("%d\\n", value); }
        """
    )
    subprocess.run(["gcc", "-O1", "-o", tmp_path / "raw", tmp_path / "raw.c"], check=True)
    got = watch([tmp_path / "raw"])
    assert (got.status, got.out) == (0, "5\n")
    (rest,) = got.report["unmonitored"]
    assert (rest["image"], rest["reason"], rest["sites"]) == (str(tmp_path / "raw"), REASON, 1)


@pytest.mark.parametrize("path", [LIBC, LIBSTDCXX, CRYPTO, PYTHON], ids=lambda path: path.name)
def test_real_code_is_taken_for_code(path: Path) -> None:
    """Each xchg with memory that objdump finds in a library's functions would be counted outside of one."""
    elf = Elf(path.read_bytes())
    code = [(s.vaddr, s.vaddr + s.filesz) for s in elf.executable()]
    known = function_ranges(elf)
    listed = 0
    for line in run("objdump", "-d", "-j", ".text", "-w", str(path)).splitlines():
        match = re.match(r" *([0-9a-f]+):\t((?:[0-9a-f]{2} )+) *\t(?:\w+ )*xchg +(.*)", line)
        if not match or "(" not in match[3] or "%rip" in match[3] or "lock" in line:
            continue
        raw = bytes.fromhex(match[2])
        if b"\x87" not in raw:  # of a byte
            continue
        start = int(match[1], 16) + raw.index(b"\x87")
        if not any(low <= start < high for low, high in known):  # a table, which objdump takes for code
            continue
        low, high = next((low, high) for low, high in code if low <= start < high)
        assert is_exchange(elf.read(low, high - low), start - low, low, code), line
        listed += 1
    assert listed >= 4


def test_linkage_tables_hold_none(tmp_path: Path) -> None:
    """The 136th entry pushes 87h; displacements hold any byte."""
    calls = "\n".join(f"call other{i}@plt" for i in range(600))
    for flags in ([], ["-Wl,-z,ibtplt"], ["-Wl,-z,now"], ["-fuse-ld=gold"]):
        path = link(
            tmp_path, function("f", f"{calls}\nret"), *flags, name=f"plt{len(flags)}{flags[-1:]}".replace("/", "")
        )
        elf = Elf(path.read_bytes())
        tables = [s for s in elf.sections if s.name.startswith(".plt")]
        assert tables
        assert any(b"\x68\x87\0\0\0" in elf.read(s.addr, s.size) for s in tables) or "now" in flags[-1]
        ranges = [(s.addr, s.addr + s.size) for s in elf.sections if s.name == ".text"]
        assert exchanges(elf, ranges, []) == (0, 0)


def test_plain_data_holds_none(tmp_path: Path) -> None:
    """Text, zeros, small numbers: no lines for what many tables in code are made of."""
    text = "the quick brown fox jumps over the lazy dog " * 20
    data = f'.ascii "{text}"\n.zero 512\n' + "\n".join(f".long {i}\n.quad {i}" for i in range(128))
    assert outside(link(tmp_path, f"{SITE} {data}")) == []


def test_any_bytes(tmp_path: Path) -> None:
    chance = random.Random(5)
    raw = bytes(chance.choice(b"\x87\x07\x00\xf0\xff\x0f\x66\x48\xe9\x25\x68") for _ in range(3000))
    numbers = ",".join(map(str, raw))
    ((size, sites),) = outside(link(tmp_path, f"{SITE} .byte {numbers}"))
    assert sites is not None
    assert 0 < sites <= size
