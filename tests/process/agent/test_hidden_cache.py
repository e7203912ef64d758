"""Where processes cannot open what is patched: the report says also what that hides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Run

from splitlock.process.agent.judged import AGENT

PYTHON = "/usr/bin/python3"
#: Landlock (landlock(7)): from now on only what is in these directories can be read or executed
CONFINE = """
import ctypes, os, struct, sys
call = ctypes.CDLL(None).syscall
directories, command = sys.argv[1].split(":"), sys.argv[2:]
rules = call(444, struct.pack("<Q", 13), ctypes.c_long(8), 0)
if rules < 0: sys.exit(77)
for directory in directories:
    call(445, rules, 1, struct.pack("<Qi", 13, os.open(directory, os.O_PATH)), 0)
assert not ctypes.CDLL(None).prctl(38, 1, 0, 0, 0) and not call(446, rules, 0)
os.execv(command[0], command)
"""


def test_what_starts_programs_is_not_patched(watch: Callable[..., Run], tmp_path: Path) -> None:
    """A libc without its patches starts programs that nobody sees: no bill that names it reads as if that were all."""
    seen = [f"/{name}" for name in ("usr", "etc", "proc", "dev", "lib", "lib64", "bin")]
    directories = ":".join([*filter(lambda name: Path(name).exists(), seen), str(Path(AGENT).parent)])
    command = [PYTHON, "-I", "-c", CONFINE, directories, "/bin/sh", "-c", "ls /usr/bin/env; echo $?"]
    run = watch(command)
    if run.status == 77:
        pytest.skip("needs Landlock")
    assert (run.status, run.out) == (0, "/usr/bin/env\n0\n"), run.err
    reasons = {Path(u["image"]).name: u["reason"] for u in run.report["unmonitored"] if "image" in u}
    hidden = "its patched text cannot be opened"
    assert reasons["libc.so.6"] == f"{hidden}; programs that it starts and code that it brings are not seen"
    assert reasons["ld-linux-x86-64.so.2"] == hidden
