"""Images of oracle.c and its kin, each with a table of instructions, all assembled, on a CD that boots."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path
from typing import NamedTuple

from pycdlib.pycdlib import PyCdlib

HERE = Path(__file__).parent
_SECTOR, _BLOCK = 512, 2048  # bytes: of what a BIOS counts in, and of a CD
_COMPILE = [
    "gcc", "-Os", "-Wall", "-Wextra", "-ffreestanding", "-nostdlib", "-static", "-fno-pic", "-no-pie", "-mno-red-zone",
    "-mgeneral-regs-only", "-fcf-protection=none", "-fno-stack-protector", "-fno-asynchronous-unwind-tables",
    "-Wl,--build-id=none,-z,noexecstack,--oformat=binary",
]  # fmt: skip
_SUFFIX = {1: "b", 2: "w", 4: "l", 8: "q"}
_SOURCE = {1: "%dl", 2: "%dx", 4: "%edx", 8: "%rdx"}
_TWO = ("add", "or", "adc", "sbb", "and", "sub", "xor")
_ONE = ("inc", "dec", "neg", "not")
_BIT = ("bts", "btr", "btc")
_EXCHANGE = ("xadd", "cmpxchg")


class Kind(NamedTuple):
    """An instruction whose operand is where RDI points."""

    text: str  #: for gas
    size: int  #: bytes of the operand
    locked: bool


def _lockable() -> list[Kind]:
    """What may have a lock prefix (SDM vol. 2A, LOCK), in each size it has."""
    made = []
    for size, suffix in _SUFFIX.items():
        source = _SOURCE[size]
        made += [Kind(f"{name}{suffix} {source}, (%rdi)", size, True) for name in (*_TWO, *_EXCHANGE)]
        made += [Kind(f"{name}{suffix} $3, (%rdi)", size, True) for name in _TWO]
        made += [Kind(f"{name}{suffix} (%rdi)", size, True) for name in _ONE]
        if size > 1:
            made += [Kind(f"{name}{suffix} {what}, (%rdi)", size, True) for name in _BIT for what in (source, "$3")]
    return [*made, Kind("cmpxchg8b (%rdi)", 8, True)]


def kinds() -> list[Kind]:
    """All: with the prefix, without it, and XCHG, which locks either way."""
    found = []
    for kind in _lockable():
        found += [kind._replace(text=f"lock {kind.text}"), kind._replace(locked=False)]
    for size, suffix in _SUFFIX.items():
        found += [Kind(f"{lock}xchg{suffix} {_SOURCE[size]}, (%rdi)", size, True) for lock in ("", "lock ")]
    return found


def disc(directory: Path, name: str = "oracle") -> Path:
    """The CD of an image, NAME.c, made in a directory."""
    rows = "".join(
        f".pushsection .kinds\n.quad 1f, {kind.size}\n.popsection\n1: {kind.text}\nret\n" for kind in kinds()
    )
    (directory / "kinds.S").write_text(f".globl kinds, kinds_end\n.pushsection .kinds\nkinds:\n.popsection\n{rows}"
                                       ".pushsection .kinds\nkinds_end:\n.popsection\n")  # fmt: skip
    code = directory / f"{name}.bin"
    sources = [HERE / "start.S", HERE / f"{name}.c", directory / "kinds.S"]
    subprocess.run([*_COMPILE, f"-Wl,-T,{HERE / 'oracle.ld'}", f"-I{HERE}", *sources, "-o", code], check=True)
    raw = code.read_bytes()
    raw += bytes(-len(raw) % _BLOCK)
    made = PyCdlib()
    made.new(vol_ident="ORACLE")
    made.add_fp(io.BytesIO(raw), len(raw), "/ORACLE.BIN;1")
    made.add_eltorito("/ORACLE.BIN;1", boot_load_size=len(raw) // _SECTOR)
    made.write(str(directory / f"{name}.iso"))
    made.close()
    return directory / f"{name}.iso"
