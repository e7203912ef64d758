"""Programs that the agent has no place in, executed by others: a tracer follows them, and what they start."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import COMMAND, Run
from process.agent.conftest import AsAlone, Compiled

from splitlock.process.agent.judged import AGENT

STATIC = "-static"
HOWS = ["fork", "vfork", "spawn", "clone3", "thread", "fd", "empty", "at", "bare"]


@pytest.mark.parametrize("how", HOWS)
def test_a_static_child_finds_what_it_finds_alone(
    watch: Callable[..., Run], compiled: Compiled, environment: dict[str, str], how: str
) -> None:
    """Environment, vectors, descriptors, limits, signals; but for what a tracer shows. And it is watched."""
    words = [str(compiled("surroundings")), how, str(compiled("surroundings", STATIC))]
    env = {**environment, "EMPTY": ""}
    alone = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    run = watch(words, "-q", env={"EMPTY": ""})
    shown = re.compile(r"status (TracerPid|Seccomp(_filters)?):.*\n")
    assert (run.status, shown.sub("", run.out)) == (alone.returncode, shown.sub("", alone.stdout))
    assert run.report["unmonitored"] == []
    assert run.out.count("\nauxv: ") == 2


def test_all_of_a_tree_is_counted(watch: Callable[..., Run], compiled: Compiled) -> None:
    """From dynamic to static and back, side by side; the same image in both kinds is one."""
    dynamic, static = compiled("splits"), compiled("splits", STATIC)
    nested = f'busybox sh -c "{dynamic}; {static}; true"'
    run = watch(["sh", "-c", f"{static} & {dynamic}; {nested}; wait; exit 5"])
    assert run.status == 5
    assert run.report["hits"] == 12
    assert sum(run.hits(dynamic).values()) == sum(run.hits(static).values()) == 6
    assert {len(site["samples"]) for site in run.report["sites"]} == {2}
    assert {site["processes"] for site in run.report["sites"]} == {2}
    assert all(sample["stack"] for site in run.report["sites"] for sample in site["samples"])
    assert run.report["watched"]["processes"] == 6


def test_fatal(watch: Callable[..., Run], compiled: Compiled) -> None:
    run = watch(["sh", "-c", f"{compiled('splits', STATIC)}; echo $?"], "--split-lock-detect=fatal")
    assert run.out == f"{128 + signal.SIGBUS}\n"
    assert run.report["hits"] == 1


@pytest.mark.parametrize("why", ["busy", "fault", "argument"])
def test_an_execution_that_fails(as_alone: AsAlone, compiled: Compiled, tmp_path: Path, why: str) -> None:
    """The tracer goes again: what the program does next is the agent's, and as alone."""
    static = tmp_path / "static"
    static.write_bytes(compiled("surroundings", STATIC).read_bytes())
    static.chmod(0o755)
    run = as_alone([compiled("fails"), why, static, compiled("surroundings")])
    assert run.report["watched"]["processes"] == 3
    assert run.report["unmonitored"] == []


def test_many_at_once(watch: Callable[..., Run]) -> None:
    """More than there are doors: nobody waits for ever, and who is not traced is in the report."""
    run = watch(["sh", "-c", "for i in $(seq 24); do busybox sleep 0.1 & done; wait; echo done"], timeout=240)
    assert (run.status, run.out) == (0, "done\n")
    assert run.report["watched"]["processes"] == 26


def test_signals_and_debuggers(as_alone: AsAlone) -> None:
    as_alone(["sh", "-c", "busybox sh -c 'trap \"echo got; exit 3\" TERM; kill $$; sleep 1'; echo $?"])
    as_alone(["sh", "-c", "busybox sh -c 'kill -SEGV $$'; echo $?"])


def test_where_ptrace_is_forbidden(watch: Callable[..., Run]) -> None:
    """By a filter, as in containers: the program runs unwatched, and is in the report."""
    run = watch(["sh", "-c", "busybox true; echo $?"], env={"SPLITLOCK_TEST": "1"}, preexec_fn=_no_ptrace)
    assert run.out == "0\n"
    assert [u["reason"] for u in run.report["unmonitored"] if "busybox" in u["image"]] == ["a static program"]


