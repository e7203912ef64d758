"""Who settles what becomes of a file may die, or execute another program: nobody waits for it for ever, and nobody else
may say which code is mapped.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import COMMAND, Run
from process.agent.conftest import AsAlone, Compiled

from splitlock.process.agent import memory

PYTHON = "/usr/bin/python3"
LARGE = Path("/usr/lib/x86_64-linux-gnu/libcrypto.so.3")
WAYS = {
    "killed": """
pid = os.fork()
if not pid:
    load()
time.sleep(0.03)
os.kill(pid, 9)
load()
""",
    "killed and waited for": """
pid = os.fork()
if not pid:
    load()
time.sleep(0.03)
os.kill(pid, 9)
os.waitpid(pid, 0)
load()
""",
    "another program": """
threading.Thread(target=load).start()
time.sleep(0.03)
os.execv(sys.executable, [sys.executable, "-I", "-c", START + "load()", sys.argv[1]])
""",
    "eight at once": """
for _ in range(8):
    if not os.fork():
        load()
        os._exit(0)
for _ in range(8):
    assert os.wait()[1] == 0
load()
""",
}
START = """
import ctypes, os, sys, threading, time
def load():
    ctypes.CDLL(sys.argv[1])
"""


@pytest.mark.parametrize("way", WAYS)
def test_nobody_waits_for_ever(environment: dict[str, str], tmp_path: Path, way: str) -> None:
    """The library takes Python a while; it is watched in the end, whoever had asked."""
    shutil.copy(LARGE, tmp_path / "libnew.so")
    script = f"START = {START!r}\n{START}\n{WAYS[way]}\nprint('loaded')\n"
    words = [*COMMAND, "run", "-v", "--engine=agent", "--", PYTHON, "-I", "-c", script, str(tmp_path / "libnew.so")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    if way != "another program":
        assert "loaded" in done.stdout
    assert f" sites  {tmp_path}/libnew.so" in done.stderr  # by -v
    if way == "eight at once":  # else one had mapped it, and was killed before any of its code ran
        assert "libnew.so: not all of its mappings" not in done.stderr


@pytest.fixture
def two_processes() -> Iterator[Path]:
    """A control group that takes no more than two."""
    version_1 = Path("/sys/fs/cgroup/pids")
    group = (version_1 if version_1.is_dir() else Path("/sys/fs/cgroup")) / f"splitlock-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "pids.max").write_text("2")
    except OSError as error:
        pytest.skip(f"no control group with a limit on processes: {error}")
    yield group
    for _ in range(100):
        try:
            group.rmdir()
            return
        except OSError:  # the last one is still on its way
            time.sleep(0.05)


def test_python_cannot_be_forked(environment: dict[str, str], two_processes: Path, tmp_path: Path) -> None:
    """Agents are told that nobody answers, and the program goes on."""
    words = [*COMMAND, "run", "--", PYTHON, "-I", "-c", "import ctypes, sys; ctypes.CDLL(sys.argv[1]); sys.exit(4)"]
    subprocess.run([*words, "libc.so.6"], env=environment, check=False)  # analysed now
    shutil.copy(LARGE, tmp_path / "libnew.so")
    enter = f"echo $$ >{two_processes}/cgroup.procs; exec {shlex.join(words)} {tmp_path}/libnew.so"
    done = subprocess.run(["sh", "-c", enter], env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 4
    # in the end there is room again for Python, which reports
    assert "libnew.so: " in done.stderr
    assert "unmonitored: nothing" not in done.stderr


TAMPER = """
import ctypes, os, sys
directory = sys.argv[2].encode()
if not os.fork():
    at = [int(line.split("-")[0], 16) for line in open("/proc/self/maps") if "SYSV" in line][0]
    os.setresuid(54321, 54321, 54321)
    ctypes.memmove(at + int(sys.argv[3]), directory + b"\\0", len(directory) + 1)
    os._exit(0)
assert os.wait()[1] == 0
ctypes.CDLL(sys.argv[1])
"""


def test_a_worker_does_not_say_which_code_root_maps(
    watch: Callable[..., Run], compiled: Compiled, cache: Path, tmp_path: Path
) -> None:
    """One that has given up its rights writes to the run's memory where image files are: another's are not taken."""
    if os.geteuid():
        pytest.skip("needs root: a worker that is somebody else")
    library = tmp_path / "libx.so"
    shutil.copy(compiled("bump.so"), library)
    watch([PYTHON, "-I", "-c", "import ctypes, sys; ctypes.CDLL(sys.argv[1])", library])
    inode = f"{library.stat().st_ino:x}"
    for place in [tmp_path, *tmp_path.parents]:
        if place != Path("/"):
            place.chmod(place.stat().st_mode | 0o011)
    evil = tmp_path / "evil"
    evil.mkdir()
    for image in (cache / "splitlock").glob(f"*-{inode}-*.image"):
        shutil.move(image, evil)
        os.chown(evil / image.name, 54321, 54321)
    assert list(evil.iterdir())
    os.chown(evil, 54321, 54321)
    run = watch([PYTHON, "-I", "-c", TAMPER, library, evil, str(memory._CACHE_AT)])
    assert run.status == 0
    reasons = [line["reason"] for line in run.report["unmonitored"] if line["image"] == str(library)]
    assert reasons == ["its patched text cannot be opened"]


@pytest.mark.parametrize(
    "flags", [["-Wl,-Ttext-segment=0x41000000"], ["-Wl,-z,noseparate-code"], ["-Wl,-N", "-nostdlib"]]
)
def test_headers_that_lie_elsewhere(as_alone: AsAlone, tmp_path: Path, flags: list[str]) -> None:
    """A library whose lowest address is not 0, or whose segments are one: watched, or said."""
    (tmp_path / "x.c").write_text("int value; int bump(void) { return __atomic_add_fetch(&value, 1, 5); }\n")
    words = ["gcc", "-shared", "-fPIC", "-O1", *flags, "-o", str(tmp_path / "libx.so"), str(tmp_path / "x.c")]
    subprocess.run(words, check=True)
    script = "import ctypes, sys; print(ctypes.CDLL(sys.argv[1]).bump())"
    run = as_alone([PYTHON, "-I", "-c", script, tmp_path / "libx.so"])
    without = as_alone([PYTHON, "-I", "-c", "import ctypes, sys; print(1)", tmp_path / "libx.so"])
    assert run.status == 0
    said = [line["image"] for line in run.report["unmonitored"]]
    more = run.report["watched"]["sites"] - without.report["watched"]["sites"]
    assert more >= 1 or str(tmp_path / "libx.so") in said
