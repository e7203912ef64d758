"""A command that the kernel does not execute: 126 and one line, as with env(1), whatever is wrong with its file."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import COMMAND


def _links(at: Path) -> str:
    for one, other in (("a", "b"), ("b", "a")):
        (at / one).symlink_to(at / other)
    return str(at / "a")


def _nested(at: Path) -> str:
    for number in range(8):
        (at / f"s{number}").write_text(f"#!{at}/s{number + 1}\n" if number < 7 else "#!/bin/sh\n")
        (at / f"s{number}").chmod(0o755)
    return str(at / "s0")


def _long(at: Path) -> str:
    return str(at / ("x" * 256))


def _written(at: Path) -> str:
    """Somebody still has it open to write to it."""
    (at / "busy").write_bytes(Path("/bin/true").read_bytes())
    (at / "busy").chmod(0o755)
    os.open(at / "busy", os.O_WRONLY)
    return str(at / "busy")


@pytest.mark.parametrize("make", [_links, _nested, _long, _written])
@pytest.mark.parametrize("option", ["--engine=auto", "--engine=ptrace", "-D"])
def test_the_status(environment: dict[str, str], tmp_path: Path, make: Callable[[Path], str], option: str) -> None:
    program = make(tmp_path)
    env = {name: value for name, value in environment.items() if name != "NOTIFY_SOCKET"}
    assert subprocess.run(["env", program], env=env, stderr=subprocess.DEVNULL, check=False).returncode == 126
    done = subprocess.run(
        [*COMMAND, "run", option, "--", program], env=env, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (126, ""), done.stderr
    assert done.stderr.startswith(f"splitlock: {program}: cannot execute: ")
    assert done.stderr.count("\n") == 1
