"""Where is the emulator with VMX and split-lock detection, and who builds it?"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from splitlock._errors import SplitlockError

BUILD = Path(__file__).with_name("build.sh")
_ROMS = ("BIOS-bochs-latest", "VGABIOS-lgpl-latest")
_SHARE = Path("/usr/share/bochs")


class Emulator(NamedTuple):
    """Bochs with our library, and what it boots with."""

    program: Path
    bios: Path
    vga_bios: Path
    version: str  #: Bochs' own


def find(directory: Path | None = None) -> Emulator:
    """The one that `build` has made of these sources. Raises SplitlockError, with the way to it, without one."""
    mark, version = _mark()
    program = _cache(directory) / f"bochs-{mark}"
    if not _is_ours(program):
        raise SplitlockError(
            "--vmx: the emulator is not built yet; run: splitlock guest --build-emulator  (two minutes, needs a C++ "
            "compiler and Debian's package sources)", 2,
        )  # fmt: skip
    bios, vga_bios = _roms()
    return Emulator(program, bios, vga_bios, version)


def build(directory: Path | None = None) -> Path:
    """Build it, or find it built; its path. Raises SplitlockError where that fails."""
    done = subprocess.run(["sh", BUILD, _cache(directory)], capture_output=True, text=True, check=False)
    *lines, last = done.stderr.splitlines() or [""]
    sys.stderr.write("".join(f"{line}\n" for line in lines))  # the compiler's, apt's
    if done.returncode:
        raise SplitlockError(last.removeprefix("splitlock: ") or f"{BUILD}: exit status {done.returncode}", 2)
    return Path(done.stdout.strip())


def _cache(directory: Path | None) -> Path:
    if directory is not None:
        return directory
    own = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    cache = own if os.geteuid() else "/var/cache"  # sudo may keep somebody else's HOME
    return Path(cache) / "splitlock" / "emulator"


def _is_ours(program: Path) -> bool:
    """Whether it is there, and nobody but us and root could have changed it. Raises SplitlockError if they could."""
    try:
        places = [os.lstat(place) for place in (program, program.parent)]
    except FileNotFoundError:
        return False
    for place, status in zip((program, program.parent), places, strict=True):
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022 or stat.S_ISLNK(status.st_mode):
            raise SplitlockError(f"--vmx: {place}: others can write it; remove it, and build the emulator again", 2)
    return os.access(program, os.X_OK)


def _mark() -> tuple[str, str]:
    """What stands in the name of the emulator that is built from these sources, and Bochs' version."""
    done = subprocess.run(["sh", BUILD, "--mark"], stdout=subprocess.PIPE, text=True, check=True)
    mark, version = done.stdout.split()
    return mark, version


def _roms() -> list[Path]:
    found = [_SHARE / name for name in _ROMS]
    for path in found:
        if not path.exists():
            raise SplitlockError(f"--vmx: {path}: not there; install bochsbios and vgabios (Debian, Ubuntu)", 2)
    return found
