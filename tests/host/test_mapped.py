"""Where code was mapped, by what is known without the process: a line's own `in FILE[...]`, a PE's ImageBase."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

import pytest

from splitlock.host.explain.based import Based
from splitlock.host.explain.line import explain
from splitlock.linux.log import Line, lines
from splitlock.report.watch import Event

_PROGRAM = """
#include <unistd.h>
__attribute__((noinline)) void bump(int *counter) { __asm__ volatile("lock addl $1, %0" : "+m"(*counter)); }
int main(void) { static int counter; bump(&counter); write(1, "x", 1); pause(); }
"""
_WAYS = {
    "pie": ["-pie", "-fPIE"], "no pie": ["-no-pie"], "one segment": ["-pie", "-fPIE", "-Wl,-z,noseparate-code"],
    "static": ["-static"],
    "32": ["-m32", "-nostdlib", "-static", "-x", "assembler-with-cpp"],
}  # fmt: skip
_32 = """
.globl _start, bump
.type bump, @function
.data
counter: .long 0
.text
_start: mov $counter, %ecx
bump:   lock incl (%ecx)
        mov $4, %eax; mov $1, %ebx; mov $1, %edx; int $0x80
        mov $29, %eax; int $0x80
.size bump, . - bump
"""


@pytest.fixture(params=list(_WAYS))
def mapped(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, int, str]:
    """A program, where its locked instruction was in a run of it, and the line of that mapping in /proc/PID/maps."""
    source = tmp_path / "demo.c"
    source.write_text(_32 if request.param == "32" else _PROGRAM)
    words = ["gcc", "-O2", "-g", *_WAYS[request.param], "-o", "demo", "demo.c"]
    subprocess.run(words, cwd=tmp_path, check=True)
    program = tmp_path / "demo"
    with subprocess.Popen([program], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.read(1)
        maps = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
        with open(f"/proc/{process.pid}/mem", "rb", buffering=0) as memory:
            for one in maps:
                low, high = (int(word, 16) for word in one.split()[0].split("-"))
                if one.endswith(str(program)) and "x" in one.split()[1]:
                    memory.seek(low)
                    code = memory.read(high - low)
                    at = code.find(b"\xf0\xff\x01" if request.param == "32" else b"\xf0\x83\x07\x01")
                    if at >= 0:
                        process.kill()
                        return program, low + at, one
        process.kill()
    raise AssertionError("the locked instruction is not in memory")


def killed(address: int, mapping: str, *, offset: bool, file: str = "demo", comm: str = "demo") -> Line:
    """What mode fatal logs, as print_vma_addr() in mm/memory.c has it, before 6.10 and since."""
    span, _, skipped = mapping.split()[:3]
    low, high = (int(word, 16) for word in span.split("-"))
    first = f"{address - low + int(skipped, 16):x}," if offset else ""
    text = f"traps: {comm}[4185] trap alignment check ip:{address:x} sp:7ffc0a error:0"
    (made,) = lines(f"{text} in {file}[{first}{low:x}+{high - low:x}]")
    return made


def bumped(event: Event) -> bool:
    """Is it the program's own place?"""
    return event.place is not None and event.place.function == "bump" and event.place.instruction is not None


@pytest.mark.parametrize("offset", [False, True])
def test_by_the_line_alone(mapped: tuple[Path, int, str], offset: bool) -> None:
    """No base is given: the kernel has said where the file was mapped."""
    program, address, mapping = mapped
    line = killed(address, mapping, offset=offset)
    assert bumped(explain(line, Based(str(program), None, line)))
    outside = killed(address, mapping, offset=offset, file="libother.so")
    assert bumped(explain(outside, Based(str(program), None, outside)))  # a copy under another name
    wrong = explain(outside, Based("/bin/true", None, outside))
    assert wrong.cause in ("does-not-fit", "other-code", "outside")
    assert wrong.place is None or wrong.place.instruction is None
    given = explain(line, Based(str(program), 0x10000, line))  # the user's word stands
    assert not bumped(given)


def test_a_library(tmp_path: Path) -> None:
    """Every executable mapping of this very process: each locked instruction is found at its own place."""
    from splitlock.image.loaded import Loaded

    seen = 0
    for mapping in Path("/proc/self/maps").read_text().splitlines():
        words = mapping.split()
        if "x" not in words[1] or not words[-1].startswith("/") or ".so" not in words[-1] or words[4] == "0":
            continue
        image = Loaded(words[-1], os.open(words[-1], os.O_RDONLY))
        low, high = (int(word, 16) for word in words[0].split("-"))
        code = image.read(image.address(int(words[2], 16)) or 0, high - low)
        at = code.find(b"\xf0\x0f\xb1")  # lock cmpxchg
        if at < 0:
            continue
        for offset in (False, True):
            line = killed(low + at, mapping, offset=offset, file=Path(words[-1]).name)
            event = explain(line, Based(words[-1], None, line))
            assert event.place, (mapping, event.note)
            assert event.place.offset == f"{(image.address(int(words[2], 16)) or 0) + at:#x}"
            assert event.place.instruction
            seen += 1
    assert seen >= 2


