"""Is the kernel's word understood, whatever tool had it in between? The corpus: real lines, real tools."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).with_name("corpus")
LINES: list[dict[str, Any]] = tomllib.loads((CORPUS / "lines.toml").read_text())["line"]
SHAPES: dict[str, dict[str, bool]] = tomllib.loads((CORPUS / "shapes.toml").read_text())
FILES = sorted(path.name for path in (CORPUS / "shapes").iterdir())


def test_what_is_said_of_shapes_is_of_shapes() -> None:
    assert set(SHAPES) <= set(FILES)
    assert {key for said in SHAPES.values() for key in said} <= {"spoken", "forged", "missed", "cut", "bare", "time"}
    assert len({line["id"] for line in LINES}) == len(LINES)
