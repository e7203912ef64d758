"""What setup.py compiles can be compiled from the source distribution: MANIFEST.in names all of its sources."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_sources_of_what_is_compiled(tmp_path: Path) -> None:
    """By the distribution that setuptools makes, against what git knows in the folders that setup.py compiles in."""
    command: list[str | Path] = [sys.executable, "setup.py", "-q", "sdist", "-d", tmp_path]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    with tarfile.open(next(tmp_path.iterdir())) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    asked = "import setup; print(*{target.parent for target, *_ in setup.MADE})"
    folders = subprocess.run([sys.executable, "-c", asked], cwd=ROOT, capture_output=True, text=True, check=True)
    for folder in (str(Path(place).relative_to(ROOT)) for place in folders.stdout.split()):
        listed = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=True)
        sources = {path for path in listed.stdout.split() if path.endswith((".c", ".h", ".S", ".ld"))}
        assert sources, folder
        assert sources <= held, folder
