"""The tests' judge: which split locks a program does, counted by QEMU instead of by us.

`qemu-x86_64` (Debian's qemu-user, 7.2) runs the program with the plugin programs/oracle_plugin.c, which looks at every
locked instruction's operand. QEMU emulates those instructions, so no real split lock is executed and the machine is
not slowed down, however many the program does. The counts are exact; nothing here is shared with src/splitlock.

What it sees, and what not:
- all threads, libraries (dlopen and dlclose too), the dynamic loader, JIT code, static programs;
- forked children: they stay inside QEMU with the plugin, and their hits are added to the parent's;
- **exec'ed children are unseen**: what execve starts runs natively, without QEMU. That is also a danger: *a real split
  lock in such a child stalls the whole host*, so never give a program here that executes one that does many;
- a program that a signal kills never lets QEMU's plugins finish: OracleError, not a wrong count. The same for one that
  chroots away from the result file. A thread still running while another one execs may lose its last hits.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parent / "programs" / "oracle_plugin.c"

_PT_LOAD = 1


class OracleError(Exception):
    """The oracle has no exact answer: no build, no result, or a result that contradicts itself."""


@dataclass(frozen=True)
class Site:
    """A locked instruction that crossed a 64-byte line.

    `pc` is the guest's virtual address, `size` the operand's in bytes. `image` is the mapped file (None for code in no
    file) and `vaddr` the instruction's ELF virtual address in it, before any load bias (None when the image is no ELF
    file that has it in a segment).
    """

    pc: int
    hits: int
    size: int
    image: Path | None
    vaddr: int | None


@dataclass(frozen=True)
class OracleRun:
    """One program run: its sites with hits by rising `pc`, its exit status (negative: the signal), what it printed.

    `executed` is the number of locked instructions executed, split or not; None unless it was asked for.
    """

    sites: list[Site]
    returncode: int
    stdout: bytes
    stderr: bytes
    executed: int | None

    @property
    def hits(self) -> int:
        """How many split locks the program and its forked children did."""
        return sum(site.hits for site in self.sites)

    def by_place(self) -> dict[tuple[Path | None, int | None], int]:
        """Hits by (image, ELF virtual address): the way to compare with a run at other load addresses."""
        places: Counter[tuple[Path | None, int | None]] = Counter()
        for site in self.sites:
            places[site.image, site.vaddr] += site.hits
        return dict(places)


def build_plugin(plugin: Path) -> Path:
    """Compile the plugin to the shared object `plugin` unless it is there and as new as its source. Returns `plugin`.

    Raises OracleError with the compiler's words. Safe when several test processes build the same one at once.
    """
    if plugin.exists() and plugin.stat().st_mtime >= SOURCE.stat().st_mtime:
        return plugin
    plugin.parent.mkdir(parents=True, exist_ok=True)
    # Into a file of our own, then renamed: a process that has the old one loaded must not see it change.
    handle, fresh = tempfile.mkstemp(dir=plugin.parent, prefix=plugin.name)
    os.close(handle)
    command = ["gcc", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-pthread", "-o", fresh, str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        os.unlink(fresh)
        raise OracleError(f"{SOURCE}: does not compile\n{done.stderr}")
    os.replace(fresh, plugin)
    return plugin


def qemu_run(
    cmd: Sequence[str],
    plugin: Path,
    *,
    count_all: bool = False,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 300,
) -> OracleRun:
    """Run `cmd` under QEMU with the oracle plugin and say which split locks it did.

    `cmd[0]` is an ELF program, 64-bit or 32-bit, with a slash in it or found on PATH; scripts are not possible (name
    their interpreter). `plugin` is the shared object to use, built when missing. `count_all` counts all locked
    instructions too, at the cost of a call for each. `timeout` is in seconds; its passing raises
    subprocess.TimeoutExpired. Raises OracleError when the answer would not be exact.
    """
    found = shutil.which(cmd[0])
    if found is None:
        raise OracleError(f"{cmd[0]}: not found or not executable")
    with tempfile.TemporaryDirectory(prefix="oracle-") as directory:
        out = Path(directory) / "hits"
        # QEMU splits the option at commas; two stand for one.
        arguments = [f"file={build_plugin(plugin).resolve()}".replace(",", ",,"), f"out={out}".replace(",", ",,")]
        if count_all:
            arguments.append("count=all")
        command = [_qemu_for(Path(found)), "-0", cmd[0], "-plugin", ",".join(arguments), os.path.abspath(found)]
        command += cmd[1:]
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, env=env, cwd=cwd, timeout=timeout, check=False
        )
        if not out.exists():
            words = done.stderr.decode(errors="replace")[-2000:]
            raise OracleError(f"{cmd[0]}: no result, exit status {done.returncode} (killed by a signal?)\n{words}")
        results = [_read_result(path) for path in sorted(Path(directory).iterdir())]
    hits: Counter[tuple[int, int, int, str]] = Counter()
    executed = 0
    for lines, count in results:
        hits.update(lines)
        executed += count
    segments: dict[str, list[tuple[int, int, int]]] = {}
    sites = []
    for (pc, size, offset, name), count in sorted(hits.items()):
        if name == "-":
            sites.append(Site(pc, count, size, None, None))
            continue
        if name not in segments:
            segments[name] = _load_segments(Path(name))
        vaddr = next((start + offset - at for at, length, start in segments[name] if at <= offset < at + length), None)
        sites.append(Site(pc, count, size, Path(name), vaddr))
    return OracleRun(sites, done.returncode, done.stdout, done.stderr, executed if count_all else None)


def qemu_split_locks(
    cmd: Sequence[str], plugin: Path
) -> tuple[dict[int, int], dict[int, tuple[Path | None, int | None]]]:
    """Run `cmd` as `qemu_run` does; give its hits by guest PC, and (image, ELF virtual address) by guest PC.

    Raises OracleError, besides what `qemu_run` says, when two images had hits at one address, one after the other:
    take `qemu_run(...).by_place()` for such a program.
    """
    hits: Counter[int] = Counter()
    maps: dict[int, tuple[Path | None, int | None]] = {}
    for site in qemu_run(cmd, plugin).sites:
        place = site.image, site.vaddr
        if maps.setdefault(site.pc, place) != place:
            raise OracleError(f"{site.pc:#x}: hits in {maps[site.pc][0]} and in {site.image}")
        hits[site.pc] += site.hits
    return dict(hits), maps


def _qemu_for(program: Path) -> str:
    """The QEMU for an ELF program, by its word size (e_ident[EI_CLASS])."""
    with program.open("rb") as file:
        head = file.read(5)
    if head[:4] != b"\x7fELF":
        raise OracleError(f"{program}: not an ELF program; for a script give its interpreter")
    return "qemu-x86_64" if head[4] == 2 else "qemu-i386"


def _read_result(path: Path) -> tuple[Counter[tuple[int, int, int, str]], int]:
    """One process's result file: hits by (pc, size, file offset, image), and locked instructions executed."""
    lines = path.read_text(errors="surrogateescape").splitlines()
    if not lines or lines[-1] != "# end":
        raise OracleError(f"{path.name}: result cut off (the program was killed, or execs in one thread and exits)")
    hits: Counter[tuple[int, int, int, str]] = Counter()
    executed = 0
    for line in lines[:-1]:
        if line.startswith("# executed "):
            executed = int(line.split()[2])
        elif line.startswith("# mismatched "):
            if line != "# mismatched 0":
                raise OracleError(f"{line[2:]}: QEMU stored sizes that the plugin's decoder had not said")
        else:
            pc, count, size, offset, image = line.split(" ", 4)
            hits[int(pc, 16), int(size), int(offset, 16), image] += int(count)
    return hits, executed


