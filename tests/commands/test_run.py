"""`splitlock run` as a person meets it: options, errors, exit status, report, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jsonschema
import msgspec
import pytest
from conftest import SPLITLOCK, Run, spent

import splitlock
from splitlock.report.run import Report

Program = Callable[..., Path]
DOCS = Path(__file__).parents[2] / "docs"


def _command(environment: dict[str, str], *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SPLITLOCK, *map(str, words)], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["run"], 125, "no program given"),
        (["run", "--bogus", "--", "true"], 125, "--bogus"),
        (["run", "--split-lock-detect=ratelimit:0", "--", "true"], 125, "ratelimit:N"),
        (["run", "--split-lock-detect=ratelimit:1001", "--", "true"], 125, "1 to 1000"),
        (["run", "--split-lock-detect=loud", "--", "true"], 125, "not a mode"),
        (["run", "--mitigate", "--split-lock-detect=fatal", "--", "true"], 125, "--mitigate"),
        (["run", "--error-exitcode", "256", "--", "true"], 125, "exit status"),
        (["run", "-o", "/nowhere/report", "--", "true"], 125, "/nowhere/report"),
        (["run", "--", "/nowhere/program"], 127, "not found"),
        (["run", "--", "no-such-program"], 127, "not found"),
        (["run", "--", "/etc/passwd"], 126, "cannot execute"),
        (["run", "--", "/"], 126, "cannot execute"),
        (["bogus"], 2, "bogus"),
    ],
)
def test_errors_are_one_line_and_the_status_env_and_timeout_use(
    environment: dict[str, str], words: list[str], status: int, said: str
) -> None:
    done = _command(environment, *words)
    assert done.returncode == status
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("splitlock")
    assert said in done.stderr
    assert done.stdout == ""


def test_being_traced_already_is_said(environment: dict[str, str]) -> None:
    done = subprocess.run(
        ["gdb", "-q", "-batch", "-ex", "set follow-fork-mode child", "-ex", "run", "--args", *SPLITLOCK, "run", "--",
         "true"],
        env={**environment, "DEBUGINFOD_URLS": ""}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "traces us already" in done.stdout + done.stderr


@pytest.mark.parametrize("status", [0, 1, 77, 255])
def test_the_programs_exit_status_is_ours(watch: Callable[..., Run], status: int) -> None:
    assert watch(["sh", "-c", f"exit {status}"]).status == status


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_death_by_signal_is_128_plus_its_number(watch: Callable[..., Run], number: int) -> None:
    run = watch(["sh", "-c", f"kill -{number} $$"])
    assert (run.status, run.report["exit_status"]) == (128 + number, 128 + number)


def test_error_exitcode_only_when_something_was_found(watch: Callable[..., Run], program: Program) -> None:
    assert watch([program("demo"), "1"], "--error-exitcode", "42").status == 42
    assert watch(["true"], "--error-exitcode", "42").status == 0


def test_a_script_without_an_interpreter_runs_as_with_env(watch: Callable[..., Run], tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("exit 5\n")
    script.chmod(0o755)
    assert watch([script]).status == 5
    script.write_text("#!/usr/bin/env python3\nraise SystemExit(6)\n")
    assert watch([script]).status == 6


def test_stdout_is_the_programs_and_text_goes_to_stderr(environment: dict[str, str], program: Program) -> None:
    done = _command(environment, "run", "--", program("demo"), "3")
    spent(3)
    assert done.stdout == "requests served: 3\n"
    report = done.stderr.splitlines()
    assert any(line.startswith("1 site took 3 split locks (1 process, 3 threads)") for line in report)
    assert max(map(len, (line for line in report if "#AC" not in line))) <= 80
    assert "[..............................##|##..............................]" in done.stderr
    assert "4 bytes at stats+0x3e (.data), 2 past the line" in done.stderr
    assert "serve ← start_thread" in done.stderr
    assert "unmonitored: nothing" in done.stderr


def test_nothing_found_still_says_what_was_watched(environment: dict[str, str]) -> None:
    done = _command(environment, "run", "--", "true")
    assert "no split locks in what was watched (1 process)" in done.stderr
    assert "in 3 images · unmonitored: nothing" in done.stderr
    assert _command(environment, "run", "-q", "--", "true").stderr == ""


def test_json_is_what_the_published_schema_says(watch: Callable[..., Run], program: Program) -> None:
    schema = json.loads((DOCS / "run.schema.json").read_text())
    assert schema == msgspec.json.schema(Report), "regenerate with: make schema"
    run = watch([program("demo"), "30"])
    jsonschema.validate(run.report, schema)
    jsonschema.validate(watch(["true"]).report, schema)
    assert run.report["schema"] == "splitlock/run/1"
    (site,) = run.report["sites"]
    assert site["function"] == "bump"
    assert site["source"].endswith("demo.c:23")
    assert (site["operand_size"], site["hits"], site["threads"]) == (4, 30, 3)
    sample = site["samples"][0]
    assert (sample["operand"], sample["past_line"], sample["comm"]) == ("stats+0x3e (.data)", 2, "demo")
    assert int(sample["operand_address"], 16) % 64 == 62
    assert [entry.split()[0] for entry in sample["stack"][:3]] == ["bump", "serve", "start_thread"]
    line = subprocess.run(
        ["addr2line", "-fe", site["image"], site["offset"]], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert line == [site["function"], site["source"]]


def test_the_api_gives_the_same_report(program: Program) -> None:
    report = splitlock.run([str(program("demo")), "6"])
    spent(6)
    assert isinstance(report, Report)
    assert (report.hits, report.exit_status, report.sites[0].function) == (6, 0, "bump")
    with pytest.raises(splitlock.SplitlockError) as caught:
        splitlock.run(["no-such-program"])
    assert caught.value.exit_code == 127


def _start(environment: dict[str, str], *words: str, session: bool = False) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*SPLITLOCK, "run", "--", *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=session,
    )  # fmt: skip


def test_signals_to_us_reach_the_program(environment: dict[str, str]) -> None:
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
        script = f"trap 'echo got; exit 9' {number.value}; echo ready; while :; do sleep 0.05; done"
        running = _start(environment, "sh", "-c", script)
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        running.send_signal(number)
        out, err = running.communicate(timeout=30)
        assert (running.returncode, out) == (9, "got\n")
        assert "no split locks in what was watched" in err


def test_ctrl_c_still_yields_the_report(environment: dict[str, str]) -> None:
    """As from a terminal: the whole process group gets SIGINT."""
    running = _start(environment, "sh", "-c", "echo ready; exec sleep 60", session=True)
    assert running.stdout is not None
    assert running.stdout.readline() == "ready\n"
    os.killpg(running.pid, signal.SIGINT)
    _, err = running.communicate(timeout=30)
    assert running.returncode == 128 + signal.SIGINT
    assert "no split locks in what was watched" in err


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_kill_9_on_us_ends_the_program(environment: dict[str, str]) -> None:
    script = "sleep 60 & echo $$ $!; wait"
    running = _start(environment, "sh", "-c", script)
    assert running.stdout is not None
    pids = [int(word) for word in running.stdout.readline().split()]
    running.kill()
    running.wait(timeout=10)
    deadline = time.monotonic() + 10
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(_alive(pid) for pid in pids)


def test_a_stopped_program_stops_and_goes_on(environment: dict[str, str]) -> None:
    running = _start(environment, "sh", "-c", "echo $$; kill -STOP $$; echo on")
    assert running.stdout is not None
    pid = int(running.stdout.readline())
    deadline = time.monotonic() + 10
    state = ""
    while state not in ("T", "t") and time.monotonic() < deadline:
        with open(f"/proc/{pid}/stat") as file:
            state = file.read().rsplit(")", 1)[1].split()[0]
        time.sleep(0.02)
    os.kill(pid, signal.SIGCONT)
    out, _ = running.communicate(timeout=30)
    assert (out, running.returncode) == ("on\n", 0)


def test_help_has_examples_and_fits(environment: dict[str, str]) -> None:
    for words in ([], ["run"]):
        done = _command(environment, *words, "--help")
        assert "examples:" in done.stdout
        assert max(map(len, done.stdout.splitlines())) <= 80
    assert _command(environment, "--version").stdout.split() == ["splitlock", splitlock.__version__]
    assert sys.version_info >= (3, 11)
