"""The text of a guest's report: 80 columns, a verdict, and nothing that is not known."""

from __future__ import annotations

from typing import Any

import pytest

from splitlock.report.guest import SCHEMA, Report, Site, Watched
from splitlock.report.guest_text import render


def _site(**changes: Any) -> Site:
    values: dict[str, Any] = {
        "where": "user", "mode": 64, "hits": 3, "address": "0x401000", "instruction": "lock inc dword ptr [rdi]",
        "operand_size": 4, "operand_address": "0x40303e", "image": None, "offset": None, "function": None,
        "source": None, "comm": None, "pid": None,
    }  # fmt: skip
    return Site(**{**values, **changes})


def _report(*sites: Site, **changes: Any) -> Report:
    watched = Watched(
        emulator="QEMU 7.2.22", api=1, registers=True, cpus=2, sites=900, kernel="6.1.0", processes=True, seconds=7.5,
        end="power off",
    )  # fmt: skip
    values: dict[str, Any] = {
        "schema": SCHEMA, "guest": "/srv/image.qcow2", "hits": sum(site.hits for site in sites), "unnamed": 0,
        "sites": list(sites), "ready": not sites, "watched": watched, "unwatched": [],
    }  # fmt: skip
    return Report(**{**values, **changes})


@pytest.mark.parametrize(
    ("site", "line", "who"),
    [
        (_site(), "3  user, 64-bit: (unknown process)", "an unknown program"),
        (_site(comm="demo", pid=7, image="/bin/demo", offset="0x10"), "user, 64-bit: /bin/demo+0x10 (demo/7)", "demo"),
        (
            _site(where="module", image="evil", function="f", offset="0x2"),
            "module, 64-bit: f+0x2 [evil]",
            "module evil",
        ),
        (_site(where="kernel", function="schedule", offset="0x9"), "kernel, 64-bit: schedule+0x9", "the kernel"),
        (_site(where="nested", mode=16, comm="qemu", pid=9), "nested, 16-bit: (qemu/9)", "qemu's guest"),
    ],
)
def test_who(site: Site, line: str, who: str) -> None:
    """As far as it is known."""
    text = render(_report(site))
    assert line in text
    assert f"no, because of {who}\n" in text


def test_firmware_does_not_count() -> None:
    """It runs before detection does."""
    text = render(_report(_site(where="firmware", mode=None, image="CpuDxe"), ready=True))
    assert "firmware, ?-bit: CpuDxe\n" in text
    assert "yes, as far as it was watched" in text


def test_nothing_seen() -> None:
    """No kernel, no verdict."""
    text = render(_report(ready=None, unwatched=["no Linux kernel was seen: nobody has a name"]))
    assert "no split locks in what was watched" in text
    assert "unknown, no Linux kernel was seen" in text
    assert "not known: no Linux kernel" in text


def test_many_and_wide() -> None:
    """20 sites unless all are asked for; 80 columns; no control characters."""
    sites = [
        _site(comm="\x1b[2J" + "x" * 11, pid=n, image="/a" * 20, source="/b" * 20 + ":1", hits=n) for n in range(30)
    ]
    text = render(_report(*sites))
    assert "and 10 more sites" in text
    assert "more sites" not in render(_report(*sites), verbose=True)
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_json_and_back() -> None:
    """Nothing is lost."""
    report = _report(_site())
    assert Report.from_json(report.to_json()) == report
