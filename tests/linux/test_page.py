"""Is docs/linux.md written from the table, and complete?"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "linux.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("linux_page", ROOT / "scripts" / "linux_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current(script: Any) -> None:
    assert script.written(PAGE) == PAGE, "run scripts/linux_page.py"


def test_a_table_without_a_place_is_an_error(script: Any) -> None:
    with pytest.raises(ValueError, match=r"docs/linux\.md: <!-- versions -->"):
        script.written(PAGE.replace("<!-- versions -->\n", ""))


def test_every_table_row_has_all_its_cells() -> None:
    width = 0
    for line in PAGE.splitlines():
        cells = len(re.sub(r"`[^`]*`", "", line).split("|"))
        if not line.startswith("|"):
            width = 0
        elif not width:
            width = cells
        else:
            assert cells == width, line
