"""`splitlock run` as a person meets it: options, errors, exit status, report, signals."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jsonschema
import msgspec
import pytest
from conftest import COMMAND, Run, spent

import splitlock
from splitlock.report.run import Report

Program = Callable[..., Path]
DOCS = Path(__file__).parents[2] / "docs"


def _command(environment: dict[str, str], *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, words)], env=environment, capture_output=True, text=True, timeout=60, check=False
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
        (["run", "--unmonitored-exitcode", "-1", "--", "true"], 125, "exit status"),
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
        ["gdb", "-q", "-batch", "-ex", "set follow-fork-mode child", "-ex", "run", "--args", *COMMAND, "run",
         "--engine=ptrace", "--", "true"],
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


# memory that may be executed, and belongs to no file
UNWATCHED = "import mmap, os; kept = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 7); os._exit(5)"


def test_unmonitored_exitcode_only_when_something_was_not_watched(watch: Callable[..., Run], program: Program) -> None:
    option = ("--unmonitored-exitcode", "43")
    plain, partly = ["sh", "-c", "exit 5"], ["/usr/bin/python3", "-c", UNWATCHED]
    assert watch(plain, *option).status == 5
    assert watch(partly, *option).status == 43
    assert watch(partly).status == 5
    assert watch(plain, *option, "--split-lock-detect=off").status == 43
    assert watch([program("demo"), "1"], *option, "--error-exitcode", "42").status == 42
    both = ["sh", "-c", f'{program("demo")} 1; /usr/bin/python3 -c "{UNWATCHED}"']
    assert watch(both, *option).status == 43
    assert watch(both, *option, "--error-exitcode", "42").status == 42  # what was found comes first


def _on_a_terminal(environment: dict[str, str], *words: str) -> str:
    """What stands on a terminal after a run there."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(COMMAND[0], [*COMMAND, "run", "-q", "--", *words], environment)
    said = b""
    try:
        while part := os.read(terminal, 4096):
            said += part
    except OSError:  # the terminal's other side is closed
        pass
    os.waitpid(pid, 0)
    os.close(terminal)
    return said.decode()


def test_quiet_on_a_terminal_says_when_not_all_was_watched(environment: dict[str, str]) -> None:
    assert _on_a_terminal(environment, "true") == ""
    said = _on_a_terminal(environment, "/usr/bin/python3", "-c", UNWATCHED)
    assert said.startswith("splitlock: only part was watched: ")
    assert len(said.splitlines()) == 1
    # in a pipe nothing stands between the program's lines
    words = ["run", "-q", "--", "/usr/bin/python3", "-c", UNWATCHED]
    assert _command(environment, *words).stderr == ""


def test_the_first_line_says_how_much_was_watched(environment: dict[str, str]) -> None:
    """The shares are those of the JSON's numbers."""
    words = ["run", "--format", "json", "--", "/usr/bin/python3", "-c", UNWATCHED]
    report = msgspec.json.decode(_command(environment, *words).stderr, type=Report)
    first = _command(environment, "run", *words[3:]).stderr.splitlines()[0]
    unseen = sum(rest.bytes or 0 for rest in report.unmonitored)
    assert 0 < unseen < report.watched.bytes
    share = 1000 * report.watched.bytes // (report.watched.bytes + unseen)
    assert first.startswith(f"only part was watched: {share // 10}.{share % 10}% of the code, ")


def test_watched_bytes_are_the_code_of_the_images(watch: Callable[..., Run]) -> None:
    """By readelf: the executable segments of what `true` maps, all of it known functions."""
    images = ["/usr/bin/true", "/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]
    size = 0
    for image in images:
        listed = subprocess.run(["readelf", "-lW", image], capture_output=True, text=True, check=True).stdout
        size += sum(int(line.split()[4], 16) for line in listed.splitlines() if " R E " in line)
    assert watch(["/usr/bin/true"]).report["watched"]["bytes"] == size


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


def _start(
    environment: dict[str, str], *words: str, session: bool = False, engine: str = "auto"
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "run", f"--engine={engine}", "--", *words], env=environment, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=session,
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


def test_kill_9_on_us_leaves_the_program_alone(environment: dict[str, str]) -> None:
    running = _start(environment, "sh", "-c", "echo ready; read line; /bin/true && (exit 3); echo $line $?")
    assert running.stdin is not None
    assert running.stdout is not None
    assert running.stdout.readline() == "ready\n"
    running.kill()
    running.wait(timeout=10)
    running.stdin.write("on\n")
    running.stdin.close()
    assert running.stdout.read() == "on 3\n"


def test_kill_9_on_a_tracer_ends_the_program(environment: dict[str, str]) -> None:
    script = "sleep 60 & echo $$ $!; wait"
    running = _start(environment, "sh", "-c", script, engine="ptrace")
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


def test_an_old_report_is_not_this_runs(environment: dict[str, str], tmp_path: Path) -> None:
    """-q leaves nothing to say: then the file holds nothing."""
    for engine in ("agent", "ptrace"):
        (tmp_path / "report").write_text("old\n")
        words = [*COMMAND, "run", f"--engine={engine}", "-q", "-o", str(tmp_path / "report"), "--", "true"]
        subprocess.run(words, env=environment, check=True)
        assert (tmp_path / "report").read_text() == ""


@pytest.mark.parametrize("engine", ["agent", "ptrace", "auto"])
def test_what_is_missing_is_named(environment: dict[str, str], tmp_path: Path, engine: str) -> None:
    (tmp_path / "script").write_text("#!/nosuch/interpreter\n")
    (tmp_path / "script").chmod(0o755)
    for name, said in ((str(tmp_path / "script"), "interpreter is not there"), ("", "the program's name is empty")):
        words = [*COMMAND, "run", f"--engine={engine}", "--", name]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 127
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
