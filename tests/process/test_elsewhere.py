"""Work that is done by a process that `run` did not start. The programs are stand-ins by the names of real ones."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import iced_x86
import msgspec
import pytest
from conftest import Run

import splitlock
from splitlock.process.elsewhere import HANDS_OVER, ONE_FOR_ALL

Program = Callable[..., Path]
DOCS = Path(__file__).parents[2] / "docs" / "run.md"


def _copy(directory: Path, name: str, of: str = "/bin/true") -> Path:
    target = directory / name
    shutil.copy(of, target)
    return target


def _said(run: Run) -> dict[str, str]:
    return {u["image"]: u["reason"] for u in run.report["unmonitored"] if "image" in u}


@pytest.mark.parametrize("name", ["docker", "podman-remote", "systemd-run", "flatpak-spawn", "snap", "gnome-terminal"])
def test_known_to_hand_over(watch: Callable[..., Run], tmp_path: Path, name: str) -> None:
    program = _copy(tmp_path, name)
    run = watch(["sh", "-c", f"{program}; exit 5"], "--unmonitored-exitcode", "43")
    assert run.status == 43
    who, way = HANDS_OVER[name]
    assert "another process that `run` did not start" in _said(run)[str(program)]
    assert who in _said(run)[str(program)]
    assert way in _said(run)[str(program)]


def test_a_script_is_known_by_its_own_name(watch: Callable[..., Run], tmp_path: Path) -> None:
    script = tmp_path / "xdg-open"
    script.write_text("#!/bin/sh\nexit 0\n")
    script.chmod(0o755)
    (reason,) = _said(watch([script])).values()
    assert "whatever opens such files" in reason


def test_others_are_not(watch: Callable[..., Run], tmp_path: Path) -> None:
    assert _said(watch([_copy(tmp_path, "dockerfile")])) == {}
    scope = watch([_copy(tmp_path, "systemd-run"), "--scope", "true"])
    assert _said(scope) == {}


def test_an_instance_that_runs_already(watch: Callable[..., Run], tmp_path: Path) -> None:
    browser = _copy(tmp_path, "firefox", "/bin/sleep")
    assert _said(watch([browser, "0"])) == {}
    with subprocess.Popen([browser, "60"]) as other:
        try:
            reason = _said(watch([browser, "0"]))[str(browser)]
        finally:
            other.kill()
    assert f"process {other.pid} of the same program" in reason


def test_a_script_is_not_every_script(watch: Callable[..., Run], tmp_path: Path) -> None:
    """Debian's chromium is one, and any other of that shell's runs the same file."""
    script = tmp_path / "chromium"
    script.write_text("#!/bin/sh\n[ -z $1 ] || read line\n")
    script.chmod(0o755)
    for words, same in (["/bin/sh", "-c", "read line"], False), ([str(script), "wait"], True):
        with subprocess.Popen(words, stdin=subprocess.PIPE) as other:
            said = " ".join(_said(watch([script])).values())
            other.communicate(timeout=60)
        assert (f"process {other.pid} of the same program" in said) == same
        assert bool(said) == same


def test_an_instance_of_ours(watch: Callable[..., Run], tmp_path: Path) -> None:
    """A browser's own processes run the same program, and are watched."""
    browser = _copy(tmp_path, "chromium", "/bin/sleep")
    assert _said(watch(["sh", "-c", f"{browser} 1 & {browser} 0; wait"])) == {}


def test_a_program_without_its_environment(watch: Callable[..., Run], program: Program) -> None:
    run = watch(["env", "-i", program("sigbus")], "--split-lock-detect=fatal")
    assert (run.report["hits"], run.report["unmonitored"]) == (1, [])


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a program another user's")
def test_a_set_user_id_program_without_its_rights() -> None:
    binary = Path(f"/var/tmp/splitlock-suid-{os.getpid()}")  # not mounted nosuid
    packages = [str(Path(module.__file__ or "").parents[1]) for module in (splitlock, iced_x86, msgspec)]
    nobody = [
        "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env", "XDG_CACHE_HOME=/nonexistent",
        f"PYTHONPATH={os.pathsep.join(packages)}", "/usr/bin/python3", "-m", "splitlock", "run", "--", str(binary),
    ]  # fmt: skip
    try:
        shutil.copy("/bin/true", binary)
        for mode in (0o755, 0o4755):
            binary.chmod(mode)
            done = subprocess.run(nobody, capture_output=True, text=True, check=False)
            if "No module named" in done.stderr:
                pytest.skip("this checkout or its packages are out of other users' reach")
            assert done.returncode == 0, done.stderr
            told = " ".join(done.stderr.split())
            assert ("a set-user-ID program runs without its rights" in told) == (mode == 0o4755)
            assert told.count("only part was watched") == (mode == 0o4755)
    finally:
        binary.unlink()


def test_the_page_names_them_all() -> None:
    text = DOCS.read_text()
    assert [name for name in (*HANDS_OVER, *ONE_FOR_ALL) if f"`{name}`" not in text] == []
