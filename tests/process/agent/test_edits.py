"""A program that changes its code, or maps it once more, executes what it would alone."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from process.agent.conftest import AsAlone, Compiled


@pytest.mark.parametrize("how", ["own", "turns", "site"])
def test_own_text_is_changed(as_alone: AsAlone, compiled: Compiled, how: str) -> None:
    as_alone([compiled("edited"), how])


def test_a_loaders_edits_stay(as_alone: AsAlone, compiled: Compiled, tmp_path: Path) -> None:
    """A raw file of code, and an ELF file's page."""
    library = compiled("edited.so", "-DLIBRARY", "-Wno-unused-variable")
    listed = subprocess.run(["nm", library], capture_output=True, text=True, check=True).stdout
    offset = next(line.split()[0] for line in listed.splitlines() if line.endswith(" edit"))
    assert "1 42 6" in as_alone([compiled("edited"), "file", library, f"0x{offset}"]).out


@pytest.mark.parametrize("how", ["private", "shared", "later", "fixed", "exe", "read"])
def test_own_text_is_mapped_again(as_alone: AsAlone, compiled: Compiled, how: str) -> None:
    assert as_alone([compiled("again"), how]).out == "3\n"
