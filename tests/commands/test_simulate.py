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

from splitlock.linux import log
from splitlock.report.simulate import Matrix, Report
from splitlock.report.simulate_text import outcome, render

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
    text = page.read_text()
    seen = Page()
    seen.feed(text)
    assert seen.cells == len(report.cells)
    assert seen.links <= seen.ids  # each number leads to its rule
    assert {cell.why for cell in report.cells} <= set(seen.rules)
    words = {outcome(cell) for cell in report.cells} | {one.outcome for one in report.admissions}
    assert words <= {word for entry in seen.legend for word in entry.split(", ")}
    assert 'name="viewport"' in text
    assert "title=" not in text.partition("</style>")[2]  # nothing that only a mouse finds
    assert "http" not in text  # it needs nothing else


class Page(HTMLParser):
    """What is in the matrix's page. Every header says what it is the header of."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.ids, self.links = 0, set[str](), set[str]()
        self.rules: list[str] = []
        self.legend: list[str] = []
        self.within = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.cells += tag == "td" and "class" in found
        if name := found.get("id"):
            self.ids.add(name)
        if (link := found.get("href")) is not None:
            self.links.add(link.removeprefix("#"))
        assert tag != "th" or found["scope"] in ("row", "col")
        self.within = tag

    def handle_data(self, data: str) -> None:
        if self.within in ("li", "dt") and data.strip():
            (self.rules if self.within == "li" else self.legend).append(data.strip())


def test_other_processors() -> None:
    done = run("--matrix", "--processor", "#AC", "#DB", "--linux", "6.12", "--format", "json")
    assert Matrix.from_json(done.stdout).processor == ["#AC", "#DB"]
    amd = Matrix.from_json(run("--matrix", "--vendor", "amd", "--linux", "6.13.0", "--format", "json").stdout)
    assert amd.processor == ["#DB"]
    assert not {"ACRN", "KVM, a TDX guest"} & {cell.hypervisor for cell in amd.cells}
    none = Matrix.from_json(run("--matrix", "--processor", "none", "--format", "json").stdout)
    assert not [c for c in none.cells if c.victim and c.access != "user that asks"]


def test_what_cannot_be_is_not_in_the_matrix() -> None:
    """KVM without the fixes of 2020 is only in the kernel of 2020; TDX guests are in those that run them."""
    titles = {}
    for release in ("5.7", "6.12", "7.4"):
        report = Matrix.from_json(run("--matrix", "--linux", release, "--format", "json").stdout)
        titles[release] = {cell.hypervisor for cell in report.cells}
        assert not [cell for cell in report.cells if cell.access == "emulated" and "KVM" not in cell.hypervisor]
        assert not [
            cell for cell in report.cells if cell.hypervisor == "none" and cell.access in ("emulated", "real mode")
        ]
    assert titles["5.7"] - titles["6.12"] == {
        "KVM as posted in April 2020", "KVM, April 2020, emulator fix", "KVM, April 2020, #AC fix"
    }  # fmt: skip
    assert titles["7.4"] - titles["6.12"] == {"KVM, a TDX guest"}


def test_explain_takes_its_lines(tmp_path: Path) -> None:
    """What the model logs is what the kernel logs: it is understood as such."""
    scenario = tmp_path / "fatal.toml"
    for release in ("6.1.192", "6.12.48"):
        scenario.write_text(
            f"title = ''\n[host]\nlinux = '{release}'\nmode = 'fatal'\n[[event]]\nlock = 'host'\ncomm = 'game'"
        )
        report = Report.from_json(run(scenario, "--format", "json").stdout)
        (line,) = (step.log for step in report.events[1].steps if step.log)
        found = log.parse(line)
        assert found is not None
        assert (found.kind, found.comm, found.pid, found.address) == ("killed", "game", 1000, 0x401000)
        assert found.mapped is not None
        assert (found.mapped.file, found.mapped.start, found.mapped.size) == ("game", 0x401000, 0x1000)
        assert found.mapped.offset == (None if release == "6.1.192" else 0x1000)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give it either a scenario or --matrix"),
        (["x.toml", "--matrix"], "give it either a scenario or --matrix"),
        (["x.toml"], "x.toml: No such file or directory"),
        (["x.toml", "--format", "html"], "--format html: of --matrix only"),
        (["--matrix", "--linux", "new"], '--linux: "new" is no version'),
        (["--matrix", "--vendor", "amd", "--processor", "#AC"], "--processor: no AMD processor has"),
        (["--matrix", "--processor", "none", "#AC"], "--processor: none goes with nothing else"),
        ([SCENARIOS / "05-disable.toml", "--modules", DOCS], "kvm_intel: no such module in"),
    ],
)
def test_mistakes(words: list[str | Path], said: str) -> None:
    done = run(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
