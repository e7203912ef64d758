"""`splitlock explain`: one line of a log, and every failure in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "watch.schema.json").read_text())
SPLITLOCK = [sys.executable, "-m", "splitlock", "explain"]
LINE = "x86/split lock detection: #AC: demo/12 took a split_lock trap at address: {:#x}"


def run(*words: object, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SPLITLOCK, *map(str, words)], input=given, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A program, and where its locked instruction is."""
    path = tmp_path_factory.mktemp("demo") / "demo"
    source = Path(__file__).parents[1] / "programs" / "demo.c"
    subprocess.run(["gcc", "-O2", "-g", "-pthread", "-o", path, source], check=True)
    listing = subprocess.run(["objdump", "-d", path], capture_output=True, text=True, check=True).stdout
    return path, int(next(line for line in listing.splitlines() if "lock add" in line).split(":")[0], 16)


def test_text_and_json(built: tuple[Path, int]) -> None:
    image, at = built
    line = LINE.format(0x555555554000 + at)
    done = run("--image", image, "--base", "0x555555554000", line)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"bump  demo.c:23  demo+{at:#x}\n    lock add dword ptr" in done.stdout
    for given in (line, line.partition(": ")[2]):  # with the prefix, and as watch shows it
        done = run("--image", image, "--base", "0x555555554000", "--format", "json", given=given + "\n")
        event = json.loads(done.stdout)
        jsonschema.validate(event, SCHEMA)
        assert event["place"]["offset"] == f"{at:#x}"
    assert run("--image", image, "--base", "555555554000", line).returncode == 0  # as /proc/PID/maps has it
    assert run("-q", "--image", image, "--base", "0x555555554000", line).stdout == ""
    nothing = run("--image", image, "--base", "0x555555554000", LINE.format(0x555555554000 + at + 1))
    assert nothing.returncode == 1
    assert "no locked instruction there" in nothing.stdout
    outside = run("--image", image, "--base", "0x555555554000", LINE.format(0x10))
    assert (outside.returncode, "outside of" in outside.stdout) == (1, True)


def test_the_line_that_simulate_prints(built: tuple[Path, int]) -> None:
    scenario = Path(__file__).parents[2] / "docs" / "scenarios" / "04-fatal.toml"
    words = [sys.executable, "-m", "splitlock", "simulate", str(scenario)]
    told = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False).stdout
    done = run(told[told.index("traps: ") :].partition("\n\n")[0])  # two lines: it is wrapped
    assert (done.returncode, done.stderr) == (1, "")
    assert "got SIGBUS" in done.stdout
    assert "--image game" in done.stdout


def test_errors(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text\n")
    line = LINE.format(0x10)
    for words, said in (
        (["nonsense"], "not a line of the kernel's"), (["--image", "/none", line], "--image /none: No such file"),
        (["--image", tmp_path / "text", line], "neither ELF nor PE"), (["--base", "1", line], "goes with --image"),
        (["--image", "/bin/true", "--base", "x", line], "--base x: no address of 64 bits"),
        (["--image", "/bin/true", "--base=-1", line], "--base -1: no address of 64 bits"),
        (["--image", "/bin/true", "--base=", line], "--base : no address"),
        (["--image", "/bin/true", "--base=0x", line], "--base 0x: no address"),
        (["--image", "/bin/true", "--base=12_3", line], "--base 12_3: no address"),
        (["--image", "/bin/true", "--base=1" + "0" * 16, line], "no address of 64 bits"),
        (["--image", "/dev/zero", line], "not a regular file"),
        (["--pid", "4194304", line], "--pid 4194304: no such task is here"),
        (["--maps", "/none", line], "--maps /none"), (["--maps", tmp_path / "text", line], "no copy of /proc/PID/maps"),
        (["--root", "/", line], "goes with --maps"), (["--maps", "a", "--pid", "1", line], "not allowed with"),
    ):  # fmt: skip
        done = run(*words)
        assert (done.returncode, done.stdout) == (2, ""), words
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
