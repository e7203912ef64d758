"""A kernel whose symbols cannot be read: it is said that there is one, and its memory is not read over and over."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from guest import boots
from guest.conftest import Run
from modules.debian import vmlinuz

from splitlock.guest import linux
from splitlock.guest.memory import Memory
from splitlock.guest.names import Names
from splitlock.guest.shared import Shared
from splitlock.image import kallsyms
from splitlock.image.bzimage import vmlinux


@pytest.fixture
def memory() -> Iterator[Memory]:
    """Of a guest with a kernel that has a banner and no symbols."""
    made = Memory(1 << 20)
    made.ram[0x8000:0x8010] = b"\x90" * 16
    made.ram[0x9000:0x9020] = b"Linux version 9.9.9-toy (x) #1\n\0"
    yield made
    made.close()


def test_read_once(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for each kernel, however often somebody asks; the report has its version and the reason."""
    heads = [b"one"] * 5 + [b"two"] * 5
    running = iter(linux.Code(0xFFFF_FFFF_8100_0000, 0x8000, head) for head in heads)
    monkeypatch.setattr(linux, "code", lambda *_: next(running))
    reads: list[int] = []

    def pread(_fd: int, size: int, at: int) -> bytes:
        reads.append(at)
        return memory.ram[at : at + size]

    monkeypatch.setattr(os, "pread", pread)
    shared = Shared()
    names = Names(memory, shared, 1)
    for _ in heads:
        assert names.find_kernel(0x1000, 0) is None
    assert reads == [0x8000, 0x8000]
    assert names.unreadable is not None
    assert names.unreadable.release == "9.9.9-toy"
    assert "CONFIG_KALLSYMS" in str(names.unreadable)
    shared.close()


@pytest.mark.slow
def test_said(guest: Run, built: dict[str, Path], tmp_path: Path) -> None:
    """6.1 with one wrong entry in the index of its tokens: it boots; what splits is counted, and has no name."""
    image = bytearray(vmlinux(vmlinuz("amd64").read_bytes(), 1 << 30))
    _, _, end = kallsyms._find_tokens(bytes(image))
    image[end - 2 : end] = b"\xff\xff"
    (tmp_path / "vmlinux").write_bytes(image)
    initramfs = boots.initramfs(tmp_path / "initramfs", "demo 3000", {"demo": built["demo"]})
    words = ["--kernel", tmp_path / "vmlinux", "--initrd", initramfs, "--append", "console=ttyS0 quiet"]
    status, report = guest(*words)
    assert (status, report["hits"], report["ready"]) == (1, 3000, False)
    assert {(site["where"], site["comm"]) for site in report["sites"]} == {("user", None)}
    assert report["watched"]["kernel"].startswith("6.1.0-")
    assert any("was seen, but its symbols cannot be read (no table" in line for line in report["unwatched"])
    assert not any("no Linux kernel" in line for line in report["unwatched"])


def _renamed(image: bytearray, names: set[str]) -> None:
    """Give symbols other names, of the same length."""
    table, tokens, _ = kallsyms._find_tokens(bytes(image))
    markers_at, markers = kallsyms._find_markers(bytes(image), table)
    at, number = kallsyms._find_names(bytes(image), markers_at, markers)
    other = tokens.index(b"Z")
    for _ in range(number):
        head, length = kallsyms._length(bytes(image[at : at + 2]), 0)
        name = b"".join(tokens[byte] for byte in image[at + head : at + length])
        if name[1:].decode() in names:
            image[at + length - 1] = other
        at += length


@pytest.mark.slow
def test_without_symbols_of_data(guest: Run, built: dict[str, Path], tmp_path: Path) -> None:
    """As of CONFIG_KALLSYMS_ALL=n: functions have names, programs have none, and that is said."""
    image = bytearray(vmlinux(vmlinuz("amd64").read_bytes(), 1 << 30))
    _renamed(image, {"init_top_pgt", "__start_BTF", "__stop_BTF", "linux_banner", "modules", "__per_cpu_offset"})
    (tmp_path / "vmlinux").write_bytes(image)
    initramfs = boots.initramfs(tmp_path / "initramfs", "demo 3000", {"demo": built["demo"]})
    words = ["--kernel", tmp_path / "vmlinux", "--initrd", initramfs, "--append", "console=ttyS0 quiet"]
    status, report = guest(*words)
    assert (status, report["hits"]) == (1, 3000)
    assert {(site["where"], site["comm"]) for site in report["sites"]} == {("user", None)}
    assert report["watched"]["kernel"].startswith("6.1.0-")
    assert any("CONFIG_KALLSYMS_ALL" in line for line in report["unwatched"])
    assert not any("no Linux kernel" in line for line in report["unwatched"])
