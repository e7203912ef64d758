"""Bad ends of `splitlock run`: whatever fails in us, the program's exit status and a report reach the user.

Each resource limit (setrlimit(2)) at small values, in each kind of report. What is right is known from the program run
alone under the same limit, and from what the kernel delivers: a line on a pipe, an exit status.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import spent

Program = Callable[..., Path]

# The console script as pip installs it: `-m` imports more of the standard library before anything of ours.
COMMAND = [sys.executable, str(Path(__file__).parents[2] / "scripts" / "console" / "splitlock-python")]
FRONT = [str(Path(sys.executable).with_name("splitlock"))]
MEGABYTE = 1 << 20
LIMITS = {
    "NOFILE": [4, 5, 6, 7, 8, 9, 10, 12],
    "AS": [megabytes * MEGABYTE for megabytes in (14, 16, 18, 20, 22, 24, 28, 32, 40)],
    "DATA": [megabytes * MEGABYTE for megabytes in (2, 4, 5, 6, 7, 8, 9, 10, 12, 16)],
    "FSIZE": [0, 1, 512, 4096],
    "STACK": [96 << 10, 128 << 10, MEGABYTE],
    "SIGPENDING": [0, 1],
    "MEMLOCK": [0],
    "CORE": [0],
}
MODES = ["text", "json", "file", "off"]
EVERY = [(name, value, mode) for name, values in LIMITS.items() for value in values for mode in MODES]
# A different mode for each value, so that each limit meets each mode soon.
SOME = [(name, value, mode) for i, (name, value, mode) in enumerate(EVERY) if i // 4 % 4 == i % 4]


def _limited(name: str, value: int, words: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    number = getattr(resource, f"RLIMIT_{name}", 11)  # RLIMIT_SIGPENDING has no name in Python
    return subprocess.run(
        words, env=environment, capture_output=True, text=True, errors="replace", timeout=120, check=False,
        preexec_fn=lambda: resource.setrlimit(number, (value, value)),
    )  # fmt: skip


def _check(
    environment: dict[str, str], binary: Path, target: Path, name: str, value: int, mode: str, command: list[str],
    fresh: bool = False,
) -> None:  # fmt: skip
    target.unlink(missing_ok=True)
    script = f"{binary}; exit 5" if mode != "off" else "echo survived; exit 5"
    alone = _limited(name, value, ["sh", "-c", "echo survived; exit 5"], environment)
    bare = _limited(name, value, [sys.executable, "-c", "pass"], environment)
    if alone.returncode != 5 or bare.returncode or bare.stderr:
        return  # neither a shell nor the interpreter starts: nothing of ours has run
    options = {
        "text": [], "json": ["--format", "json"], "file": ["--format", "json", "-o", str(target)],
        "off": ["--split-lock-detect=off"],
    }[mode]  # fmt: skip
    words = [*command, "run", "--split-lock-detect=fatal", *options, "--", "sh", "-c", script]
    done = _limited(name, value, words, environment)
    said = f"{name} {value} {mode}: {done.returncode} {done.stdout!r} {done.stderr!r}"
    assert "Traceback" not in done.stderr, said
    assert "mistake of ours" not in done.stderr, said
    given_up = "Fatal Python error" in done.stderr or "memory allocation of" in done.stderr  # its, or Rust's
    if done.returncode == -signal.SIGABRT and given_up:  # docs/run.md: what they do without memory
        assert command is COMMAND or fresh or mode == "off", said  # else the front is the parent, and goes on
        return
    if done.returncode == 125:
        assert len(done.stderr.splitlines()) == 1, said
        assert done.stderr.startswith("splitlock: "), said
        assert done.stdout == "", said
        return
    assert done.returncode == 5, said
    report = target.read_text() if mode == "file" and target.stat().st_size else done.stderr
    if mode in ("json", "file") and "\nsplitlock: " not in f"\n{done.stderr}":
        json.loads(report[report.index("{\n") :])
    if "no report: Python" in report:
        assert command is FRONT, said
        assert "what was not watched is not known" in report, said
        assert ("; 1 split lock was counted" in report) == ("survived" in done.stdout), said
    elif mode == "off":
        assert "split_lock_detect=off" in report, said
    elif "survived" in done.stdout:
        assert any(words in report for words in ("stopped before 1 split lock", '"hits": 1', "hits: 1")), said
    else:  # not stopped: what was not watched is said
        spent(1)
        assert "unmonitored" in report, said
        assert "unmonitored: nothing" not in report, said


@pytest.mark.parametrize("command", [COMMAND, FRONT], ids=["python", "front"])
@pytest.mark.parametrize("name", LIMITS)
def test_tiny_limits(
    environment: dict[str, str], program: Program, tmp_path: Path, name: str, command: list[str]
) -> None:
    subprocess.run([*FRONT, "run", "-q", "--", "true"], env=environment, check=True)  # it knows the installation now
    for limit, value, mode in SOME:
        if limit == name:
            _check(environment, program("sigbus"), tmp_path / "report", limit, value, mode, command)


@pytest.mark.slow
@pytest.mark.parametrize("name", LIMITS)
def test_every_tiny_limit_in_every_mode(
    environment: dict[str, str], program: Program, tmp_path: Path, name: str
) -> None:
    for (limit, value, mode), fresh in itertools.product(EVERY, (False, True)):
        if limit == name:
            cache = {"XDG_CACHE_HOME": str(tmp_path / f"{value}-{mode}")} if fresh else {}
            for command in (COMMAND, FRONT):
                where = {**environment, **cache}
                _check(where, program("sigbus"), tmp_path / "report", limit, value, mode, command, fresh)


@pytest.mark.parametrize("mode", ["text", "json"])
def test_memory_ends_while_the_program_runs(environment: dict[str, str], program: Program, mode: str) -> None:
    """From nothing more to what a whole report takes, by kibibytes that nothing of ours is a multiple of."""
    words = [*COMMAND, "run", "--split-lock-detect=fatal", "--format", mode, "--", "sh", "-c"]
    taken = "$(sed -n 's/VmData:[^0-9]*\\([0-9]*\\).*/\\1/p' /proc/$PPID/status)"
    whole = 0
    for more in range(0, 5000, 211):
        script = f"{program('sigbus')}; prlimit --pid $PPID --data=$((({taken} + {more}) * 1024)); exit 5"
        done = subprocess.run([*words, script], env=environment, capture_output=True, text=True, check=False)
        if done.returncode == -signal.SIGABRT and "Fatal Python error" in done.stderr:
            continue  # docs/run.md: what Python does without memory
        assert done.returncode == 5, done.stderr
        assert any(words in done.stderr for words in ("stopped before 1 split", '"hits": 1', "hits: 1")), done.stderr
        whole += "cannot be made" not in done.stderr and "no report" not in done.stderr
    assert 0 < whole < 24, "the limits meet both a whole report and a plainer one"


def test_without_proc(environment: dict[str, str]) -> None:
    inside = f"mount -t tmpfs none /proc && exec {' '.join(COMMAND)} run"
    for options, status in (("--engine=ptrace", 125), ("", 5), ("--split-lock-detect=off", 5)):
        words = ["unshare", "-rm", "sh", "-c", f"{inside} {options} -- sh -c 'exit 5'"]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
        if "unshare" in done.stderr:
            pytest.skip("no mount namespace to be had")
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        if status == 125:
            assert done.stderr == (
                "splitlock: cannot watch: /proc is not mounted here; mount it, or use --split-lock-detect=off\n"
            )


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_report_that_its_file_does_not_take_goes_to_standard_error(
    environment: dict[str, str], program: Program, form: str
) -> None:
    words = [*COMMAND, "run", "--split-lock-detect=fatal", "--format", form, "-o", "/dev/full", "--", "sh", "-c"]
    done = subprocess.run(
        [*words, f"{program('sigbus')}; exit 5"],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 5
    line = "splitlock: /dev/full: cannot write the report: No space left on device; here it is:\n"
    before, found, report = done.stderr.partition(line)
    assert found, done.stderr
    assert "trap alignment check" in before
    if form == "json":
        assert json.loads(report)["hits"] == 1
    else:
        assert report.startswith("1 site, stopped before 1 split lock")


def test_a_file_never_holds_half_a_report(environment: dict[str, str], program: Program, tmp_path: Path) -> None:
    """A limit on files' sizes within the report: what has been written of it is taken back."""
    target = tmp_path / "report"
    target.write_text("an old one")
    words = [*COMMAND, "run", "--split-lock-detect=fatal", "--format", "json", "-o", str(target), "--"]
    done = _limited("FSIZE", 100, [*words, str(program("sigbus"))], environment)
    assert done.returncode == 0
    assert target.read_bytes() == b""
    assert json.loads(done.stderr[done.stderr.index("{\n") :])["hits"] == 1


def test_error_exitcode_counts_where_the_report_is_lost(environment: dict[str, str], program: Program) -> None:
    words = [*COMMAND, "run", "--split-lock-detect=fatal", "-o", "/dev/full", "--error-exitcode", "9", "--"]
    assert (
        subprocess.run([*words, program("sigbus")], env=environment, capture_output=True, check=False).returncode == 9
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_no_process_for_it(tmp_path: Path) -> None:
    """RLIMIT_NPROC holds for others than root."""
    system = "/usr/bin/python3"
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NPROC, (0, 0)); sys.path[:0] = sys.argv[1:2];"
        "sys.argv[1:] = ['run', '--', 'true']; from splitlock._start import entry; entry()"
    )
    source = str(Path(__file__).parents[2] / "src")
    words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", system, "-c", code, source]
    env = {"HOME": "/nonexistent", "PATH": os.environ["PATH"]}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60, check=False)
    if "No module named 'splitlock'" in done.stderr:
        pytest.skip("this checkout is out of other users' reach")
    assert (done.returncode, len(done.stderr.splitlines())) == (125, 1), done.stderr
    assert "ulimit -u" in done.stderr
