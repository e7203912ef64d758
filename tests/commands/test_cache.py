"""`splitlock cache`: what it makes ready is used, by other users too, and nobody else's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from programs import gen_forms

SPLITLOCK = [sys.executable, "-m", "splitlock"]
SHARED = Path("/var/cache/splitlock/images")
NOBODY = 65534
#: another user, who may read what the tests run with, wherever it is installed
OTHER = [
    "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=-all,+dac_read_search",
    "--ambient-caps=+dac_read_search",
]  # fmt: skip


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program that nobody has analysed yet, where every user may read it."""
    source = tmp_path / "fresh.c"
    source.write_text("int x; int main(void) { __sync_fetch_and_add(&x, 1); return 0; }\n")
    return gen_forms.compile_c(tmp_path / "fresh", [source], ["-O2"])


@pytest.fixture
def user(tmp_path: Path) -> dict[str, Any]:
    """As another user, with a cache of their own."""
    if os.geteuid():
        pytest.skip("another user: needs root")
    place = tmp_path / "home"
    place.mkdir()
    os.chown(place, NOBODY, NOBODY)
    for path in [tmp_path, *tmp_path.parents]:
        path.chmod(path.stat().st_mode | 0o011)
    return {"other": OTHER, "env": {**os.environ, "XDG_CACHE_HOME": str(place)}}


@pytest.fixture
def shared() -> Iterator[Path]:
    """Root's for everybody, as if it were made by this test; what was in it is put back."""
    if os.geteuid():
        pytest.skip("root's cache: needs root")
    beside = SHARED.with_name("images.kept")
    if SHARED.exists():
        SHARED.rename(beside)
    yield SHARED
    shutil.rmtree(SHARED, ignore_errors=True)
    if beside.exists():
        beside.rename(SHARED)


def splitlock(
    *words: str | Path, other: Sequence[str] = (), env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    argv = [*other, *SPLITLOCK, *map(str, words)]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=300, env=env)


def cache(*words: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
    return splitlock("cache", *words, **more)


def asked(program: Path, **more: Any) -> tuple[int, set[str]]:
    """Run it: how many locked instructions were watched, and what was analysed for that."""
    own = Path(more["env"]["XDG_CACHE_HOME"]) / "splitlock"
    before = {path.name for path in own.glob("*.image")}
    done = splitlock("run", "--engine=agent", "--format=json", "--", program, **more)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stderr)
    assert not report["unmonitored"]
    return report["watched"]["sites"], {path.name for path in own.glob("*.image")} - before


def name(path: Path) -> str:
    status = path.stat()
    numbers = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    return "-".join(f"{number:x}" for number in numbers) + ".image"


def test_what_is_ready_is_not_analysed(program: Path, user: dict[str, Any]) -> None:
    done = cache("warm", program, "--format=json", **user)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["made"], report["found"]) == (1, 0)
    sites, made = asked(program, **user)
    assert name(program) not in made
    assert sites > 0
    assert json.loads(cache("warm", program, "--format=json", **user).stdout)["found"] == 1


def test_roots_is_everybodys(program: Path, user: dict[str, Any], shared: Path) -> None:
    assert cache("warm", program).returncode == 0
    assert [path.name for path in shared.glob("*.image")] == [name(program)]
    sites, made = asked(program, **user)
    assert name(program) not in made
    assert sites > 0
    assert json.loads(cache("clear", "--format=json", **user).stdout)["caches"][-1]["removed"] == 0
    assert cache("clear").returncode == 0
    assert not list(shared.glob("*.image"))
    assert name(program) in asked(program, **user)[1]


@pytest.mark.parametrize("fault", ["theirs", "group", "world", "link", "old", "cut", "other"])
def test_one_that_others_could_have_written_is_not_used(
    program: Path, user: dict[str, Any], shared: Path, fault: str
) -> None:
    """Nor one of another version, or that is not whole, or of another file."""
    assert cache("warm", program).returncode == 0
    image = shared / name(program)
    if fault == "theirs":
        os.chown(image, NOBODY + 1, 0)
    elif fault == "group":
        image.chmod(0o664)
    elif fault == "world":
        shared.chmod(0o777)
    elif fault == "link":
        shared.rename(program.parent / "elsewhere")
        shared.symlink_to(program.parent / "elsewhere")
    else:
        raw = bytearray(image.read_bytes())
        if fault == "old":
            raw[8] -= 1
        elif fault == "other":
            raw[24] ^= 1
        image.write_bytes(raw[: len(raw) // 2] if fault == "cut" else raw)
    try:
        sites, made = asked(program, **user)
    finally:
        if shared.is_symlink():
            shared.unlink()
    assert name(program) in made
    assert sites > 0


@pytest.mark.parametrize("hidden", ["file", "directory"])
def test_what_others_may_not_read_is_not_shown_to_them(program: Path, shared: Path, hidden: str) -> None:
    (program if hidden == "file" else program.parent).chmod(0o700)
    assert cache("warm", program).returncode == 0
    assert {path.stat().st_mode & 0o777 for path in shared.iterdir()} == {0o600}


def test_directories(program: Path, tmp_path: Path, shared: Path) -> None:
    """Each file once, whatever its names; what is no program or library is nobody's affair there."""
    place = tmp_path / "tree"
    (place / "deep").mkdir(parents=True)
    shutil.copy(program, place / "one")
    os.link(place / "one", place / "deep" / "two")
    (place / "three").symlink_to(place / "one")
    (place / "text").write_text("\x7fELF no more\n")
    os.mkfifo(place / "pipe")
    done = cache("warm", place, "--format=json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["made"] == 1


@pytest.mark.parametrize("what", ["missing", "text", "pipe", "object", "i386"])
def test_what_cannot_be_made_ready_is_named(program: Path, tmp_path: Path, shared: Path, what: str) -> None:
    path = tmp_path / what
    if what == "text":
        path.write_text("#!/bin/sh\n")
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "object":
        subprocess.run(["gcc", "-c", "-xc", "/dev/null", "-o", path], check=True)
    elif what == "i386":
        raw = bytearray(program.read_bytes())
        raw[4] = 1
        path.write_bytes(raw)
    done = cache("warm", program, path)
    assert done.returncode == 2
    assert f"not ready: {path}: " in done.stdout.replace("\n  ", " ")
    assert done.stdout.startswith("1 image made")
    assert not done.stderr


@pytest.mark.parametrize("words", [["warm"], ["warm", "--installed", "x"], ["warm", "-j", "0", "x"], ["cool"], []])
def test_wrong_usage(words: list[str]) -> None:
    done = cache(*words)
    assert done.returncode == 2
    assert done.stderr.startswith("splitlock cache")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("before", ["sleep 0.2 &", "trap '' CHLD;"])
def test_children_of_others(program: Path, shared: Path, before: str) -> None:
    """That end meanwhile, or whose ends are ignored: whoever executed us left it so."""
    words = f"{before} exec {' '.join(SPLITLOCK)} cache warm -j1 {program} /bin/true /bin/cat /usr/bin/env"
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("4 images made")


def test_another_users_file_by_a_link(program: Path, tmp_path: Path, shared: Path) -> None:
    """A link below a directory is not followed."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "x").symlink_to(program)
    report = json.loads(cache("warm", tmp_path / "tree", "--format=json").stdout)
    assert (report["made"], report["found"], report["failed"]) == (0, 0, [])
