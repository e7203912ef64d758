"""Kernel symbols and types out of real kernels, and out of what is none."""

from __future__ import annotations

import random
import struct
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image.symbol_tables import BASE, LAYOUTS, Layout, Symbol
from image.symbol_tables import image as written
from modules.debian import vmlinuz

from splitlock._errors import ImageError
from splitlock.image.btf import Btf
from splitlock.image.bzimage import vmlinux
from splitlock.image.elf import Elf
from splitlock.image.kallsyms import Kallsyms

KINDS = (pytest.param("old", marks=pytest.mark.slow), "amd64", "cloud-amd64", "rt-amd64", "xz", "new")


@cache
def _image(kind: str) -> bytes:
    return vmlinux(vmlinuz(kind).read_bytes(), 1 << 30)


@cache
def _symbols(kind: str) -> Kallsyms:
    return Kallsyms(_image(kind))


@cache
def _btf(kind: str) -> bytes:
    addresses = _symbols(kind).addresses
    start = addresses["__start_BTF"]
    return Elf(_image(kind)).read(start, addresses["__stop_BTF"] - start)


@pytest.mark.parametrize("kind", KINDS)
def test_symbols(kind: str) -> None:
    """Addresses fit the file: the banner is where its symbol says, and functions begin where code does."""
    symbols, elf = _symbols(kind), Elf(_image(kind))
    assert len(symbols.addresses) > 70_000
    assert elf.read(symbols.addresses["linux_banner"], 14) == b"Linux version "
    assert symbols.addresses["_text"] == 0xFFFF_FFFF_8100_0000
    section = elf.section(".BTF")
    if section is not None and section.addr:
        assert symbols.addresses["__start_BTF"] == section.addr
        assert symbols.addresses["__stop_BTF"] == section.addr + section.size
    for name in ("ksys_read", "schedule", "do_exit"):
        assert symbols.function(symbols.addresses[name] + 4) == (name, 4)
    assert symbols.function(0x1000) is None
    assert symbols.function(symbols.addresses["__start_BTF"]) is None


def _table(chance: random.Random) -> list[Symbol]:
    """As many as have markers enough, some of one address, one with a long name; per-CPU memory at 0 comes first."""
    found = [Symbol(offset, "A", f"percpu_{offset:x}") for offset in sorted(chance.sample(range(1 << 18), 300))]
    at = BASE + 0x1000 * chance.randrange(4)
    for index in range(chance.randrange(2048, 3000)):
        letters = "".join(chance.choices("abcdefgh_stp0123456789.", k=chance.randrange(1, 40)))
        found.append(Symbol(at, chance.choice("tTdDrRbBwW"), f"{letters}{index}"))
        at += chance.choice((0, 1, 16, 4096))
    return [*found, Symbol(at, "T", "_" + "long" * chance.randrange(100))]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(12))
def test_layouts(layout: Layout, seed: int) -> None:
    """Names and addresses come back, of every layout, with and without what some kernels have besides, anywhere."""
    chance = random.Random(seed)
    percpu, order = bool(seed & 1), bool(seed & 2)
    symbols, slide = _table(chance), chance.randrange(1 << 8) << 21
    if layout == "places" or not percpu:
        symbols = [symbol for symbol in symbols if symbol.address >= BASE]
    lead = chance.randbytes(4 * seed * chance.randrange(100))
    made = written(symbols, layout, lead=lead, percpu=percpu, order=order, slide=slide)
    found = Kallsyms(made, BASE + slide)
    wanted = {symbol.name: symbol.address + slide * (symbol.address >= BASE) for symbol in reversed(symbols)}
    assert found.addresses == wanted


def test_place_of_what_is_no_file() -> None:
    """Offsets that are relative to their own place say nothing where nobody knows that."""
    symbols = [Symbol(BASE + 16 * index, "T", f"f{index}") for index in range(3000)]
    made = written(symbols, "places", lead=b"", percpu=False, order=True)
    with pytest.raises(ImageError):
        Kallsyms(made)


@pytest.mark.parametrize("kind", KINDS)
def test_types(kind: str) -> None:
    """What does not change from kernel to kernel, and what is inside what."""
    btf = Btf(_btf(kind))
    assert btf.field("task_struct", "comm").size == 16
    assert btf.size("list_head") == 16
    assert btf.offset("list_head", "prev") == 8
    assert btf.offset("file", "f_path.dentry") == btf.offset("file", "f_path") + btf.offset("path", "dentry")
    assert btf.field("module", "name").size == 56
    assert not btf.has("task_struct", "no_such_member")
    with pytest.raises(LookupError):
        btf.offset("no_such_struct", "x")


def test_no_symbols() -> None:
    """A program is no kernel."""
    for image in (
        b"",
        bytes(1 << 16),
        random.Random(1).randbytes(1 << 20),
        b"0\0001\0002\0003\0004\0005\0006\0007\0008\0009\0" * 9,
    ):
        with pytest.raises(ImageError):
            Kallsyms(image)


@given(st.integers(0, 1 << 22), st.integers(1, 64), st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_damaged_symbols(place: int, size: int, chance: random.Random) -> None:
    """Tables with holes in them: an ImageError or some names, nothing else, and soon."""
    image = _image("cloud-amd64")
    start = image.find(b"Linux version ")
    image = image[start : start + (12 << 20)]
    place %= len(image)
    damaged = image[:place] + chance.randbytes(size) + image[place + size :]
    try:
        Kallsyms(damaged)
    except ImageError:
        pass


@given(st.integers(0, 1 << 22), st.integers(1, 64), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_damaged_types(place: int, size: int, chance: random.Random) -> None:
    """An ImageError or a LookupError."""
    data = _btf("cloud-amd64")
    place %= len(data)
    damaged = data[:place] + chance.randbytes(size) + data[place + size :]
    try:
        btf = Btf(damaged)
        for structure, path in (("task_struct", "comm"), ("module", "mem"), ("mm_struct", "mm_mt.ma_root")):
            btf.has(structure, path)
    except ImageError:
        pass


def test_cut_short() -> None:
    """At every length of the header, and at some behind it."""
    data = _btf("cloud-amd64")
    for length in (*range(32), 1000, len(data) // 2):
        with pytest.raises(ImageError):
            Btf(data[:length])
    with pytest.raises(ImageError, match="unknown kind"):
        Btf(struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 12, 12, 1) + struct.pack("<III", 0, 30 << 24, 0) + b"\0")
