"""blind and its variants: a hypervisor that runs, built for real against Debian's kernel headers."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from modules.toys import make

from splitlock.guest.matrix.module import BLIND, SOURCES

VARIANTS = Path(__file__).parent
NAMES = sorted([BLIND, *(source.stem for source in VARIANTS.glob("*.c"))])


def build(headers: Path, directory: Path, names: list[str]) -> dict[str, Path]:
    """Those of `NAMES`, built in `directory`: their .ko files by name. Raises RuntimeError."""
    for path in (*Path(SOURCES).glob(f"{BLIND}.[ch]"), *VARIANTS.glob("*.c")):
        shutil.copy(path, directory)
    (directory / "Kbuild").write_text("".join(f"obj-m += {name}.o\n" for name in names))
    make(headers, directory, jobs=os.cpu_count() or 1)
    return {name: directory / f"{name}.ko" for name in names}
