"""The command itself, compiled: it does what Python does, and leaves to Python what is not plain."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import COMMAND, SPLITLOCK, spent
from process.agent.conftest import AsAlone, Compiled, Executed, place
from programs import gen_forms


def test_nothing_but_the_program(executed: Executed) -> None:
    executed("--", "sh", "-c", "/bin/true")  # analysed now
    assert executed("--", "sh", "-c", "true; exit 3") == ["splitlock", "sh", "3"]
    assert executed("-q", "--engine=agent", "sh", "-c", "/bin/true & wait; kill $$") == [
        "splitlock",
        "sh",
        "true",
        "143",
    ]


@pytest.mark.parametrize(
    "words",
    [
        ["--format=json", "--", "true"], ["-v", "--", "true"], ["-qv", "--", "true"], ["--form", "text", "--", "true"],
        ["--split-lock-detect=ratelimit:5", "true"], ["--engine", "ptrace", "--", "true"],
        ["--error-exitcode=256", "true"],
        ["--", "/nonexistent"], ["--", "/etc/passwd"], ["--", "busybox", "true"], ["--help"], [], ["--"], ["-o"],
        ["-o", "/nonexistent/report", "--", "true"], ["-D", "--", "true"], ["--", ""], ["-x", "true"],
    ],
)  # fmt: skip
def test_what_is_pythons(executed: Executed, own: dict[str, str], words: list[str]) -> None:
    """It is executed, and all is as without the front."""
    assert "splitlock-python" in executed(*words)
    ours, pythons = (
        subprocess.run([*how, "run", *words], env=own, capture_output=True, text=True, check=False)
        for how in (COMMAND, SPLITLOCK)
    )
    assert (ours.returncode, ours.stdout, ours.stderr) == (pythons.returncode, pythons.stdout, pythons.stderr)


PROGRAMS = {
    "true": ["true"], "children": ["sh", "-c", "for i in 1 2 3; do /bin/true; done"],
    "many": ["sh", "-c", "(:)&" * 1100 + "wait"], "bare": ["env", "-i", "/bin/true"],
    "status": ["sh", "-c", "exit 77"], "signal": ["sh", "-c", "kill -QUIT $$"], "script": ["which", "true"],
    "python": ["python3", "-I", "-c", "print(1)"], "docker": ["docker"],
    "static": ["sh", "-c", "busybox true"], "made": ["node", "-e", "1"],
    "cut": ["bash", "-c", "ulimit -v 20000; /bin/true"],
    "perl": ["perl", "-e", "exec 'docker'"], "later": ["sh", "-c", "(sleep 0.5; busybox true) & exit 2"],
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("options", [[], ["-q"]], ids=["", "quiet"])
def test_the_same_is_said(own: dict[str, str], tmp_path: Path, name: str, options: list[str]) -> None:
    """As by Python alone, which knows another way to say it."""
    (tmp_path / "docker").write_text("#!/bin/sh\n")
    (tmp_path / "docker").chmod(0o755)
    env = {**own, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    said = []
    for how in (SPLITLOCK, COMMAND):
        done = subprocess.run(
            [*how, "run", *options, "--engine=agent", "--", *PROGRAMS[name]],
            env=env, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        said.append((done.returncode, done.stdout, done.stderr))
    assert said[0] == said[1]


def test_a_program_that_splits(own: dict[str, str], compiled: Compiled, executed: Executed) -> None:
    """Python comes while it runs, or at the end, and tells it all."""
    argv = ["--error-exitcode=9", "--", str(compiled("splits"))]
    done = subprocess.run([*COMMAND, "run", *argv], env=own, capture_output=True, text=True, check=False)
    spent(6)
    assert done.returncode == 9
    assert done.stderr.count("took a split_lock trap at") == 1
    assert "3 sites took 3 split locks (1 process, 1 thread)" in done.stderr
    names = executed(*argv)
    assert names[:2] == ["splitlock", "splits"]
    assert "splitlock-python" in names


def test_python_is_killed(own: dict[str, str], compiled: Compiled) -> None:
    """When it analyses, or after that: the program goes on, and another one reports in the end."""
    script = f"{compiled('splits')}; sleep 1; pkill -9 -P $PPID -f joined[=]; sleep 0.2; {compiled('stopped')}; exit 4"
    done = subprocess.run(
        [*COMMAND, "run", "--", "sh", "-c", script], env=own, capture_output=True, text=True, check=False, timeout=60
    )
    spent(3)
    assert done.returncode == 4
    assert "3 sites took 3 split locks" in done.stderr


def test_python_cannot_be_started_in_the_end(own: dict[str, str]) -> None:
    """Its memory is taken while the program runs: the status is the program's, and that there is no report is said."""
    subprocess.run([*COMMAND, "run", "-q", "--", "sh", "-c", "prlimit --version"], env=own, check=True)  # analysed now
    script = "prlimit --pid $PPID --as=3000000; exit 6"
    done = subprocess.run(
        [*COMMAND, "run", "-v", "--", "sh", "-c", script], env=own, capture_output=True, text=True, check=False
    )
    assert done.returncode == 6
    assert "no report: Python could not be started" in done.stderr


