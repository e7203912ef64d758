"""Code that a program copies from where we have patched it runs elsewhere as it would alone."""

from __future__ import annotations

import pytest
from process.agent.conftest import AsAlone, Compiled

HOWS = ["plain", "parts", "all", "only", "pkey", "fork", "moved", "memfd", "file"]
UNSEEN = pytest.mark.xfail(strict=True, reason="nobody is told of a copy into memory that is executable already")
CRAMPED = pytest.mark.xfail(strict=True, reason="a jump to an island that is not copied is taken for the program's own")


@pytest.mark.parametrize("what", ["one", "all", pytest.param("cramped", marks=CRAMPED)])
@pytest.mark.parametrize("how", HOWS)
def test_copies_of_the_program(as_alone: AsAlone, compiled: Compiled, how: str, what: str) -> None:
    as_alone([compiled("copied", "-rdynamic"), how, what])


@pytest.mark.parametrize("how", [pytest.param("rwx", marks=UNSEEN), "shared"])
def test_copies_into_executable_memory(as_alone: AsAlone, compiled: Compiled, how: str) -> None:
    as_alone([compiled("copied", "-rdynamic"), how, "one"])


@pytest.mark.parametrize("how", ["plain", "parts"])
def test_copies_of_a_library(as_alone: AsAlone, compiled: Compiled, how: str) -> None:
    library = compiled("copied.so", "-DLIBRARY", "-Wno-unused-variable")
    as_alone([compiled("copied", "-rdynamic"), how, "all", library])
