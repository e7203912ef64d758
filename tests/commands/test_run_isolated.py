"""What the environment says to Python and to the dynamic linker is for the program: our own interpreter is deaf to it.

As the console script of an installed package, with the poison that real programs' environments hold.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SPLITLOCK

import splitlock
from splitlock import _environment

Program = Callable[..., Path]

SCRIPT = [sys.executable, str(Path(__file__).parents[2] / "scripts" / "console" / "splitlock-python")]
# What we import of the standard library and of others, as modules that a program may well have of its own.
POISON = [
    "argparse", "bisect", "ctypes", "enum", "errno", "fcntl", "gettext", "heapq", "iced_x86", "importlib", "json",
    "marshal", "msgspec", "re", "select", "shutil", "signal", "socket", "stat", "struct", "time", "types", "typing",
    "zlib",
]  # fmt: skip
LOADED = """
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
__attribute__((constructor)) static void loaded(void) {
    char name[4096] = "";
    FILE *file = fopen(getenv("LOADED_INTO"), "a");
    if (readlink("/proc/self/exe", name, sizeof name - 1) > 0 && file) { fprintf(file, "%s\\n", name); fclose(file); }
}
"""


@pytest.fixture
def bare(environment: dict[str, str]) -> dict[str, str]:
    """An environment without anything for Python or the dynamic linker."""
    return {name: value for name, value in environment.items() if not name.startswith(("PYTHON", "LD_"))}


@pytest.fixture
def poison(tmp_path: Path) -> Path:
    """A directory of modules that end whoever imports them."""
    for name in POISON:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} comes from PYTHONPATH')\n")
    return tmp_path


def _run(environment: dict[str, str], *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SCRIPT, "run", *map(str, words)], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_modules_that_pythonpath_leads_to(bare: dict[str, str], poison: Path, program: Program) -> None:
    environment = {**bare, "PYTHONPATH": str(poison)}
    done = _run(environment, "--split-lock-detect=fatal", "--", program("sigbus"))
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "survived"), done.stderr
    assert "1 site, stopped before 1 split lock" in done.stderr
    assert "sigbus.c:" in done.stderr
    # and the program is not
    done = _run(environment, "--", "/usr/bin/python3", "-c", "import json")
    assert "json comes from PYTHONPATH" in done.stderr


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONSTARTUP": "/nonexistent"},
        {"PYTHONWARNINGS": "error", "PYTHONINSPECT": "1"},
        {"PYTHONOPTIMIZE": "2", "PYTHONIOENCODING": "ascii:strict"},
        {"PYTHONUSERBASE": "/nonexistent", "PYTHONNODEBUGRANGES": "1", "PYTHONDEVMODE": "1"},
        {"PYTHONTRACEMALLOC": "10", "PYTHONMALLOC": "malloc", "PYTHONASYNCIODEBUG": "1"},
        {"LD_BIND_NOW": "1", "LD_LIBRARY_PATH": "/nonexistent"},
    ],
    ids="-".join,
)
def test_variables_change_nothing(bare: dict[str, str], variables: dict[str, str]) -> None:
    plain, changed = (_run({**bare, **more}, "--", "sh", "-c", "exit 5") for more in ({}, variables))
    assert (changed.returncode, changed.stdout, changed.stderr) == (plain.returncode, plain.stdout, plain.stderr)


def test_what_is_preloaded_is_loaded_into_the_program_alone(bare: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "loaded.c").write_text(LOADED)
    library, into = tmp_path / "loaded.so", tmp_path / "into"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "loaded.c"], check=True)
    environment = {**bare, "LD_PRELOAD": str(library), "LOADED_INTO": str(into)}
    assert _run(environment, "-q", "--", "/usr/bin/true").returncode == 0
    # once into the interpreter that starts again without it, once into the program
    assert into.read_text().splitlines() == [os.path.realpath(sys.executable), os.path.realpath("/usr/bin/true")]


def test_libraries_that_are_none(bare: dict[str, str], tmp_path: Path, program: Program) -> None:
    """LD_LIBRARY_PATH of a program with libraries of its own, which ours must not take."""
    for name in ("libdw.so.1", "libffi.so.8", "libelf.so.1", "libssl.so.3"):
        (tmp_path / name).write_text("no library")
    done = _run({**bare, "LD_LIBRARY_PATH": str(tmp_path)}, "--split-lock-detect=fatal", "--", program("sigbus"))
    assert done.returncode == 0, done.stderr
    assert "sigbus.c:" in done.stderr


def test_the_program_gets_its_environment_as_alone(bare: dict[str, str]) -> None:
    """Byte for byte, in the same order, whatever the names."""
    given: dict[bytes, bytes] = {
        b"Z": b"1", b"PYTHONPATH": b"/a:/b", b"A": b"\xff\n", b"LD_LIBRARY_PATH": b"/c", b"PYTHONUNBUFFERED": b"1",
        b"BASH_FUNC_f%%": b"() { :; }", b"LD_PRELOAD": b"", b"PYTHONHASHSEED": b"7", b"EMPTY": b"", b"Q": b"=",
        b"SPLITLOCK_X": b"x", **{os.fsencode(name): os.fsencode(value) for name, value in bare.items()},
    }  # fmt: skip
    alone = subprocess.run(["/usr/bin/env", "-0"], env=given, capture_output=True, check=True).stdout
    for words in (
        [*SCRIPT, "run", "-q"],
        [*SPLITLOCK, "run", "-q"],
        [sys.executable, "-I", *SPLITLOCK[1:], "run", "-q"],
    ):
        ours = subprocess.run([*words, "--", "/usr/bin/env", "-0"], env=given, capture_output=True, check=True).stdout
        assert ours == alone
    off = subprocess.run(
        [*SCRIPT, "run", "-q", "--split-lock-detect=off", "--", "/usr/bin/env", "-0"],
        env=given, capture_output=True, check=True,
    )  # fmt: skip
    assert off.stdout == alone


def test_arguments_come_through_the_second_start(bare: dict[str, str], program: Program) -> None:
    odd = [b"\xff\xfe", b"", b"a\nb", b"-c", b"--", b"x y"]
    words = [*SCRIPT, "run", "-q", "--", "/usr/bin/printf", "%s|"]
    done = subprocess.run([*words, *odd], env={**bare, "LD_BIND_NOW": "1"}, capture_output=True, check=True)
    assert done.stdout == b"".join(word + b"|" for word in odd)


def test_the_api_is_deaf_too(bare: dict[str, str], poison: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(poison)  # `python -m` would look there first
    report = splitlock.run(["/usr/bin/true"], env={**bare, "PYTHONPATH": str(poison)})
    assert report.exit_status == 0
    assert report.watched.sites > 900


def test_it_does_not_start_twice_without_reason(bare: dict[str, str], tmp_path: Path) -> None:
    """Counted in the library that is loaded into each interpreter: the second start is what isolation costs."""
    environment = {os.fsencode(name): os.fsencode(value) for name, value in bare.items()}
    for harmless in ({}, {b"PYTHONUNBUFFERED": b"1"}, {b"PYTHONHASHSEED": b"0"}, {b"LDFLAGS": b"x"}):
        assert _environment.hidden({**environment, **harmless}, True, True) == {**environment, **harmless}


def test_what_is_hidden_is_shown_again(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {b"B": b"1", b"PYTHONPATH": b"2", b"LD_PRELOAD": b"3", b"LD_LIBRARY_PATH": b"4", b"A": b"5"}
    for python, path in ((True, True), (True, False), (False, True), (False, False)):
        hidden = _environment.hidden(given, python, path)
        assert b"LD_PRELOAD" not in hidden
        assert (b"PYTHONPATH" in hidden, b"LD_LIBRARY_PATH" in hidden) == (not python, not path)
        assert _environment.hidden(hidden, python, path) == hidden
        monkeypatch.setattr(_environment, "own", lambda hidden=hidden: hidden)
        assert list(_environment.given().items()) == list(given.items())
        monkeypatch.undo()


@pytest.mark.slow
def test_the_console_script_of_a_wheel(bare: dict[str, str], poison: Path) -> None:
    """Installed by pip into an environment of its own, with what it needs."""
    source = Path(__file__).parents[2]
    place = poison / "installed"
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    pip: list[str | Path] = [sys.executable, "-m", "pip", "-q", "--python", place / "bin" / "python", "install"]
    subprocess.run([*pip, source], check=True, cwd="/")
    assert (place / "bin" / "splitlock-python").read_text().startswith(f"#!{place}/bin/python")
    environment = {**bare, "PYTHONPATH": str(poison)}
    for script in ("splitlock-python", "splitlock", "splitlock"):
        done = subprocess.run(
            [place / "bin" / script, "run", "--", "true"], env=environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode, "no split locks in what was watched" in done.stderr) == (0, True), done.stderr