@pytest.fixture
def spoilt(own: dict[str, str]) -> Iterator[Callable[[str], None]]:
    """`spoilt(how)`: what Python has written down is not to be believed."""
    file = place(own)

    def spoil(how: str) -> None:
        text = file.read_text()
        if how == "gone":
            file.unlink()
        elif how == "empty":
            file.write_text("")
        elif how == "cut":
            file.write_text(text[: text.index("name")])
        elif how == "versions":
            file.write_text(text.replace("versions ", "versions 1"))
        elif how == "front":
            file.write_text(text.replace("front ", "front 1"))
        elif how == "agent":
            file.write_text(text.replace("agent ", "agent 1"))
        elif how == "other agent":
            shutil.copy(text.split("agent ")[1].split()[1], file.parent / "agent.so")
            file.write_text(text.replace(text.split("agent ")[1].split()[1], str(file.parent / "agent.so")))
        elif how == "long":
            file.write_text(text.replace("shared /", "shared /" + 300 * "x/"))
        elif how == "noise":
            file.write_bytes(os.urandom(5000))
        elif how == "huge":
            file.write_text(text + 100_000 * "name x\n")
        elif how == "link":
            file.rename(file.parent / "elsewhere")
            file.symlink_to(file.parent / "elsewhere")
        elif how == "group":
            file.parent.chmod(0o770)
        elif how == "owner":
            os.chown(file.parent, 65534, 65534)

    yield spoil
    file.parent.chmod(0o700)
    os.chown(file.parent, os.geteuid(), -1)


HOWS = [
    "gone", "empty", "cut", "versions", "front", "agent", "other agent", "long", "noise", "huge", "link", "group",
    "owner",
]  # fmt: skip


@pytest.mark.parametrize("how", HOWS)
def test_what_was_written_down_is_not_believed(
    spoilt: Callable[[str], None], executed: Executed, own: dict[str, str], how: str
) -> None:
    if how == "owner" and os.geteuid():
        pytest.skip("needs root")
    spoilt(how)
    first = executed("--", "true")
    assert "splitlock-python" in first
    assert first[-1] == "0"
    if how not in ("group", "owner"):  # there Python keeps nothing either
        assert executed("--", "true") == ["splitlock", "true", "0"]


_STREAMS = """
import os, sys
found = []
for descriptor in range(3):
    try:
        found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    except OSError:
        found.append("closed")
with open(sys.argv[1], "w") as file:
    print(*found, file=file)
sys.exit(6)
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("options", [[], ["-v"], ["-D"], ["--engine=ptrace"]], ids=["", "joined", "aside", "traced"])
def test_closed_streams(own: dict[str, str], tmp_path: Path, closed: str, options: list[str]) -> None:
    """The program finds them closed, and the report goes into nothing that has come in their place."""
    found = []
    for name, ours in (("alone", []), ("watched", [*COMMAND, "run", *options, "--"])):
        script, file = f'"$@" {closed}; echo $?', tmp_path / name
        words = ["sh", "-c", script, "sh", *ours, sys.executable, "-I", "-c", _STREAMS, str(file)]
        with (tmp_path / "err").open("w") as err, (tmp_path / "in").open("w+") as given:
            done = subprocess.run(
                words, env=own, stdin=given, stdout=subprocess.PIPE, stderr=err, text=True, check=False
            )
        assert done.stdout == "6\n"
        found.append(re.sub(r"pipe:\[\d+\]", "pipe", file.read_text()))
    assert found[0] == found[1]
    assert found[0].split().count("closed") == closed.count("&-")
    until = time.monotonic() + 20
    while "2>&-" not in closed and "split locks" not in (tmp_path / "err").read_text():  # with -D it comes behind
        assert time.monotonic() < until
        time.sleep(0.05)


def test_the_kernels_copy_of_the_environment(own: dict[str, str]) -> None:
    """Behind it are zeros, where the agent's lines were."""
    for env in (own, {**own, "LAST": "", "A" * 5000: "="}, {"XDG_CACHE_HOME": own["XDG_CACHE_HOME"]}):
        words = ["cat", "/proc/self/environ"]
        alone, ours = (
            subprocess.run([*more, *words], env=env, capture_output=True, check=True).stdout
            for more in ([], [*COMMAND, "run", "-q", "--"])
        )
        assert ours.rstrip(b"\0") == alone.rstrip(b"\0")
        assert ours.startswith(alone)