def test_what_does_not_fit(mapped: tuple[Path, int, str]) -> None:
    program, address, mapping = mapped
    low, high = (int(word, 16) for word in mapping.split()[0].split("-"))
    longer = mapping.replace(f"{high:x}", f"{high + 0x7000:x}")
    line = killed(address, longer, offset=False)
    event = explain(line, Based(str(program), None, line))
    assert event.cause == "does-not-fit"
    assert f"{high - low + 0x7000:#x} bytes at {low:#x}" in event.note
    assert "--base" in event.note


def test_the_line_of_a_task_that_is_gone() -> None:
    """It names the file to give."""
    (line,) = lines(
        "traps: demo[4194305] trap alignment check ip:55d0c42c5260 sp:7ff error:0 in demo[55d0c42c5000+1000]"
    )
    event = explain(line)
    assert event.cause == "gone"
    assert "--image demo" in event.note
    assert "split_lock_mitigate" not in event.note


def portable(base: int, bits: int) -> tuple[bytes, int]:
    """A PE of one section, which exports two functions; and the address of the locked one's instruction, from its base.

    Microsoft's "PE Format": headers, section table, export directory.
    """
    machine, magic, optional = (0x8664, 0x20B, 112) if bits == 64 else (0x14C, 0x10B, 96)
    code = b"\x90" * 5 + b"\xf0\xff\x00\xc3"  # lock inc dword ptr [rax]; ret
    names = [b"?step@Physics@game@@QEAAXXZ\0", b"JobFinished\0"]
    table = 0x1100
    directory = struct.pack("<IIHHIIIIIII", 0, 0, 0, 0, 0, 1, 2, 2, table, table + 8, table + 16)
    first = table + 20
    arrays = struct.pack("<IIIIHH", 0x1100 - 0x100, 0x1010, first, first + len(names[0]), 1, 0)
    # ordinals: the first name is the function at 0x1010, the second the one at 0x1000
    text = code.ljust(0x80, b"\x90") + directory
    text = text.ljust(0x100, b"\0") + arrays + b"".join(names)
    text = text.ljust(0x200, b"\0")
    head = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40)
    coff = b"PE\0\0" + struct.pack("<HHIIIHH", machine, 1, 0, 0, 0, optional + 128, 0x22)
    sizes = (1 << 20, 4096, 1 << 20, 4096, 0, 16)
    fields: tuple[int, ...]
    if bits == 64:
        fields = (0x1000, 0x1000, base, 0x1000, 0x200, 6, 0, 0, 0, 6, 0, 0, 0x2000, 0x200, 0, 3, 0)
        opt = struct.pack("<HBBIIIIIQIIHHHHHHIIIIHH4QII", magic, 0, 0, 0x200, 0, 0, *fields, *sizes)
    else:
        fields = (0x1000, 0x1000, 0, base, 0x1000, 0x200, 6, 0, 0, 0, 6, 0, 0, 0x2000, 0x200, 0, 3, 0)
        opt = struct.pack("<HBBIIIIIIIIIHHHHHHIIIIHH4III", magic, 0, 0, 0x200, 0, 0, *fields, *sizes)
    assert len(opt) == optional
    opt += struct.pack("<II", 0x1080, 40) + b"\0" * 120
    section = b".text\0\0\0" + struct.pack("<IIIIIIHHI", 0x200, 0x1000, 0x200, 0x200, 0, 0, 0, 0, 0x60000020)
    return (head + coff + opt + section).ljust(0x200, b"\0") + text, 0x1005


@pytest.mark.parametrize(("base", "bits"), [(0x140000000, 64), (0x180000000, 64), (0x400000, 32), (0x10000000, 32)])
def test_the_base_that_a_pe_is_linked_to(tmp_path: Path, base: int, bits: int) -> None:
    """Where Wine maps it, if it can; elsewhere it is given."""
    raw, at = portable(base, bits)
    (tmp_path / "Game.exe").write_bytes(raw)
    (line,) = lines(f"#AC: Game.exe/47861 took a split_lock trap at address: {base + at:#x}")
    event = explain(line, Based(str(tmp_path / "Game.exe")))
    assert event.place, event.note
    assert event.place.function == "JobFinished+0x5"
    assert event.place.offset == f"{at:#x}"
    assert event.place.instruction == f"lock inc dword ptr [{'rax' if bits == 64 else 'eax'}]"
    (moved,) = lines(f"#AC: Game.exe/47861 took a split_lock trap at address: {0x7F0000000000 + at:#x}")
    assert explain(moved, Based(str(tmp_path / "Game.exe"))).cause == "outside"
    assert explain(moved, Based(str(tmp_path / "Game.exe"), 0x7F0000000000)).place == event.place.__class__(
        **{name: getattr(event.place, name) for name in event.place.__struct_fields__ if name != "instruction_address"},
        instruction_address=f"{0x7F0000000000 + at:#x}",
    )
    from splitlock.image.loaded import Loaded

    image = Loaded("Game.exe", os.open(tmp_path / "Game.exe", os.O_RDONLY))
    assert image.frames(0x1012)[0].function == "public: void __cdecl game::Physics::step(void)+0x2"
