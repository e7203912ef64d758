"""Code to look at: assembled by GNU as, linked by gcc, or installed on this machine. Nothing here is ever executed."""

from __future__ import annotations

import functools
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

_LIBRARIES = Path("/lib/x86_64-linux-gnu")
LIBC = _LIBRARIES / "libc.so.6"
LIBSTDCXX = _LIBRARIES / "libstdc++.so.6"
LOADER = _LIBRARIES / "ld-linux-x86-64.so.2"
CRYPTO = _LIBRARIES / "libcrypto.so.3"
PYTHON = Path("/usr/bin/python3.11")


def run(*command: str | Path) -> str:
    """What a tool prints. RuntimeError, with what it said, when it fails."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr}")
    return done.stdout


def assemble(directory: Path, source: str, name: str = "code") -> Path:
    """An object file from assembly in Intel syntax."""
    text, made = directory / f"{name}.s", directory / f"{name}.o"
    text.write_text(f".intel_syntax noprefix\n{source}\n")
    run("gcc", "-c", "-o", made, text)
    return made


def link(directory: Path, source: str, *flags: str, name: str = "code", shared: bool = True) -> Path:
    """A shared object, or a program without libraries, from assembly in Intel syntax."""
    made = directory / f"{name}.elf"
    mode = ("-shared",) if shared else ("-static", "-Wl,-e0")
    run(
        "gcc",
        "-nostdlib",
        *mode,
        "-Wl,--build-id=none,-Bsymbolic",
        *flags,
        "-o",
        made,
        assemble(directory, source, name),
    )
    return made


def function(name: str, body: str, *, padding: str = ".p2align 4", frame: bool = True) -> str:
    """Assembly of a function with symbol, size and (`frame`) a frame description entry."""
    begin, end = (".cfi_startproc", ".cfi_endproc") if frame else ("", "")
    return f"""
        .text
        {padding}
        .globl {name}
        .type {name}, @function
        {name}: {begin}
        {body}
        {end}
        .size {name}, . - {name}
    """


def symbols(path: Path) -> dict[str, int]:
    """Addresses by name, local symbols too, as nm has them."""
    return {
        line.split()[2]: int(line.split()[0], 16) for line in run("nm", path).splitlines() if len(line.split()) == 3
    }


@dataclass(frozen=True)
class Listed:
    """An instruction as objdump lists it. `text` is Intel syntax without the comment, `comment` what follows `#`."""

    address: int
    code: bytes
    text: str
    comment: str


_LINE = re.compile(r"^ *([0-9a-f]+):\t((?:[0-9a-f]{2} )+) *(?:\t(.*))?$")


@functools.lru_cache(maxsize=3)
def _disassembly(path: Path, _written: int) -> str:
    return run("objdump", "-dw", "-M", "intel", path)


def listing(path: Path, only: str = "") -> list[Listed]:
    """The instructions of a file's code, as objdump decodes them; `only` those in whose line a pattern is found."""
    wanted = re.compile(only).search
    found = []
    for line in _disassembly(path, path.stat().st_mtime_ns).splitlines():
        match = wanted(line) and _LINE.match(line)
        if match and match[3]:
            text, _, comment = match[3].partition("#")
            found.append(Listed(int(match[1], 16), bytes.fromhex(match[2]), text.strip(), comment.strip()))
    return found


LOCKS = r"\block\b|\bxchg\b"


_WIDTHS = {"BYTE": 1, "WORD": 2, "DWORD": 4, "QWORD": 8, "OWORD": 16, "XMMWORD": 16}
_POINTER = re.compile(r"(\w+) PTR ")
# What may follow a LOCK prefix (SDM vol. 2A, LOCK); anything else with one is an invalid instruction.
_LOCKABLE = {
    "add", "adc", "and", "btc", "btr", "bts", "cmpxchg", "cmpxchg8b", "cmpxchg16b", "dec", "inc", "neg", "not", "or",
    "sbb", "sub", "xadd", "xchg", "xor",
}  # fmt: skip
_PREFIXES = {"lock", "xacquire", "xrelease", "rep", "repz", "repnz", "data16", "cs", "ds", "es", "ss", "fs", "gs"}


def locked_width(text: str) -> int:
    """Bytes of memory that an instruction locks, by its text; 0 when it locks none."""
    words = text.split()
    prefixes = []
    while words and (words[0] in _PREFIXES or words[0].startswith("rex")):
        prefixes.append(words.pop(0))
    if not words or words[0] not in _LOCKABLE:
        return 0
    operands = text.split(words[0], 1)[1]
    if "[" not in operands and "s:0x" not in operands:
        return 0
    if "lock" not in prefixes and words[0] != "xchg":
        return 0
    pointer = _POINTER.search(operands)
    assert pointer, text
    return _WIDTHS[pointer[1]]
