"""Signals while an image is analysed, and others who wait for what a stopped run analyses.

The analysis is made slow by the test: a minute for the images that it names.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from x86.building import function, link

from splitlock.linux.proc import children
from splitlock.process import cache as module
from splitlock.process import patience
from splitlock.process.analysis import UnanalysedError, apart, here
from splitlock.process.cache import Cache
from splitlock.process.plan import build

Program = Callable[..., Path]

SLOW = """
import sys, time
from splitlock.process import cache
real, seconds, begun = cache.Cache._make, float(sys.argv.pop(1)), sys.argv.pop(1)
sizes = [__import__("os").stat(path).st_size for path in sys.argv.pop(1).split(":") if path]
def slow(self, key, path, *rest):
    if not sizes or key[2] in sizes:
        open(begun, "w").close()
        time.sleep(seconds)
    return real(self, key, path, *rest)
cache.Cache._make = slow
from splitlock._start import entry
entry()
"""


class Slow:
    """A run in which the analysis of some images takes long; `began()` waits for the first."""

    def __init__(self, place: Path, seconds: float, images: list[str], script: str) -> None:
        self.begun, self.report = place / "begun", place / "report"
        self.environment = {**os.environ, "XDG_CACHE_HOME": str(place / "cache")}
        self.words = [
            sys.executable, "-c", SLOW, str(seconds), str(self.begun), ":".join(images),
            "run", "--engine=ptrace", "--format", "json", "-o", str(self.report), "--", "sh", "-c", script,
        ]  # fmt: skip
        self.process = subprocess.Popen(
            self.words, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip

    def began(self) -> None:
        deadline = time.monotonic() + 30
        while not self.begun.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def ends(self, within: float) -> tuple[int, str]:
        """Its exit status and what it printed; fails when that takes longer."""
        try:
            out, err = self.process.communicate(timeout=within)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise
        assert "Traceback" not in err, err
        return self.process.returncode, out

    def reasons(self) -> list[str]:
        return [rest["reason"] for rest in json.loads(self.report.read_text())["unmonitored"]]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
@pytest.mark.parametrize("whole_group", [False, True], ids=["sent-to-us", "as-from-the-terminal"])
def test_a_signal_ends_the_program_while_it_is_analysed(
    tmp_path: Path, number: signal.Signals, whole_group: bool
) -> None:
    slow = Slow(tmp_path, 60, [], "exit 3")
    slow.began()
    (os.killpg if whole_group else os.kill)(slow.process.pid, number)
    assert slow.ends(within=10) == (128 + number, "")
    assert f"not analysed: cut short by {number.name}" in slow.reasons()


def test_a_handler_of_another_process_runs_at_once(tmp_path: Path) -> None:
    """Its child's image is being analysed; it waits for the child, as a shell does."""
    slow = Slow(tmp_path, 60, ["/bin/true"], "trap 'echo got; exit 9' TERM; /bin/true; echo not")
    slow.began()
    slow.process.send_signal(signal.SIGTERM)
    assert slow.ends(within=10) == (9, "got\n")
    assert slow.reasons() == ["not analysed: cut short by SIGTERM"]


def test_what_the_program_ignores_cuts_nothing_short(tmp_path: Path) -> None:
    slow = Slow(tmp_path, 1.5, ["/bin/true"], "trap '' HUP; /bin/true; echo done")
    slow.began()
    slow.process.send_signal(signal.SIGHUP)
    assert slow.ends(within=30) == (0, "done\n")
    assert slow.reasons() == []


def test_other_signals_are_passed_on_and_cut_nothing_short(tmp_path: Path) -> None:
    slow = Slow(tmp_path, 1.5, ["/bin/true"], "trap 'echo got' USR1; /bin/true; echo done")
    slow.began()
    slow.process.send_signal(signal.SIGUSR1)
    assert slow.ends(within=30) == (0, "got\ndone\n")
    assert slow.reasons() == []


