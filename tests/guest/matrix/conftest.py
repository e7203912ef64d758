"""What the matrix's tests share: `splitlock matrix` run to a report that fits its schema."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
from modules.debian import ROOT, STORE, packages

from splitlock.report.matrix import Cell, Report

SCHEMA = json.loads((ROOT / "docs" / "matrix.schema.json").read_text())
Run = Callable[..., tuple[int, Report]]


def command(*words: object) -> list[str]:
    """The command line of `splitlock matrix`."""
    return [sys.executable, "-m", "splitlock", "matrix", *map(str, words)]


def kernel(kind: str) -> Path:
    """The package of one of the kernels that scripts/kernels.sh knows; its headers are beside it."""
    packages({"amd64": "headers", "xz": "xz-headers"}[kind])
    return packages(kind)[kind]


def measured(kind: str) -> list[str]:
    """The options that name one of the kernels and what to build a module for it with."""
    if kind != "new":
        return ["--kernels", str(kernel(kind))]
    done = subprocess.run([ROOT / "scripts" / "new-headers.sh", STORE], capture_output=True, text=True, check=True)
    return ["--kernels", str(packages("new")["new"]), "--headers", done.stdout.strip()]


def outcomes(report: Report) -> dict[tuple[str, str], Cell]:
    """The cells of a report about one processor, by mode and kind."""
    assert len({cell.processor for cell in report.cells}) == 1
    return {(cell.mode, cell.kind): cell for cell in report.cells}


@pytest.fixture
def matrix(tmp_path: Path) -> Run:
    """`matrix(option, ...)`: exit status and report."""

    def run(*words: object, timeout: float = 540) -> tuple[int, Report]:
        target = tmp_path / "report.json"
        line = command("--format", "json", "-o", target, *words)
        done = subprocess.run(line, capture_output=True, text=True, timeout=timeout, check=False)
        assert done.stderr == ""
        jsonschema.validate(json.loads(target.read_text()), SCHEMA)
        return done.returncode, Report.from_json(target.read_bytes())

    return run
