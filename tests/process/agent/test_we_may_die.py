"""Whoever kills the supervisor, the program goes on unhurt: its later executions, libraries, threads and forks too."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import COMMAND
from process.agent.conftest import Compiled

WHOLE = "begun\nwhole\nstatus 7\n"


def _killed(words: list[str], env: dict[str, str], after: float) -> str:
    """What the program says, to its end, when its supervisor is killed so many seconds after its start."""
    reader, writer = os.pipe()
    supervisor = subprocess.Popen(
        [*COMMAND, "run", "--engine=agent", "-q", "--", *words], env=env, stdout=writer, stderr=subprocess.STDOUT
    )
    os.close(writer)
    time.sleep(after)
    supervisor.send_signal(signal.SIGKILL)
    supervisor.wait()
    os.set_blocking(reader, False)
    said, deadline = b"", time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            got = os.read(reader, 1 << 16)
        except BlockingIOError:
            time.sleep(0.01)
            continue
        if not got:
            os.close(reader)
            return said.decode(errors="replace")
        said += got
    os.close(reader)
    return f"{said.decode(errors='replace')}(hangs)"


@pytest.mark.parametrize("times", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_at_any_moment(compiled: Compiled, environment: dict[str, str], tmp_path: Path, times: int) -> None:
    """Also while files are analysed: every eighth time with a cache that is empty."""
    program = f"{compiled('survivor')} {compiled('bump.so')}; echo status $?"
    words = ["sh", "-c", program]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == WHOLE
    begin = time.monotonic()
    subprocess.run([*COMMAND, "run", "--engine=agent", "-q", "--", *words], env=environment, check=True)
    longest = (time.monotonic() - begin) * 1.1
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    chance = random.Random(seed)
    began = 0
    for number in range(times):
        cold = number % 8 == 0
        env = {**environment, "XDG_CACHE_HOME": str(tmp_path / f"cache{number}")} if cold else environment
        after = chance.uniform(0, longest * (4 if cold else 1))
        said = _killed(words, env, after)
        assert said in (WHOLE, ""), f"seed {seed}, number {number}, after {after:.4f} s: {said}"
        began += said != ""
    assert began > times / 4
