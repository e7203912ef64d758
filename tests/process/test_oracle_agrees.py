"""Differential: QEMU counting the same program's split locks finds the same sites, as often.

The other judge is the kernel: with alignment checks on, a fault at an instruction is a split lock or not, whoever
patched it; `fatal` mode uses that (test_programs.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import oracle
import pytest
from conftest import Run

Program = Callable[..., Path]


@pytest.fixture(scope="session")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return oracle.build_plugin(tmp_path_factory.mktemp("oracle") / "oracle.so")


def _ours(run: Run) -> dict[tuple[str, int], int]:
    return {(str(Path(s["image"]).resolve()), int(s["offset"], 16)): s["hits"] for s in run.report["sites"]}


def _theirs(run: oracle.OracleRun) -> dict[tuple[str, int], int]:
    assert all(s.image is not None and s.vaddr is not None for s in run.sites)
    return {(str(s.image.resolve()), s.vaddr): s.hits for s in run.sites if s.image and s.vaddr}


@pytest.mark.parametrize("flags", [("-O2",), ("-O1", "-static"), ("-O0", "-no-pie")], ids=" ".join)
@pytest.mark.parametrize(("name", "words"), [("demo", ["30"]), ("sigbus", []), ("sigtrap", ["handle"])])
def test_our_programs(
    watch: Callable[..., Run], program: Program, plugin: Path, name: str, words: list[str], flags: tuple[str, ...]
) -> None:
    binary = program(name, *flags)
    run = watch([binary, *words])
    assert run.report["hits"] > 0
    assert _ours(run) == _theirs(oracle.qemu_run([str(binary), *words], plugin))


@pytest.mark.parametrize("engine", ["agent"])  # some hundred real split locks
def test_stress_ng_lockbus(watch: Callable[..., Run], plugin: Path) -> None:
    """It stops itself after one pass, which the length of depends on chance; every site is in each."""
    command = ["/usr/bin/stress-ng", "--quiet", "--lockbus", "1", "--lockbus-ops", "1"]
    run = watch(command)
    assert run.status == 0
    ours, theirs = _ours(run), _theirs(oracle.qemu_run(command, plugin))
    assert len(ours) >= 32
    assert set(ours) == set(theirs)


@pytest.mark.parametrize(
    "command",
    [
        ["/usr/bin/perl", "-e", "print join(',', map { $_ ** 2 } 1 .. 1000)"],
        ["/usr/bin/python3", "-c", "import threading; [threading.Thread(target=print).start() for _ in range(5)]"],
        ["/usr/bin/xz", "-0", "-T2", "--block-size=65536", "-kc", "/bin/ls"],
    ],
    ids=lambda c: Path(c[0]).name,
)
def test_clean_programs_are_clean_for_both(watch: Callable[..., Run], plugin: Path, command: list[str]) -> None:
    assert _ours(watch(command)) == _theirs(oracle.qemu_run(command, plugin)) == {}
