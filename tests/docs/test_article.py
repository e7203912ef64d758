"""docs/article-live.md: made by scripts/article.py from scripts/article.md as it is now, of commands that exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from types import ModuleType

import pytest
from modules.debian import ROOT

from splitlock import commands
from splitlock._errors import SplitlockError
from splitlock.guest.bochs import emulator


@pytest.fixture(scope="module")
def article() -> ModuleType:
    """The script."""
    spec = importlib.util.spec_from_file_location("article", ROOT / "scripts" / "article.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shown(article: ModuleType, page: str) -> dict[str, list[str]]:
    """What the page shows below each command."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in page.splitlines():
        if command := article.COMMAND.fullmatch(line):
            lines = found[command[1]] = []
        elif line.startswith("    "):
            lines.append(line[4:])
    return found


def test_the_script_made_the_page(article: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own outputs, put into the script's source by the script, give the page."""
    page = article.PAGE.read_text()
    outputs = shown(article, page)
    made = re.search(r"Made on (.*)\.$", page, re.MULTILINE)
    assert made
    monkeypatch.setattr(article, "made_on", lambda: made[1])
    again = "\n".join(article.filled(article.SOURCE.read_text(), lambda command: "\n".join(outputs[command])))
    assert again + "\n" == page


def test_its_commands_exist(article: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verbs, options and their values."""
    lines = article.SOURCE.read_text().splitlines()
    found = [command[1] for command in map(article.COMMAND.fullmatch, lines) if command]
    assert len(set(found)) == len(found)
    words = [shlex.split(re.sub(r"\s2?>\S+", "", text))[1:] for text in found if text.startswith("splitlock ")]
    assert {each[0] for each in words} == {"run", "guest", "probe", "scan", "exports", "simulate"}
    for each in words:
        monkeypatch.setattr(f"splitlock.commands.{each[0]}.run", lambda _: 0)
        assert commands.main(each) == 0


@pytest.mark.slow
def test_it_can_be_made_anew() -> None:
    """All of its sections: each pattern finds what is to be shown."""
    try:
        emulator.find()
    except SplitlockError as error:
        pytest.skip(str(error))
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "article.py", *"123456789"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