def _load_segments(image: Path) -> list[tuple[int, int, int]]:
    """PT_LOAD segments of an ELF file as (file offset, bytes in the file, virtual address); none if it is no ELF file.

    Executable ones come first: linkers may let two segments share the bytes of a page.
    """
    try:
        data = image.read_bytes()
    except OSError:
        return []
    if data[:4] != b"\x7fELF":
        return []
    # elf(5): e_phoff, then e_phentsize and e_phnum; a program header differs in order between the two classes.
    if data[4] == 2:
        (phoff,) = struct.unpack_from("<Q", data, 32)
        entsize, count = struct.unpack_from("<HH", data, 54)
    else:
        (phoff,) = struct.unpack_from("<I", data, 28)
        entsize, count = struct.unpack_from("<HH", data, 42)
    segments = []
    for index in range(count):
        if data[4] == 2:
            kind, flags, offset, vaddr, _, filesz = struct.unpack_from("<IIQQQQ", data, phoff + index * entsize)
        else:
            kind, offset, vaddr, _, filesz, _, flags = struct.unpack_from("<7I", data, phoff + index * entsize)
        if kind == _PT_LOAD:
            segments.append((not flags & 1, offset, filesz, vaddr))
    return [(offset, filesz, vaddr) for _, offset, filesz, vaddr in sorted(segments)]
