"""What the tests share: programs compiled once, and a way to run them under splitlock.

A real split lock stalls the whole host, so the session keeps count of those that ran natively and
fails above 2,000.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from programs import gen_forms

NATIVE_LIMIT = 2000
_native = 0

# how long an example takes says something about this machine only
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@dataclass
class Run:
    """One run under splitlock: its streams, its exit status, and the report."""

    status: int
    out: str
    err: str
    report: dict[str, Any] = field(default_factory=dict)

    def hits(self, image: Path | str) -> dict[int, int]:
        """Hits by offset in one image."""
        path = os.path.realpath(image)
        return {int(s["offset"], 16): s["hits"] for s in self.report["sites"] if os.path.realpath(s["image"]) == path}

    @property
    def functions(self) -> dict[str, int]:
        """Hits by function."""
        found: dict[str, int] = {}
        for site in self.report["sites"]:
            found[site["function"]] = found.get(site["function"], 0) + site["hits"]
        return found


def spent(hits: int) -> None:
    """Account for split locks that were executed natively."""
    global _native  # noqa: PLW0603  # one number for the session
    _native += hits


SPLITLOCK = [sys.executable, "-m", "splitlock"]
#: the command as it is installed: what is plain it does without Python
COMMAND = [str(Path(sys.executable).with_name("splitlock"))]
Runner = Callable[..., Run]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """First what boots machines: such files take minutes, and would be the last that a single process is busy with."""
    here = Path(__file__).parent
    items.sort(key=lambda item: item.path.relative_to(here).parts[0] not in ("guest", "guard", "model"))


@pytest.fixture(scope="session", autouse=True)
def _few_native_split_locks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    yield
    counts = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # the others' are beside it: the last to end sees all
        counts = counts.parent
    with (counts / "native").open("a+") as file:
        file.write(f"{_native}\n")
        file.seek(0)
        total = sum(map(int, file))
    assert total <= NATIVE_LIMIT, f"{total} split locks were executed natively"


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan cache of the session's own."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def environment(cache: Path) -> dict[str, str]:
    """What splitlock is run with."""
    return {**os.environ, "XDG_CACHE_HOME": str(cache)}


@pytest.fixture(params=["ptrace", "agent"])
def engine(request: pytest.FixtureRequest) -> str:
    """How a program is watched."""
    return str(request.param)


@pytest.fixture
def watch(tmp_path: Path, environment: dict[str, str], engine: str) -> Runner:
    """`watch(argv, *options, env={})`: run a program under splitlock, with the report as JSON; by each engine."""

    def run(argv: list[str | Path], *options: str, timeout: float = 120, **more: Any) -> Run:
        target = tmp_path / "report.json"
        target.unlink(missing_ok=True)
        env = {**environment, **more.pop("env", {})}
        chosen = [f"--engine={engine}", "--format", "json", "-o", str(target), *options]
        command = COMMAND if engine == "agent" else SPLITLOCK
        words = [*command, "run", *chosen, "--", *map(str, argv)]
        done = subprocess.run(
            words, env=env, capture_output=True, text=True, errors="replace", timeout=timeout, check=False, **more
        )  # fmt: skip
        report = msgspec.json.decode(target.read_bytes()) if target.exists() and target.stat().st_size else {}
        if report and report["mode"] != "fatal":
            spent(report["hits"])
        return Run(done.returncode, done.stdout, done.stderr, report)

    return run


@pytest.fixture(scope="session")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The programs with every lockable instruction, by kind of build."""
    return gen_forms.build(tmp_path_factory.mktemp("forms"))


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`program(name, flags)`: one of tests/programs/, compiled."""
    directory = tmp_path_factory.mktemp("programs")
    built: dict[tuple[str, ...], Path] = {}

    def build(name: str, *flags: str) -> Path:
        key = (name, *flags)
        if key not in built:
            place = directory / str(len(built))
            place.mkdir()
            built[key] = gen_forms.build_program(name, place, list(flags))
        return built[key]

    return build
