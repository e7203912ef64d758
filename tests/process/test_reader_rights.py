"""What reads a stranger's program has no rights by then, and nothing of the run's: tried from inside it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from splitlock.process import plan
from splitlock.process.agent import image
from splitlock.process.agent.memory import Limits, Memory
from splitlock.process.analysis import apart

_LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")
_FILES = [
    _LIBRARIES / "libc.so.6",
    _LIBRARIES / "ld-linux-x86-64.so.2",
    Path("/bin/sh"),
    Path(sys.executable),
    Path(__file__),
]


def _tried(try_it: Callable[[], object]) -> object:
    try:
        return try_it()
    except OSError as error:
        return f"errno {error.errno}"


def _inside(try_it: Callable[[], object], *kept: int) -> object:
    def make(give_up: Callable[..., None]) -> bytes:
        json.dumps(0)
        give_up(*kept)
        return json.dumps(_tried(try_it)).encode()

    return json.loads(apart(make, str))


@pytest.mark.parametrize("make", ["plan", "image"])
def test_all_is_loaded_before(make: str) -> None:
    """A module or a library that is needed later could not be read by nobody, nor mapped to be executed."""
    (plan if make == "plan" else image).load()
    contents = [file.read_bytes() for file in _FILES]

    def try_it() -> object:
        before = {name for name in sys.modules if getattr(sys.modules[name], "__file__", None)}
        for data in (*contents, contents[0][:5000], contents[0][:64], b""):
            if make == "plan":
                plan.build(data)
            else:
                image.make(data, (0,) * 5)
        after = {name for name in sys.modules if getattr(sys.modules[name], "__file__", None)}
        return sorted(after - before)

    assert _inside(try_it) == []


def test_it_cannot_write_start_or_reach_anything(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("as it was")
    target.chmod(0o666)
    assert _inside(lambda: os.open(target, os.O_WRONLY)) == "errno 1"
    assert _inside(lambda: os.open(tmp_path / "other", os.O_WRONLY | os.O_CREAT)) == "errno 1"
    assert _inside(os.fork) == "errno 1"
    assert _inside(lambda: os.kill(os.getppid(), 0)) == "errno 1"
    assert _inside(lambda: os.execv("/bin/true", ["true"])) == "errno 1"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, whose rights they would be")
def test_of_root_it_is_nobody() -> None:
    assert _inside(os.getresuid) == [65534] * 3
    assert "\nGroups:\t \n" in str(_inside(Path("/proc/self/status").read_text))
    assert _inside(lambda: os.open("/etc/shadow", os.O_RDONLY)) == "errno 13"


def test_it_has_no_descriptor_but_its_own(tmp_path: Path) -> None:
    with (tmp_path / "report").open("w") as report, (tmp_path / "lock").open("w") as lock:
        os.set_inheritable(report.fileno(), True)
        opened = _inside(_opened, lock.fileno())
        assert isinstance(opened, list)
        assert opened[:3] == ["/dev/null"] * 3
        assert str(tmp_path / "lock") in opened
        assert str(tmp_path / "report") not in opened
        assert len(opened) == 5, "the pipe, and what is kept"


def _opened() -> list[str]:
    """What is open in the order of descriptors, but for the directory that tells."""
    numbers = sorted(map(int, os.listdir("/proc/self/fd")))
    return [os.readlink(f"/proc/self/fd/{n}") for n in numbers if os.path.lexists(f"/proc/self/fd/{n}")]


def test_it_has_not_the_memory_of_the_run() -> None:
    memory = Memory.new("", "", 1, Limits(0, 0, 0, 0))
    memory.keep_from_children()
    here = f"{memory._address:x}-"
    assert here in Path("/proc/self/maps").read_text()

    def try_it() -> object:
        return [line for line in Path("/proc/self/maps").read_text().splitlines() if line.startswith(here)]

    assert _inside(try_it) == []
    assert memory.attached() == 1
