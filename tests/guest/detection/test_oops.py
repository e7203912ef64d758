"""Oopses of real kernels, explained from the console alone: as QEMU's plugin saw the instruction and its operand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from guard import ways
from guard.machine import Kernel
from guest import boots
from guest.conftest import PROGRAMS, Run
from guest.detection.conftest import Boot

from splitlock.host.oops.explanation import explain
from splitlock.host.oops.files import Files
from splitlock.linux.oops import Collector, head
from splitlock.report.oops import Oops

_KINDS = ("base", "index", "exchange", "place", "percpu", "work")
_SCRIPT = "insmod /oopsmod.ko\n" + "".join(f"sh -c 'echo {kind} >/proc/oopsmod'; sleep 0.3\n" for kind in _KINDS)


def _explained(console: str, *modules: Path) -> list[Oops]:
    found: list[Collector] = []
    for line in console.splitlines():
        if head(line):
            found.append(Collector(line))
        elif found:
            found[-1].feed(line)
    files = Files(modules=tuple(map(str, modules)), root=None)
    return [explain(each.dump, files) for each in found]


def _check(report: dict[str, Any], module: Path) -> None:
    """Without a file: what the log tells, and nothing that the plugin saw otherwise. With the module's: all of it."""
    seen = {site["function"]: site for site in report["sites"] if site["image"] == "oopsmod"}
    assert len(seen) == 5
    alone, whole = _explained(report["console"]), _explained(report["console"], module)
    assert len(alone) == len(whole) == len(_KINDS)
    for oops, more, kind in zip(alone, whole, _KINDS, strict=True):
        assert oops.place is not None
        site = seen[oops.place.function]
        address, size = int(site["operand_address"], 16), site["operand_size"]
        past = address % 64 + size - 64
        assert (oops.place.offset, oops.place.module) == (site["offset"], "oopsmod")
        assert oops.whose == "foreign module"
        assert ("in_work [oopsmod]" in oops.work) == (kind == "work")
        for each in (oops, more):
            assert each.fits in ("yes", "unknown")
            if each.operand is not None:
                assert each.operand.size == size
                assert each.operand.address in (None, hex(address))
                assert each.operand.past in (None, past)
        assert more.operand is not None
        assert (more.fits, more.operand.past, more.place and more.place.source is not None) == ("yes", past, True)
        assert more.missing == []
        # data of the module's own, by nm: where no address is told there is a name
        named = {"place": "here+0x3d", "percpu": "each+0x3d"}.get(kind)
        assert more.operand.what == (named or "")
        assert more.operand.address == (None if named else hex(address))
    assert [oops.number for oops in alone] == [1, 2, 3, 4, 5, 6]


def test_debian_6_1(boot: Boot, inside: dict[str, Path]) -> None:
    _check(boot(_SCRIPT, "--sld"), inside["oopsmod.ko"])


@pytest.mark.slow
def test_debian_6_12(guest: Run, cloud: Kernel, tmp_path: Path) -> None:
    (tmp_path / "build").mkdir()
    module = boots.module(PROGRAMS / "oopsmod.c", tmp_path / "build", ways.headers("xz"))
    initramfs = boots.initramfs(tmp_path / "initramfs", _SCRIPT, {"oopsmod.ko": module})
    kernel = ["--kernel", cloud.image, "--initrd", initramfs, "--append", "console=ttyS0"]
    _check(guest("--sld", *kernel, timeout=200)[1], module)