def test_a_library_that_is_executed(watch: Callable[..., Run], compiled: Compiled, tmp_path: Path) -> None:
    """It begins where it has no code, and dies: that is no mistake of ours."""
    library = tmp_path / "library"
    library.write_bytes(compiled("bump.so", "-Wl,-e,0").read_bytes())
    library.chmod(0o755)
    run = watch(["sh", "-c", f"{library}; echo $?"], "-q")
    assert run.out == f"{128 + signal.SIGSEGV}\n"
    said = [u["reason"] for u in run.report["unmonitored"] if u.get("image") == str(library)]
    assert said == ["could not be followed, nor what it starts: where it begins there is no code"]


def _no_ptrace() -> None:
    """EPERM for ptrace(2), by a filter: load the number; equal? errno 1, else allow."""
    import ctypes
    import struct

    code = struct.pack("<" + 4 * "HBBI", 0x20, 0, 0, 0, 0x15, 0, 1, 101, 0x06, 0, 0, 0x50001, 0x06, 0, 0, 0x7FFF0000)
    held = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", 4, ctypes.addressof(held)))
    libc = ctypes.CDLL(None)
    libc.prctl(38, 1, 0, 0, 0)
    assert libc.prctl(22, 2, ctypes.c_ulong(ctypes.addressof(program)), 0, 0) == 0


@pytest.mark.parametrize("victim", ["front", "python"])
def test_we_may_die(compiled: Compiled, tmp_path: Path, environment: dict[str, str], victim: str) -> None:
    """The tracer follows on, without those who started it."""
    script = f"busybox sh -c 'echo $$ >{tmp_path}/pid; sleep 2; echo on >{tmp_path}/on'"
    process = subprocess.Popen([*COMMAND, "run", "-q", "--", "sh", "-c", script], env=environment)
    until = time.monotonic() + 30
    while not (tmp_path / "pid").exists() and time.monotonic() < until:
        time.sleep(0.05)
    if victim == "front":
        process.kill()
    else:
        subprocess.run(["pkill", "-9", "-P", str(process.pid), "-f", "joined"], check=True)
    process.wait(timeout=30)
    while not (tmp_path / "on").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert (tmp_path / "on").read_text() == "on\n"
    assert victim == "front" or process.returncode == 0


@pytest.mark.parametrize("when", ["at once", "later"])
def test_what_a_dead_python_knew_is_missed(compiled: Compiled, environment: dict[str, str], when: str) -> None:
    """Killed as soon as it is there, or while the tracer works: nobody waits for ever, and no bill reads clean."""
    kill = "pkill -9 -s 0 -f joined[=]"
    wait = f"until {kill}; do :; done" if when == "at once" else f"sleep 1.5; {kill}"
    script = f"busybox sleep 3 & {wait}; wait; exit 5"
    done = subprocess.run(
        [*COMMAND, "run", "--unmonitored-exitcode=77", "--", "bash", "-c", script],
        env=environment, capture_output=True, text=True, timeout=60, check=False, start_new_session=True,
    )  # fmt: skip
    assert done.returncode == 77, done.stderr
    assert "unmonitored: nothing" not in done.stderr


