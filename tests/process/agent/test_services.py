"""The program keeps our process (`run -D`): in systemd's units, and wherever else somebody counts on it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import COMMAND, spent
from process.agent.conftest import Compiled
from process.agent.systemd import INSIDE, boot

#: what units are hardened with
HARDENED = {
    "plain": "", "calls": "SystemCallFilter=@system-service", "memory": "MemoryDenyWriteExecute=yes",
    "privileges": "NoNewPrivileges=yes", "native": "SystemCallArchitectures=native",
    "user": "DynamicUser=yes",
}  # fmt: skip
HARDENED["all"] = "\n".join(HARDENED.values())
_UNIT = """
[Service]
Type={kind}
NotifyAccess=main
StateDirectory=%N
{options}
ExecStart={run} -o /var/lib/%N/report -- {program} /var/lib/%N/out {how}
"""
_SOCKET = "[Socket]\nListenStream=127.0.0.1:7377\n"
_SCRIPT = """
cd {place}
for unit in {units}; do
    systemctl start $unit
    systemctl show -p MainPID,ActiveState $unit >$unit.started
    systemctl stop $unit
    systemctl show -p Result,ExecMainStatus $unit >$unit.stopped
    cp /var/lib/$unit/report $unit.report
    cp /var/lib/$unit/out $unit.out
done
systemctl start accepts.socket
exec 5<>/dev/tcp/127.0.0.1/7377
head -1 <&5 >accepts.said
systemctl stop accepts.service accepts.socket
cp /var/lib/accepts/report accepts.report
cp /var/lib/accepts/out accepts.out
"""


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory, compiled: Compiled) -> Path:
    """All units, started and stopped once; the files that they and the script left."""
    if os.geteuid() or not shutil.which("/lib/systemd/systemd"):
        pytest.skip("needs root and systemd, to be process 1 of namespaces of its own")
    place = tmp_path_factory.mktemp("units")
    shutil.copy(compiled("service"), place / "service")
    (place / "service").chmod(0o755)
    run = f"{sys.executable} -I -m splitlock run --format json"
    made = {}
    for name, options in HARDENED.items():
        text = _UNIT.format(run=run, program=f"{INSIDE}/service", kind="notify", options=options, how="notify")
        made[f"{name}.service"] = text
    accepts = _UNIT.format(run=run, program=f"{INSIDE}/service", kind="simple", options="", how="accept")
    made |= {"accepts.service": accepts, "accepts.socket": _SOCKET}
    boot(made, _SCRIPT.format(place=INSIDE, units=" ".join(HARDENED)), place)
    return place


def values(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines())


def one_split(report: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(report.read_text())
    assert found["exit_status"] is None
    if found["hits"] != 1:
        spent(1)
    assert found["hits"] == 1
    return found


@pytest.mark.parametrize("name", HARDENED)
def test_a_unit_that_says_when_it_is_ready(units: Path, name: str) -> None:
    """It is systemd's main process, whose word is taken and whose exit status counts; it and its child are watched."""
    started = values((units / f"{name}.started").read_text())
    assert started["ActiveState"] == "active"
    pid = started["MainPID"]
    assert (units / f"{name}.out").read_text() == f"pid {pid} parent 1 listens - fds -\nchild 0\n"
    assert values((units / f"{name}.stopped").read_text()) == {"Result": "exit-code", "ExecMainStatus": "3"}
    report = one_split(units / f"{name}.report")
    assert report["watched"]["processes"] == 2
    assert report["unmonitored"] == []


def test_a_unit_that_a_socket_starts(units: Path) -> None:
    assert (units / "accepts.said").read_text() == "served\n"
    pid, listens = ((units / "accepts.out").read_text().split()[i] for i in (1, 5))
    assert pid == listens
    one_split(units / "accepts.report")


Started = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Started]:
    """`started(words...)`: splitlock run -D, and where its report will be."""
    running: list[subprocess.Popen[str]] = []

    def start(*words: str | Path, **more: Any) -> subprocess.Popen[str]:
        argv = [*COMMAND, "run", "-D", "--format=json", "-o", tmp_path / "report", *words]
        running.append(subprocess.Popen(argv, stdin=-1, stdout=-1, stderr=-1, text=True, **more))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate(timeout=30)


