"""What `splitlock status` says of each mode is what the model does, on every machine."""

from __future__ import annotations

from itertools import product

import pytest

from splitlock.host.advice import modes
from splitlock.linux import versions
from splitlock.linux.versions import MITIGATE
from splitlock.model.advise import host
from splitlock.model.cpu import Access, Processor
from splitlock.model.kernel import Locks
from splitlock.model.machine import Host, native
from splitlock.model.scenario import linux
from splitlock.report.status import Detection, Guard, Kernel, Known, Log, Report
from splitlock.report.status import Processor as Found

_RELEASES = ("4.19.0", "5.7.1", "5.10.0-46", "5.13.0", "5.14.0", "5.19.2", "6.1.0-56", "6.12.117", "6.13.1")
_VENDORS = ("GenuineIntel", "AuthenticAMD", "HygonGenuine")


def _status(split: Known, bus: Known, vendor: str, inside: str | None, release: str, mitigate: int | None) -> Report:
    one, other = (Detection(supported=known, enabled="unknown", source="", registers=None) for known in (split, bus))
    return Report(
        root="/", machine=None,
        processor=Found(name=None, vendor=vendor, family=6, model=143, stepping=8, count=2, split_lock=one,
                        bus_lock=other, hypervisor=inside),
        kernel=Kernel(release=release, installed=[], parameter=None, configured=[], mode="warn", rate=None, why="",
                      mitigate=mitigate),
        log=Log(source=None, why="", lines=0, suppressed=0, lost=0, tasks=[]), modules=[], scanned=None, unscanned=[],
        interrupted=False, vmms=[], guard=Guard(up="no", why=""), advice=[], checks=[], measured=None,
    )  # fmt: skip


@pytest.mark.parametrize("release", _RELEASES)
def test_every_machine(release: str) -> None:
    """By the words of the sentence; where it is not known whether the processor detects, both take it to."""
    known: tuple[Known, ...] = ("yes", "no", "unknown")
    found = versions.release(release)
    sysctl = (0, 1) if found and found.series >= MITIGATE.since else (None,)
    for split, bus, vendor, inside, mitigate in product(known, known, _VENDORS, (None, "KVM"), sysctl):
        status = _status(split, bus, vendor, inside, release, mitigate)
        machine = host(status, "here")
        processor = Processor(machine.split_locks != "no", machine.bus_locks != "no", machine.amd)
        for said in modes(status)[1:]:
            words = said.mode.replace("N", "10")
            modelled = Host(processor, linux(release, words, "linux", machine.mitigate))
            core, fate = modelled.core, native(modelled, Access(), Locks()).fate
            where = (split, bus, vendor, inside, mitigate, said)
            if said.mode == "ratelimit:N" and modelled.armed.mode == "warn":
                assert "takes its default, warn" in said.effect, where
                continue
            assert said.effect.startswith("No effect") == (not core.test_ctrl and not core.debugctl), where
            assert ("SIGBUS" in said.effect) == (fate == "sigbus"), where
            assert ("10 ms of sleep" in said.effect) == (fate == "slowed"), where
            assert ("oops" in said.effect) == core.test_ctrl, where
            assert ("At most N" in said.effect) == (core.debugctl and modelled.armed.mode == "ratelimit"), where
