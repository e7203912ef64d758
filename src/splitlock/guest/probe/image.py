"""What is booted: the probe's machine code, compiled when the package was built (setup.py), and the CD around it."""

from __future__ import annotations

import io
from pathlib import Path

from splitlock._errors import SplitlockError

CODE = Path(__file__).parent / "boot" / "probe.bin"
ENTRY = 0x7C00  #: where it is loaded and starts, in real mode
_WAIT = 8  # where it says for how many milliseconds it waits before a row of split locks (boot/start.S)
_SECTOR, _BLOCK = 512, 2048  # bytes: of what a BIOS counts in, and of a CD


def code() -> bytes:
    """The machine code. Raises SplitlockError where the package was built without it."""
    try:
        return CODE.read_bytes()
    except OSError:
        raise SplitlockError(f"{CODE}: not built; install a C compiler for x86 and build splitlock again", 2) from None


def iso(*, wait: bool = True) -> bytes:
    """A CD image (ISO 9660) that boots it on a PC with a BIOS: El Torito 1.0, no emulation.

    Without `wait` it runs its rows one after the other: where no host below has a mode `warn`.
    """
    from pycdlib.pycdlib import PyCdlib

    raw = code()
    if not wait:
        raw = raw[:_WAIT] + bytes(4) + raw[_WAIT + 4 :]
    raw += bytes(-len(raw) % _BLOCK)
    disc = PyCdlib()
    disc.new(vol_ident="SPLITLOCK")
    disc.add_fp(io.BytesIO(raw), len(raw), "/PROBE.BIN;1")
    disc.add_eltorito("/PROBE.BIN;1", boot_load_size=len(raw) // _SECTOR)
    made = io.BytesIO()
    disc.write_fp(made)
    disc.close()
    return made.getvalue()
