"""What becomes of a boot that never comes up: tried once more, and then said."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from splitlock._errors import SplitlockError
from splitlock.guest.matrix import measure as module
from splitlock.guest.matrix.boot import Booted
from splitlock.guest.matrix.kernels import Kernel
from splitlock.guest.matrix.measure import Wanted, measure
from splitlock.report.matrix import Kind, Report

_LOST = Booted(b"Oops: int3: 0000 [#1] SMP PTI\nKernel panic - not syncing: Fatal exception\n", "reset", 1.0)
_GOOD = Booted(
    b"splitlock-matrix: ready split_lock_detect=0x1\nsplitlock-matrix: begin user\n"
    b"splitlock-matrix: took user ns=0x10 executed=0x1\nsplitlock-matrix: end user status=0x0 killed=0x0 oops=0x0\n"
    b"splitlock-matrix: done\n",
    "done", 2.0,
)  # fmt: skip


def _measured(
    monkeypatch: pytest.MonkeyPatch,
    boots: Iterator[Booted],
    kinds: tuple[Kind, ...] = ("user",),
    headers: tuple[str, ...] = (),
) -> Report:
    kernel = Kernel("vmlinuz", None, "1.2.3", "Linux version 1.2.3", "/dev/null")
    monkeypatch.setattr(module, "boot", lambda *_: next(boots))
    monkeypatch.setattr(module, "check", lambda *_: None)
    monkeypatch.setattr(module, "version", lambda _: "7.2.22")
    monkeypatch.setattr(module, "kernels", lambda *_: ([kernel], ["vmlinux-686: no kernel of x86-64"]))
    wanted = Wanted(["vmlinuz"], list(headers), ["ac"], ["warn"], list(kinds), "qemu", 1.0)
    return measure(wanted, lambda _: None, lambda _: None)


def test_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both boots are in the report, and the cell is the second one's."""
    report = _measured(monkeypatch, iter([_LOST, _GOOD]))
    assert [boot.end for boot in report.boots] == ["reset", "done"]
    assert [(cell.outcome, cell.boot) for cell in report.cells] == [("completed", 1)]
    assert "not measured: vmlinux-686: no kernel of x86-64" in report.notes


def test_never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice is enough."""
    report = _measured(monkeypatch, iter([_LOST, _LOST]))
    (cell,) = report.cells
    assert (cell.outcome, cell.reason) == ("not-tried", "the kernel did not come up: the machine was reset")


def test_useless_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the kernels: what takes a module is not tried, with the compiler's words. Named by the user: an error."""
    monkeypatch.setattr(module, "headers", lambda *_: "/headers")

    def build(*_: str) -> bytes:
        raise SplitlockError("--headers /headers: modpost: version `GLIBC_2.38' not found; install", 2)

    monkeypatch.setattr("splitlock.guest.matrix.module.build", build)
    report = _measured(monkeypatch, iter([_GOOD]), ("user", "module"))
    outcomes = {cell.kind: (cell.outcome, cell.reason) for cell in report.cells}
    assert outcomes["user"] == ("completed", None)
    assert outcomes["module"][0] == "not-tried"
    assert "GLIBC_2.38" in str(outcomes["module"][1])
    with pytest.raises(SplitlockError, match="GLIBC"):
        _measured(monkeypatch, iter([_GOOD]), ("user", "module"), ("/headers",))