def test_stopped_from_the_terminal_while_it_is_analysed(tmp_path: Path) -> None:
    """^Z stops us, so that the shell has its prompt; then all goes on."""
    place = tmp_path / "place"
    place.mkdir()
    other = Slow(place, 0, [], "exit 0")  # for its words only
    other.ends(within=60)
    words = [word.replace(str(place), str(tmp_path)) for word in other.words]
    words[3] = "2"
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(words[0], words, {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")})
    deadline = time.monotonic() + 20
    while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.write(terminal, b"\x1a")
    _, status = os.waitpid(pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    os.killpg(pid, signal.SIGCONT)
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0


# -- who waits for whom ---------------------------------------------------------------------------


def test_a_stopped_run_keeps_nobody_waiting(tmp_path: Path, program: Program) -> None:
    slow = Slow(tmp_path, 60, [], "exit 3")
    slow.began()
    os.killpg(slow.process.pid, signal.SIGSTOP)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "splitlock", "run", "--split-lock-detect=fatal", "--", program("sigbus")],
            env=slow.environment, capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
    finally:
        os.killpg(slow.process.pid, signal.SIGKILL)
        slow.process.wait()
    assert done.returncode == 0
    assert "1 site, stopped before 1 split lock" in done.stderr
    assert "unmonitored: nothing" in done.stderr


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small image."""
    return link(tmp_path_factory.mktemp("image"), function("f", "lock inc dword ptr [rdi]; mov eax, 1; ret"))


def _hold(directory: Path, library: Path, work: Callable[[], object]) -> multiprocessing.Process:
    """A process that analyses the library, and for that does `work` first; it has begun when this returns."""
    begun = multiprocessing.get_context("fork").Event()

    def slow(data: bytes) -> object:
        begun.set()
        work()
        return build(data)

    def hold() -> None:
        setattr(module, "build", slow)  # noqa: B010  # in this process alone
        Cache(lambda text: None, directory=str(directory)).plan(str(library), "name")

    process = multiprocessing.get_context("fork").Process(target=hold)
    process.start()
    assert begun.wait(20)
    return process  # type: ignore[return-value]


def _burn(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_a_holder_that_works_is_waited_for(tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_PATIENCE", 0.5)
    holder = _hold(tmp_path / "cache", library, lambda: _burn(2.0))

    def no_build(_: object) -> object:
        raise AssertionError("analysed twice")

    monkeypatch.setattr(module, "build", no_build)
    _, plan = Cache(lambda text: None, directory=str(tmp_path / "cache")).plan(str(library), "name")
    holder.join(20)
    assert plan.values() == build(library.read_bytes())[0].values()


@pytest.mark.parametrize("how", ["asleep", "stopped"])
def test_a_holder_that_does_not_work_is_not_waited_for(
    tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(patience, "_PATIENCE", 0.5 if how == "asleep" else 60.0)
    holder = _hold(tmp_path / "cache", library, lambda: time.sleep(60))
    if how == "stopped":
        os.kill(holder.pid or 0, signal.SIGSTOP)
    begun = time.monotonic()
    try:
        _, plan = Cache(lambda text: None, directory=str(tmp_path / "cache")).plan(str(library), "name")
    finally:
        holder.kill()
        holder.join(20)
    assert time.monotonic() - begun < 20
    assert plan.values() == build(library.read_bytes())[0].values()


# -- the process of its own -----------------------------------------------------------------------


def test_apart_gives_what_here_gives() -> None:
    for value in (b"", b"two", b"\0" * 3_000_000):
        assert apart(lambda _, value=value: value, str) == here(lambda _, value=value: value) == value  # type: ignore[misc]


def test_apart_says_what_became_of_the_child() -> None:
    def fails(give_up: object) -> bytes:
        raise MemoryError

    def refuses(give_up: object) -> bytes:
        raise PermissionError(13, "Permission denied", "/a/file")

    def dies(give_up: object) -> bytes:
        os.kill(os.getpid(), signal.SIGKILL)
        return b""

    with pytest.raises(UnanalysedError, match="out of memory"):
        apart(fails, str)
    with pytest.raises(PermissionError):
        apart(refuses, str)
    with pytest.raises(UnanalysedError, match="killed by signal 9"):
        apart(dies, str)


def _sleeps(give_up: object) -> bytes:
    time.sleep(60)
    return b""


def test_apart_is_called_away_and_leaves_no_process() -> None:
    before = children(os.getpid())
    calls = iter(["", "", "away"])
    with pytest.raises(UnanalysedError, match="away"):
        apart(_sleeps, lambda: next(calls))
    assert children(os.getpid()) == before
