"""`splitlock simulate`: scenarios and the matrix, as text, JSON and HTML, and every failure in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import pytest
from modules.debian import modules

from splitlock.report.simulate import Matrix, Report
from splitlock.report.simulate_text import render

DOCS = Path(__file__).parents[2] / "docs"
SCENARIOS = DOCS / "scenarios"


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "splitlock", "simulate", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def schema(name: str, text: str) -> None:
    jsonschema.validate(json.loads(text), json.loads((DOCS / f"{name}.schema.json").read_text()))


def test_scenario() -> None:
    path = SCENARIOS / "02-unaware-guest.toml"
    done = run(path)
    assert (done.returncode, done.stderr) == (1, "")
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "livelock: guest program" in done.stdout
    told = run(path, "--format", "json")
    schema("simulate", told.stdout)
    assert render(Report.from_json(told.stdout)) == done.stdout


@pytest.mark.parametrize("verb", ["simulate", "advise"])
def test_help(verb: str) -> None:
    command = [sys.executable, "-m", "splitlock", verb, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "examples:" in done.stdout


def test_nobody_is_harmed() -> None:
    path = SCENARIOS / "01-hazard.toml"
    assert run(path, "-q").stdout == ""
    done = run(path)
    assert done.returncode == 0
    assert "the bus is locked for 46.6 ms" in done.stdout


def test_a_real_module(tmp_path: Path) -> None:
    kvm = modules("amd64")["kvm-intel.ko"]
    done = run(SCENARIOS / "05-disable.toml", "--modules", kvm.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert "VMLAUNCH" in done.stdout
    scenario = tmp_path / "beside.toml"
    scenario.write_text('title = ""\n[host]\npolicy = "refuse"\n[[event]]\nload = "./kvm-intel.ko"')
    (tmp_path / "kvm-intel.ko").symlink_to(kvm)
    assert "loaded: SLD-aware" in run(scenario).stdout


def test_matrix(tmp_path: Path) -> None:
    brief, everything = run("--matrix"), run("--matrix", "-v")
    assert (brief.returncode, brief.stderr) == (0, "")
    assert max(map(len, everything.stdout.splitlines())) <= 80
    assert len(everything.stdout.splitlines()) > 3 * len(brief.stdout.splitlines())
    told = run("--matrix", "--format", "json")
    schema("simulate-matrix", told.stdout)
    report = Matrix.from_json(told.stdout)
    cells = {(c.mode, c.policy, c.hypervisor, c.guest, c.access) for c in report.cells}
    assert len(cells) == len(report.cells)
    page = tmp_path / "matrix.html"
    assert run("--matrix", "--format", "html", "-o", page).returncode == 0
    shown = []

    class Cells(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag == "td" and "class" in dict(attrs):
                shown.append(dict(attrs)["title"])

    Cells().feed(page.read_text())
    assert len(shown) == len(report.cells)
    assert "http" not in page.read_text()  # it needs nothing else


def test_other_processors() -> None:
    done = run("--matrix", "--processor", "#AC", "#DB", "--linux", "6.12", "--format", "json")
    assert Matrix.from_json(done.stdout).processor == ["#AC", "#DB"]
    none = Matrix.from_json(run("--matrix", "--processor", "none", "--format", "json").stdout)
    assert not [c for c in none.cells if c.victim and c.access != "user that asks"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give it either a scenario or --matrix"),
        (["x.toml", "--matrix"], "give it either a scenario or --matrix"),
        (["x.toml"], "x.toml: No such file or directory"),
        (["x.toml", "--format", "html"], "--format html: of --matrix only"),
        (["--matrix", "--linux", "new"], "--linux: 'new' is no version"),
        (["--matrix", "--vendor", "amd"], "--processor: no AMD processor has"),
        (["--matrix", "--processor", "none", "#AC"], "--processor: none goes with nothing else"),
        ([SCENARIOS / "05-disable.toml", "--modules", DOCS], "kvm_intel: no such module in"),
    ],
)
def test_mistakes(words: list[str | Path], said: str) -> None:
    done = run(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
