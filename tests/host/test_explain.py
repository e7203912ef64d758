"""From an address to the instruction: live processes, saved maps, images alone; ELF of 64 and 32 bits, and PE."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from importlib.metadata import distribution
from itertools import pairwise
from pathlib import Path

import pefile
import pytest

from splitlock.host.explain.based import Based
from splitlock.host.explain.line import explain
from splitlock.host.explain.space import Saved
from splitlock.linux.log import Line, parse
from splitlock.report.watch import Event
from splitlock.x86 import logged

_WAITS = """
#include <pthread.h>
#include <unistd.h>
__attribute__((noinline)) void bump(int *counter) { __asm__ volatile("lock addl $1, %0" : "+m"(*counter)); }
__attribute__((noinline)) int swap(int *counter, int value)
{
    __asm__ volatile("xchg %0, %1" : "+r"(value), "+m"(*counter));
    return value;
}
static void *wait(void *unused) { pause(); return unused; }
int main(void)
{
    static int counter;
    pthread_t thread;
    bump(&counter); swap(&counter, 2);
    pthread_create(&thread, 0, wait, 0);
    pthread_setname_np(thread, "CPU 0/KVM");
    write(1, "x", 1);
    pause();
}
"""
_32 = """
.globl _start, bump
.type bump, @function
_start: mov $counter, %ebx
bump:   lock incl (%ebx)
        ret
