"""Advice for machines of every sort, and that it agrees with the model."""

from __future__ import annotations

import os
from itertools import product

import pytest

from splitlock.model.advise import advise, guest, host, hypervisors
from splitlock.report.advise import Guest, Host, Known, Report
from splitlock.report.guest import SCHEMA as GUEST
from splitlock.report.guest import Report as Watched
from splitlock.report.guest import Site
from splitlock.report.guest import Watched as Means
from splitlock.report.status import Module

KVM = Module(
    name="kvm_intel", path="/lib/kvm-intel.ko", loaded="yes", aware=True, marked=False, intree=True,
    evidence=["VMLAUNCH", "VMXON"], verdict="allow",
)  # fmt: skip
VBOX = Module(
    name="vboxdrv", path="/lib/vboxdrv.ko", loaded="yes", aware=False, marked=False, intree=False,
    evidence=["FOREIGN-CODE"], verdict="refuse",
)  # fmt: skip
SVM = Module(
    name="kvm_amd", path="/lib/kvm-amd.ko", loaded="yes", aware=False, marked=False, intree=True, evidence=["VMRUN"],
    verdict="allow",
)  # fmt: skip
LEFT = Module(
    name="vmmon", path=None, loaded="yes", aware=False, marked=False, intree=False, evidence=["its name"],
    verdict="unknown",
)  # fmt: skip


def machine(
    split: Known = "yes", bus: Known = "no", *, amd: bool = False, linux: str | None = "6.1.0-56-amd64"
) -> Host:
    return Host(
        source="here", split_locks=split, bus_locks=bus, amd=amd, linux=linux, mode="warn", mitigate=True, inside=None
    )


def told(where: Host, modules: list[Module], guests: list[Guest] | None = None) -> Report:
    return advise(where, hypervisors(modules, where), guests or [])


def verdicts(report: Report) -> list[str]:
    return [mode.verdict for mode in report.modes]


def test_kvm_alone() -> None:
    report = told(machine(), [KVM, SVM])
    assert [(one.name, one.kind) for one in report.hypervisors] == [("kvm_intel", "kvm")]  # SVM runs on AMD
    assert verdicts(report) == ["safe", "slows", "breaks", "safe"]
    assert (report.command_line, report.guard, report.first) == ("split_lock_detect=warn", False, [])


def test_virtualbox_beside_kvm() -> None:
    report = told(machine(), [KVM, VBOX])
    assert verdicts(report) == ["safe", "breaks", "breaks", "safe"]
    assert [mode.guarded for mode in report.modes] == ["safe", "slows", "breaks", "safe"]
    assert report.guard
    assert len(report.first) == 2  # it is loaded already
    (reason,) = [r for r in report.modes[1].reasons if "vboxdrv" in r.who and "program" in r.what]
    assert "is killed" in reason.what
    assert "is stuck for ever" in reason.what
    assert any("LWN" in rule or "traps.c" in rule for rule in reason.rules)


def test_what_the_guard_cannot_keep_out() -> None:
    """A module that is loaded, and whose file is gone: with #DB there is ratelimit, else nothing."""
    assert told(machine(), [LEFT]).command_line == "split_lock_detect=off"
    assert told(machine("yes", "yes"), [LEFT]).command_line == "split_lock_detect=ratelimit:100"


def test_amd() -> None:
    """6.13's KVM hands the host's #DB to guests."""
    leaks, fixed = (told(machine("no", "yes", amd=True, linux=linux), [SVM, KVM]) for linux in ("6.13.0", "6.14.0"))
    assert [one.name for one in leaks.hypervisors] == ["kvm_amd"]
    assert verdicts(leaks) == ["safe", "breaks", "breaks", "breaks"]
    assert verdicts(fixed) == ["safe", "safe", "breaks", "safe"]


def test_an_unknown_kernel() -> None:
    report = told(machine(linux=None), [KVM])
    assert report.modes[1].verdict == "slows"
    assert "which kernel runs there: taken to be 6.12" in report.unwatched


def test_nothing_to_detect() -> None:
    report = told(machine("no", "no"), [KVM, VBOX])
    assert report.command_line == ""
    assert set(verdicts(report)) == {"safe"}


def site(where: str, comm: str | None, image: str | None) -> Site:
    return Site(
        where=where, mode=64, hits=3, address="0x1", instruction="lock inc", operand_size=4,  # type: ignore[arg-type]
        operand_address="0x3f", image=image, offset=None, function=None, source=None, comm=comm, pid=1,
    )  # fmt: skip


def watched(*sites: Site) -> Watched:
    means = Means(
        qemu="7.2", api=1, registers=True, cpus=2, sites=9, kernel="6.1", processes=True, seconds=1.0, end="power off"
    )
    return Watched(
        schema=GUEST, guest="a", hits=3 * len(sites), unnamed=0, sites=list(sites), ready=not sites, watched=means,
        unwatched=["something"],
    )  # fmt: skip


def test_guest_reports() -> None:
    clean = guest("clean.json", watched())
    assert told(machine(), [KVM, VBOX], [clean]).modes[1].verdict == "slows"  # the host's own programs alone
    dirty = guest("vm.json", watched(site("user", "demo", "/bin/demo"), site("firmware", None, "CpuMpPei")))
    assert dirty.takers == ["user demo", "firmware CpuMpPei"]
    report = told(machine(), [KVM], [clean, dirty])
    (reason,) = [r for r in report.modes[2].reasons if "kvm_intel" in r.who]
    assert reason.what == "the virtual machine is killed"
    assert "vm.json (user demo, firmware CpuMpPei)" in reason.who
    assert "clean.json" not in reason.who
    assert "clean.json: something" in report.unwatched


@pytest.mark.parametrize("modules", [[], [KVM], [VBOX], [KVM, VBOX], [LEFT], [SVM]])
def test_never_worse(modules: list[Module]) -> None:
    """Whatever the machine: what is recommended breaks nothing, with the guard where it says so."""
    known: tuple[Known, ...] = ("yes", "no", "unknown")
    for split, bus, amd, linux in product(known, known, (False, True), ("4.19", "5.7", "5.10", "6.1", "6.13")):
        if amd and split != "no":
            continue
        report = told(machine(split, bus, amd=amd, linux=linux), modules)
        (best,) = [mode for mode in report.modes if mode.mode == report.recommended]
        assert (best.guarded if report.guard else best.verdict) != "breaks"
        assert report.modes[0].verdict == "safe"


def test_this_machine() -> None:
    from splitlock.host.root import Root
    from splitlock.host.status import status
    from splitlock.report.status import Guard

    found = host(status(Root("/"), Guard(up="unknown", why=""), scan=False), "here")
    assert found.linux == os.uname().release
    assert found.mode in ("off", "warn", "fatal", "ratelimit", "unknown")