def test_a_tracer_that_cannot_begin(environment: dict[str, str]) -> None:
    """It is killed before it says that it is there: the program runs unwatched."""
    run = "$(awk -v front=$PPID '$5 == front { print $2 }' /proc/sysvipc/shm)"  # other runs' are let be
    script = (
        f"run={run}; busybox true & for i in $(seq 100); do pkill -9 -f traced[=]$run: && break; done; wait; exit 5"
    )
    done = subprocess.run(
        [*COMMAND, "run", "--unmonitored-exitcode=77", "--", "bash", "-c", script],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode in (5, 77), done.stderr  # it may have been quicker


def test_knocking_takes_no_second(environment: dict[str, str], tmp_path: Path) -> None:
    """Who waits for the same word is woken, too: ten static programs, one after the other."""
    words = [*COMMAND, "run", "-q", "--", "sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 0; do busybox true; done"]
    subprocess.run(words, env=environment, check=True)
    subprocess.run(["strace", "-f", "-o", tmp_path / "log", "-e", "trace=futex", *words], env=environment, check=True)
    waits: dict[str, bool] = {}  # by thread, whether its last was for a second
    timed_out = 0
    for line in (tmp_path / "log").read_text().splitlines():
        thread, text = line.split(None, 1)
        if text.startswith("futex("):
            waits[thread] = "{tv_sec=1, tv_nsec=0}" in text
        timed_out += "ETIMEDOUT" in text and waits[thread]
    assert "{tv_sec=1, tv_nsec=0}" in (tmp_path / "log").read_text()
    assert timed_out < 5


def test_where_ends_of_children_are_ignored(environment: dict[str, str], compiled: Compiled) -> None:
    """By whoever started us: the program finds that so, and we wait for ours all the same."""
    say = "import signal; print(signal.getsignal(signal.SIGCHLD).name)"
    for words in ([], ["-D"], ["--engine=ptrace"]):
        script = f"trap '' CHLD; exec {' '.join(COMMAND)} run -q {' '.join(words)} -- python3 -I -c '{say}'"
        done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
        assert (done.stdout, done.stderr) == ("SIG_IGN\n", ""), words
    static = compiled("surroundings", STATIC)
    script = f"trap '' CHLD; exec {' '.join(COMMAND)} run -- sh -c '{static}; exit 4'"
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "unmonitored: nothing" in done.stderr


def test_verbose_says_who_and_why(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [*COMMAND, "run", "-v", "--", "sh", "-c", "busybox true"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr.startswith("splitlock: /usr/bin/busybox is traced, since the agent has no place in it: a static")


def test_one_that_was_killed(watch: Callable[..., Run]) -> None:
    """A tracer's death is its program's, as with strace; the report says that there was one."""
    kill = "kill -9 $(sed -n s/TracerPid://p /proc/$$/status)"
    run = watch(["sh", "-c", f"busybox sh -c '{kill}; sleep 5' ; echo $?"])
    assert run.out == f"{128 + signal.SIGKILL}\n"
    assert [u["reason"][:35] for u in run.report["unmonitored"]] == ["what a tracer has found is lost: it"]


@pytest.mark.parametrize("whose", ["stranger", "parent"])
def test_nobody_asks_for_another(watch: Callable[..., Run], compiled: Compiled, whose: str) -> None:
    """A worker that has given up its rights writes to the run's memory: the tracer, which has them, traces nobody."""
    knocks = compiled("knocks", f"-I{Path(AGENT).parent}")
    with subprocess.Popen(["sleep", "60"]) as stranger:
        run = watch([knocks, stranger.pid if whose == "stranger" else whose])
        assert stranger.poll() is None
        stranger.kill()
    assert (run.status, run.out) == (0, "0 0\n")


@pytest.mark.parametrize("scope", [0, 1, 2])
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_whom_a_program_lets_trace_it(environment: dict[str, str], tmp_path: Path, scope: int) -> None:
    """Only where Yama asks for it does the agent name a tracer: the kernel then forgets the program's own."""
    yama = "/proc/sys/kernel/yama"
    fake = f'mount -t tmpfs none /proc/sys/kernel; mkdir {yama}; echo {scope} >{yama}/ptrace_scope; exec "$@"'
    trace = ["strace", "-f", "-o", str(tmp_path / "log"), "-e", "trace=prctl"]
    words = [*COMMAND, "run", "-q", "--", "sh", "-c", "busybox true; exit 5"]
    done = subprocess.run(["unshare", "-m", "sh", "-ec", fake, "sh", *trace, *words], env=environment, check=False)
    assert done.returncode == 5
    named = re.findall(r"PR_SET_PTRACER, ([1-9]\d*)", (tmp_path / "log").read_text())
    assert len(named) == (scope == 1)