def reported(path: Path) -> dict[str, Any]:
    """The report, once it is there: the program's parent does not wait for it."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            found: dict[str, Any] = json.loads(path.read_text())
            return found
        except (OSError, ValueError):
            time.sleep(0.02)
    raise AssertionError("no report within 30 seconds")


@pytest.mark.parametrize("ending", ["exit 7", "kill -TERM $$", "kill -SEGV $$"])
def test_its_parent_sees_the_program(started: Started, tmp_path: Path, ending: str) -> None:
    process = started("--", "sh", "-c", f"read line; echo $$ $PPID $line; {ending}")
    out, err = process.communicate("hello\n", timeout=60)
    assert (out, err) == (f"{process.pid} {os.getpid()} hello\n", "")
    alone = subprocess.run(["sh", "-c", ending], check=False)
    assert process.returncode == alone.returncode
    assert reported(tmp_path / "report")["watched"]["processes"] == 1


def test_what_it_leaves_behind_is_watched(started: Started, compiled: Compiled, tmp_path: Path) -> None:
    process = started("--", "sh", "-c", f"(sleep 1; {compiled('splits')}) >/dev/null 2>&1 & exit 4")
    process.communicate(timeout=60)
    assert process.returncode == 4
    report = reported(tmp_path / "report")
    if report["hits"] != 3:
        spent(3)
    assert report["hits"] == 3


def test_nobody_else_holds_its_descriptors(started: Started, tmp_path: Path) -> None:
    """Whoever waits for the end of a pipe or of a listening socket waits for the program only."""
    listening = socket.create_server(("127.0.0.1", 0))
    reading, writing = os.pipe()
    passed = [listening.fileno(), writing]
    closing = "; ".join(f"exec {descriptor}>&-" for descriptor in passed)
    process = started("--", "bash", "-c", f"{closing}; exec >&-; read line", pass_fds=passed)
    address = listening.getsockname()
    os.close(writing)
    listening.close()
    assert process.stdout is not None
    assert process.stdout.read() == ""
    assert os.read(reading, 1) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    process.communicate("\n", timeout=60)
    reported(tmp_path / "report")


def test_what_a_terminal_sends_is_for_the_program(started: Started, tmp_path: Path) -> None:
    process = started("--", "sh", "-c", "trap 'echo got; exit 6' INT; read line", start_new_session=True)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=60)[0] == "got\n"
    assert process.returncode == 6
    reported(tmp_path / "report")


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--", "/nonexistent"], 127, "/nonexistent: not found"),
        (["--", "/etc/passwd"], 126, "/etc/passwd: cannot execute"),
        (["--engine=ptrace", "--", "true"], 125, "-D: true cannot have this process: a tracer has to be its parent"),
        (["--split-lock-detect=off", "--", "true"], 125, "-D: true cannot have this process: with off, nobody"),
        (["--error-exitcode=3", "--", "true"], 125, "-D: the program's exit status is its own: leave out --error"),
        (["--unmonitored-exitcode=3", "--", "true"], 125, "-D: the program's exit status is its own"),
        (["--", "busybox", "true"], 125, "-D: busybox cannot have this process: a static program"),
    ],
)
def test_where_it_cannot_be(started: Started, words: list[str], status: int, said: str) -> None:
    process = started(*words)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (status, "")
    assert err.startswith(f"splitlock: {said}")
    assert err.count("\n") == 1


def test_process_1() -> None:
    """Of a namespace: its end takes all others with it, and the report."""
    if os.geteuid():
        pytest.skip("a PID namespace: needs root")
    words = ["unshare", "--pid", "--fork", "--mount-proc", *COMMAND, "run", "-D", "--", "true"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 125
    assert done.stderr.startswith("splitlock: -D: splitlock is process 1 here")


@pytest.mark.parametrize("line", ["NOTIFY_SOCKET=@nobody", "LISTEN_PID=$$"])
def test_where_somebody_counts_on_it(line: str) -> None:
    """It is so by itself; where it cannot be, that is said, and the program runs."""
    script = f'export {line}; echo $$; exec "$@"'
    for options, same in ([], True), (["--error-exitcode=3"], False), (["--engine=ptrace"], False):
        words = ["sh", "-c", script, "sh", *COMMAND, "run", "-q", *options, "--", "sh", "-c", "echo $$"]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
        first, second = done.stdout.split()
        assert (first == second) == same
        assert ("counts on" in done.stderr) == (options == ["--engine=ptrace"])
