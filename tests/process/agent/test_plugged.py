"""What programs do with libraries that are watched, and what workers without rights try on those who trust them less.

What is right is what the same program does alone, and that the report tells of whatever was not watched.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import COMMAND, Run
from process.agent.conftest import INSIDE, AsAlone, Compiled

from splitlock.process.agent import memory

Watch = Callable[..., Run]
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, which workers are not to get at")


@pytest.fixture
def plugged(compiled: Compiled) -> str:
    return str(compiled("plugged"))


@pytest.fixture
def plug(compiled: Compiled) -> str:
    return str(compiled("plug.so"))


def _told(run: Run) -> str:
    return json.dumps(run.report["unmonitored"])


# -- text that is given back -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [0x1000, 0x21000, 0x40000, 0x100000, 0x110000, 0x1000000])
def test_what_takes_a_closed_librarys_place_is_the_programs(
    as_alone: AsAlone, plugged: str, plug: str, size: int
) -> None:
    assert as_alone([plugged, "closes", plug, hex(size)]).status == 0


@pytest.mark.parametrize("children", [1, 2, 3, 8])
def test_text_that_several_processes_edit(watch: Watch, plugged: str, plug: str, children: int) -> None:
    run = watch([plugged, "edits", plug, str(children)])
    assert run.status == 0
    told = [line["reason"] for line in run.report["unmonitored"] if line.get("image") == plug]
    assert "text that the program makes writable" in told


@pytest.mark.parametrize(("what", "said"), [("denies", "makes writable"), ("moves", "moved by the program")])
def test_text_that_may_not_be_written_and_executed(
    as_alone: AsAlone, plugged: str, plug: str, what: str, said: str
) -> None:
    run = as_alone([plugged, what, plug])
    if run.status == 77:
        pytest.skip("a kernel without PR_SET_MDWE")
    assert run.status == 0
    assert said in _told(run)


def test_a_library_loaded_behind_a_filter_that_kills(as_alone: AsAlone, plugged: str, plug: str) -> None:
    run = as_alone([plugged, "kills", plug])
    assert run.out == "loaded\n"
    assert "the program's own seccomp filter forbids" in _told(run)


@pytest.mark.parametrize(("with_text", "of"), [(1, "text and data"), (0, "data alone")])
def test_data_made_executable(as_alone: AsAlone, plugged: str, with_text: int, of: str) -> None:
    run = as_alone([plugged, "spans", "", str(with_text)])
    assert run.status == 0, of
    assert "code made at run time" in _told(run)


@ROOT
def test_code_from_a_file_without_proc(as_alone: AsAlone, plugged: str, tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.write_bytes(bytes.fromhex("f0ff07c3") + bytes(4092))
    (tmp_path / "root").mkdir()
    run = as_alone([plugged, "roots", str(code), str(tmp_path / "root")])
    assert run.status == 0
    assert [line["image"] for line in run.report["unmonitored"]] == ["a file"]


# -- filters ---------------------------------------------------------------------------------------


def test_a_filter_of_either_to_write_or_to_execute(as_alone: AsAlone, plugged: str, plug: str) -> None:
    assert as_alone([plugged, "apart", plug]).out == "alive\n"


@pytest.mark.parametrize("k", [1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFD, 0xFFFFFFFE, 0xFFFFFFFF])
def test_a_filter_that_jumps_out_of_itself(as_alone: AsAlone, plugged: str, k: int) -> None:
    assert as_alone([plugged, "far", "", str(k)], timeout=20).out == "22\n"


def _made() -> Iterator[str]:
    """The names of the calls that the agent makes, as its source spells them."""
    for file in (INSIDE.parents[3] / "src/splitlock/process/agent/inside").glob("*.c"):
        yield from re.findall(r"\bcall[0-6]\(\s*NR_(\w+)", file.read_text())


def test_the_filter_is_asked_for_what_is_called_and_nothing_else() -> None:
    """Its own list, against its own calls; what entry.S makes is the program's call, or a return from a signal."""
    text = (INSIDE.parents[3] / "src/splitlock/process/agent/inside/filter.c").read_text()
    listed = set(re.findall(r"NR_(\w+)", text.partition("ours[] = {")[2].partition("};")[0]))
    assert listed - {"EXECVE"} == set(_made()) - {"EXECVE", "EXECVEAT"}


@pytest.mark.parametrize("name", ["KILL", "FACCESSAT2", "SOCKET"])
def test_a_filter_of_what_is_never_called(watch: Watch, plugged: str, name: str) -> None:
    number = {"KILL": 62, "FACCESSAT2": 439, "SOCKET": 41}[name]
    run = watch([plugged, "refuses", "", str(number)])
    assert run.status == 0
    assert run.report["unmonitored"] == []


# -- workers without rights, in the memory that all share ------------------------------------------


@ROOT
def test_who_may_not_open_an_image_spoils_it_for_nobody_else(watch: Watch, plugged: str, compiled: Compiled) -> None:
    with tempfile.TemporaryDirectory() as place:  # which everybody may search
        plug = shutil.copy(compiled("plug.so"), place)
        Path(place).chmod(0o755)
        run = watch([plugged, "spoils", plug], "--split-lock-detect=fatal")
    assert run.status == 128 + signal.SIGBUS
    assert sum(run.hits(plug).values()) == 1
    assert "its patched text cannot be opened" in _told(run), "for the one who may not"


@ROOT
@pytest.mark.parametrize("what", ["directories", "counts", "zeros"])
def test_whatever_is_written_into_the_shared_memory(
    environment: dict[str, str], plugged: str, plug: str, what: str
) -> None:
    """Root's program loads a library and ends as it should; nothing that the worker wrote is taken for an address."""
    at, written = {
        "directories": (memory._CACHE_AT, b"A" * 600),
        "counts": (memory.ASKED_AT + 4, b"\xff" * 68),
        "zeros": (0, bytes(600)),
    }[what]
    words = [*COMMAND, "run", "-q", "--", plugged, "scribbles", plug, str(at), written.hex()]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout == "loaded\n", done.stderr


# -- a supervisor that stands still ----------------------------------------------------------------


@pytest.mark.parametrize("ended", [signal.SIGSTOP, signal.SIGKILL])
def test_nobody_waits_for_a_supervisor_that_does_not_answer(
    environment: dict[str, str], plugged: str, compiled: Compiled, tmp_path: Path, ended: signal.Signals
) -> None:
    plug = str(compiled("plug.so", f"-DFOR={ended.name}"))
    cache = {"XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run(
        [*COMMAND, "run", "-q", "--", plugged, "waits", "libm.so.6"], env={**environment, **cache}, check=True
    )
    words = [*COMMAND, "run", "--", plugged, "waits", plug, "1500"]
    with subprocess.Popen(words, env={**environment, **cache}, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        time.sleep(0.7)
        began = time.monotonic()
        run.send_signal(ended)
        assert run.stdout is not None
        assert run.stdout.readline() == b"loaded\n"
        assert time.monotonic() - began < 60, "it waited for ever"
        run.send_signal(signal.SIGCONT)
        _, said = run.communicate(timeout=60)
    if ended == signal.SIGSTOP:
        assert b"nobody answered for it in time" in said