def test_what_is_ignored_stays_ignored(own: dict[str, str], as_alone: AsAlone) -> None:
    words = [
        "python3",
        "-I",
        "-c",
        "import signal as s; print([n for n in s.valid_signals() if s.getsignal(n) == s.SIG_IGN])",
    ]
    for prefix in (["sh", "-c", "trap '' CHLD HUP INT USR1 PIPE; exec \"$@\"", "sh"], []):
        alone = subprocess.run([*prefix, *words], capture_output=True, text=True, check=True)
        ours = subprocess.run(
            [*prefix, *COMMAND, "run", "-q", "--", *words], env=own, capture_output=True, text=True, check=True
        )
        assert ours.stdout == alone.stdout


def test_without_the_package(tmp_path: Path, compiled: Compiled) -> None:
    """A command whose Python is gone says so."""
    command = shutil.copy(COMMAND[0], tmp_path / "splitlock")
    done = subprocess.run([command, "run", "--", "true"], capture_output=True, text=True, check=False)
    assert done.returncode == 125
    assert (
        done.stderr == f"splitlock: {tmp_path}/splitlock-python: No such file or directory; install splitlock again\n"
    )


@pytest.mark.parametrize("where", ["heap", "stack", "thread", "mapped", "shared", "file", "data"])
def test_where_an_operand_is(own: dict[str, str], compiled: Compiled, tmp_path: Path, where: str) -> None:
    """Said also of a program that has ended before Python looks."""
    program = compiled("places")
    report = tmp_path / "report"
    words: list[str | Path] = ["run", "-q", "--split-lock-detect=fatal", "--format=json"]
    words += ["-o", report, "--", program, where]
    for _ in range(2):  # analysed by the second time
        subprocess.run([*COMMAND, *words, tmp_path / "mapped file"], env=own, check=False)
    ((sample,),) = (site["samples"] for site in json.loads(report.read_text())["sites"])
    names = {
        "heap": "heap", "stack": "stack", "thread": "stack of the thread", "mapped": "anonymous memory + 0x3e",
        "shared": "shared anonymous memory + 0x3e", "file": f"{tmp_path}/mapped file + 0x3e",
        "data": "data+0x3e (.bss)",
    }  # fmt: skip
    assert sample["operand"] == names[where]


@pytest.mark.parametrize(
    ("what", "count"),
    [
        ("fork", 5_000), ("map", 50_000),
        pytest.param("fork", 100_000, marks=pytest.mark.slow), pytest.param("map", 1_000_000, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_it_does_not_grow(own: dict[str, str], tmp_path: Path, what: str, count: int) -> None:
    """Whatever the program does so often, the command needs no more memory for it: kB of its own, by the kernel."""
    source = Path(__file__).parents[3] / "benchmarks" / "programs" / "steps.c"
    program = gen_forms.compile_c(tmp_path / "steps", [source], ["-O2"])
    subprocess.run([*COMMAND, "run", "-q", "--", program, what, "10"], env=own, stdout=-3, check=True)  # analysed now
    process = subprocess.Popen([*COMMAND, "run", "-q", "--", program, what, str(count)], env=own, stdout=-3)
    kept = []
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            kept += [int(line.split()[1]) for line in lines if line.startswith("RssAnon:")]
        except OSError:  # it has ended
            pass
        time.sleep(0.05)
    assert process.returncode == 0
    assert len(kept) > 5
    assert max(kept) < 512, kept
