"""What the tests of the agent share: only its engine, its programs, and a run held against the same one alone."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import COMMAND, Run
from programs import gen_forms

AsAlone = Callable[..., Run]
Compiled = Callable[..., Path]
Executed = Callable[..., list[str]]
INSIDE = Path(__file__).parent / "inside"


@pytest.fixture
def engine() -> str:
    return "agent"


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """`compiled(name, *flags)`: one of the C files in inside/; a name that ends in .so gives a library."""
    directory = tmp_path_factory.mktemp("agent")
    built: dict[tuple[str, ...], Path] = {}

    def build(name: str, *flags: str) -> Path:
        key = (name, *flags)
        if key not in built:
            place = directory / str(len(built))
            place.mkdir()
            kind = ["-shared", "-fPIC"] if name.endswith(".so") else []
            source = INSIDE / f"{name.removesuffix('.so')}.c"
            built[key] = gen_forms.compile_c(place / name, [source], [*kind, *flags])
        return built[key]

    return build


@pytest.fixture
def as_alone(watch: Callable[..., Run], environment: dict[str, str]) -> AsAlone:
    """`as_alone(argv, *options, env={})`: alone and watched, with the same status and streams. Gives the watched."""

    def check(argv: list[str | Path], *options: str, timeout: float = 60, **more: Any) -> Run:
        env = {**environment, **more.get("env", {})}
        alone = subprocess.run(
            list(map(str, argv)),
            **{**more, "env": env},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
        ours = watch(argv, "-q", *options, timeout=timeout, **more)
        status = alone.returncode if alone.returncode >= 0 else 128 - alone.returncode
        assert (ours.status, ours.out, ours.err) == (status, alone.stdout, alone.stderr)
        return ours

    return check


@pytest.fixture
def own(tmp_path: Path) -> dict[str, str]:
    """A cache of this test's own, where Python has written down what the front has to know."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run([*COMMAND, "run", "-q", "--", "true"], env=environment, check=True)
    assert place(environment).exists()
    return environment


def place(environment: dict[str, str]) -> Path:
    return Path(environment["XDG_CACHE_HOME"]) / "splitlock" / "place"


@pytest.fixture
def executed(tmp_path: Path, own: dict[str, str]) -> Executed:
    """`executed(words...)`: what a run executes, Python among it, by strace."""

    def run(*words: str | Path) -> list[str]:
        for log in tmp_path.glob("log.*"):
            log.unlink()
        argv = ["strace", "-ff", "-o", tmp_path / "log", "-e", "trace=execve", *COMMAND, "run", *words]
        done = subprocess.run(argv, env=own, capture_output=True, text=True, check=False)
        logs = sorted(tmp_path.glob("log.*"), key=lambda log: int(log.suffix[1:]))
        lines = [line for log in logs for line in log.read_text().splitlines()]
        names = [line.split('"')[1] for line in lines if "execve(" in line and "= 0" in line]
        return [os.path.basename(name) for name in names] + [str(done.returncode)]

    return run