.size bump, . - bump
.data
counter: .long 0
"""


@pytest.fixture(scope="session")
def waits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("waits")
    (place / "waits.c").write_text(_WAITS)
    subprocess.run(["gcc", "-O2", "-g", "-pthread", "-o", "waits", "waits.c"], cwd=place, check=True)
    return place / "waits"


@pytest.fixture
def process(waits: Path) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([waits, "some", "words"], stdout=subprocess.PIPE) as made:
        assert made.stdout
        made.stdout.read(1)
        yield made
        made.kill()


def _locked(path: Path, mnemonic: str) -> tuple[int, int]:
    """By objdump: where a locked instruction is in a file, and where the next one."""
    listing = subprocess.run(["objdump", "-d", "--no-show-raw-insn", path], capture_output=True, text=True, check=True)
    lines = [re.match(r" *([0-9a-f]+):\t(.*)", line) for line in listing.stdout.splitlines()]
    found = [match for match in lines if match]
    at = next(number for number, match in enumerate(found) if re.match(mnemonic, match[2]))
    return int(found[at][1], 16), int(found[at + 1][1], 16)


def _line(exception: str, pid: int, address: int, comm: str = "waits") -> Line:
    word = "split_lock" if exception == "#AC" else "bus_lock"
    line = parse(f"x86/split lock detection: {exception}: {comm}/{pid} took a {word} trap at address: {address:#x}")
    assert line
    return line


def _base(pid: int, path: Path) -> int:
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return int(next(line for line in lines if line.endswith(str(path))).split("-")[0], 16)


def _is_bump(event: Event, path: Path, at: int) -> None:
    place = event.place
    assert place
    assert (place.image, place.offset, place.function, place.operand_size) == (str(path), f"{at:#x}", "bump", 4)
    assert place.instruction
    assert place.instruction.startswith("lock add dword ptr [rdi]")
    assert place.source
    assert place.source.endswith("waits.c:4")
    assert place.certain


@pytest.mark.parametrize("exception", ["#AC", "#DB"])
def test_live(process: subprocess.Popen[bytes], waits: Path, exception: str) -> None:
    at, after = _locked(waits, "lock addl")
    address = _base(process.pid, waits) + (at if exception == "#AC" else after)
    event = explain(_line(exception, process.pid, address))
    _is_bump(event, waits, at)
    assert event.process
    assert event.process.pid == process.pid
    assert event.process.command == [str(waits), "some", "words"]
    assert event.place
    assert event.place.instruction_address == f"{_base(process.pid, waits) + at:#x}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can still read the file: test_reasons.py has the others")
def test_a_deleted_image(process: subprocess.Popen[bytes], waits: Path) -> None:
    at, _ = _locked(waits, "lock addl")
    address = _base(process.pid, waits) + at
    raw = waits.read_bytes()
    waits.unlink()
    try:
        event = explain(_line("#AC", process.pid, address))
        _is_bump(event, waits, at)
    finally:
        waits.write_bytes(raw)
        waits.chmod(0o755)


@pytest.mark.parametrize("exception", ["#AC", "#DB"])
@pytest.mark.parametrize("how", ["maps", "based"])
def test_from_files(process: subprocess.Popen[bytes], waits: Path, exception: str, how: str) -> None:
    """Without the process: xchg, which has no prefix to be found by."""
    maps = Path(f"/proc/{process.pid}/maps").read_bytes()
    base = _base(process.pid, waits)
    at, after = _locked(waits, r"xchg +%e..,\(%rdi\)")
    space = Saved(maps) if how == "maps" else Based(str(waits), base)
    event = explain(_line(exception, 1, base + (at if exception == "#AC" else after)), space)
    assert event.place
    assert (event.place.function, event.place.offset) == ("swap", f"{at:#x}")
    assert event.place.instruction
    assert event.place.instruction.startswith("xchg [rdi], e")


def test_a_virtual_processors_thread(process: subprocess.Popen[bytes], waits: Path) -> None:
    """An address that is none of the process's is the guest's; one of its own code is not."""
    (tid,) = {int(path.name) for path in Path(f"/proc/{process.pid}/task").iterdir()} - {process.pid}
    event = explain(_line("#AC", tid, 0xBFF4B050, "CPU 0/KVM"))
    assert event.guest
    assert event.place is None
    assert "an address in the guest" in event.note
    at, _ = _locked(waits, "lock addl")
    own = explain(_line("#AC", tid, _base(process.pid, waits) + at, "CPU 0/KVM"))
    assert not own.guest
    _is_bump(own, waits, at)


def test_32_bits(tmp_path: Path) -> None:
    source, program = tmp_path / "bits.S", tmp_path / "bits"
    source.write_text(_32)
    subprocess.run(["gcc", "-m32", "-nostdlib", "-static", "-o", program, source], check=True)
    at, after = _locked(program, "lock incl")
    for line in (_line("#AC", 1, at), _line("#DB", 1, after)):
        event = explain(line, Based(str(program)))
        assert event.place
        assert (event.place.instruction, event.place.function) == ("lock inc dword ptr [ebx]", "bump")


@pytest.mark.parametrize("name", ["t32.exe", "t64.exe"])
def test_pe_as_wine_maps_it(tmp_path: Path, name: str) -> None:
    """Headers mapped from the file, sections copied into memory of no file: what /proc/PID/maps then has."""
    path = Path(str(distribution("distlib").locate_file("distlib"))) / name
    pe = pefile.PE(str(path))
    bits = 64 if "64" in name else 32
    text = next(section for section in pe.sections if section.Name.startswith(b".text"))
    code = text.get_data()
    places = [
        found for found in range(len(code)) if code[found] == 0xF0 and logged.at(code[found : found + 15], 0, bits)
    ]
    assert places
    address = text.VirtualAddress + places[0]
    base = 0x400000
    end = base + pe.OPTIONAL_HEADER.SizeOfImage
    maps = f"{base:08x}-{base + 0x1000:08x} r--p 00000000 08:01 77 {path}\n"
    maps += f"{base + 0x1000:08x}-{end:08x} r-xp 00000000 00:00 0\n"
    event = explain(_line("#AC", 1, base + address, name[:15]), Saved(maps.encode()))
    assert event.place
    assert (event.place.image, event.place.offset) == (str(path), f"{address:#x}")
    assert event.place.instruction
    assert event.place.instruction.startswith("lock ")


def test_the_one_before_is_found_without_a_start() -> None:
    """Over a whole libc: what ends where the next instruction begins is the locked instruction that is there."""
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", "-j", ".text", "/lib/x86_64-linux-gnu/libc.so.6"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    found = [(int(m[1], 16), m[2]) for m in re.finditer(r"^ *([0-9a-f]+):\t(.*)$", listing, re.M)]
    space = Based("/lib/x86_64-linux-gnu/libc.so.6", 0)
    right = wrong = 0
    for (at, text), (after, _) in pairwise(found):
        if not re.match(r"lock |xchg .*\(", text):
            continue
        code = space.image.read(after - 64, 64)
        expected = logged.at(space.image.read(at, 15), at)
        if expected is None:
            continue
        got, _ = logged.before(code, after)
        right += bool(got and got.ip == at)
        wrong += not (got and got.ip == at)
        known, certain = logged.before(
            space.image.read(start := space.image.start(after) or at, after - start), after, start=True
        )
        assert known is not None
        assert (known.len, certain) == (after - at, True)
    assert right > 100
    assert wrong <= right // 100
