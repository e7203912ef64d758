"""What the article cares about, checked in every state of the model."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest
from model import space

from splitlock.model.cpu import Access, Core, Processor, raises
from splitlock.model.hypervisor import Kind, kind_on
from splitlock.model.kernel import Linux, Locks, boot, core
from splitlock.model.machine import VM, Host, Result, inside, native

BLIND: set[Kind] = {"kvm-before", "vmware", "virtualbox", "unmarked"}
PROPERTIES = {
    "fixed KVM: who did not ask never gets #AC",
    "fixed KVM, warn: nobody who did not ask is harmed",
    "fixed KVM, fatal: who did not ask takes the whole virtual machine along",
    "fixed KVM below: what runs above it makes no difference",
    "blind: every split lock ends in #AC in the guest",
    "no detection: nobody who did not ask is harmed",
    "who asks gets SIGBUS, on every hypervisor and in every mode",
    "the host's kernel oopses of a guest only where KVM before the fixes of 2020 emulates",
    "nobody is ever called bogus",
    "the host's #DB reaches the guests of AMD's KVM of 6.13, and no others",
}


def in_guest(found: Result) -> bool:
    """Did an exception reach the guest's kernel?"""
    return any(step.who == "guest kernel" for step in found.steps)


def violations(host: Host, vm: VM, access: Access, found: Result) -> list[tuple[str, bool]]:
    """The properties that apply to a state, and whether each holds."""
    lowest = kind_on(vm.layers[0], host.linux)
    core = host.core
    bus = found.raised == "#DB"  # the property below that says where
    detecting = host.processor.split_locks and core.test_ctrl
    told = []
    if not access.asked and not bus:
        if lowest == "kvm":
            told.append(("fixed KVM: who did not ask never gets #AC", not in_guest(found)))
            if host.armed.mode == "warn":
                told.append(("fixed KVM, warn: nobody who did not ask is harmed", not found.harmed))
            if detecting and host.armed.mode == "fatal" and not access.emulated:
                name = "fixed KVM, fatal: who did not ask takes the whole virtual machine along"
                told.append((name, found.victim == "virtual machine"))
            if len(vm.layers) == 2:
                alone = inside(host, VM(vm.layers[:1], vm.guest), access, Locks())
                told.append(("fixed KVM below: what runs above it makes no difference", alone == found))
        if not detecting:
            told.append(("no detection: nobody who did not ask is harmed", not found.harmed))
        elif all(kind in BLIND for kind in vm.layers) and not (access.emulated and lowest == "kvm-before"):
            told.append(("blind: every split lock ends in #AC in the guest", in_guest(found)))
    if access.asked and not access.emulated and vm.layers != ("acrn",):
        name = "who asks gets SIGBUS, on every hypervisor and in every mode"
        told.append((name, found.fate == "sigbus" and found.victim == "guest program"))
    if found.victim == "host kernel":
        name = "the host's kernel oopses of a guest only where KVM before the fixes of 2020 emulates"
        told.append((name, lowest == "kvm-before" and access.emulated))
    if bus:
        where = (host.processor.amd, host.linux.release.text, lowest)
        name = "the host's #DB reaches the guests of AMD's KVM of 6.13, and no others"
        told.append((name, where == (True, "6.13.0", "kvm")))
    told.append(("nobody is ever called bogus", not any("bogus" in step.log for step in found.steps)))
    return told


@pytest.fixture(scope="module")
def checked() -> tuple[Counter[str], dict[str, object]]:
    """How often each property applied, and where it did not hold."""
    applied: Counter[str] = Counter()
    broken: dict[str, object] = {}
    for host in space.hosts():
        for vm, access in product(space.machines(), space.ACCESSES):
            found = inside(host, vm, access, Locks())
            for name, holds in violations(host, vm, access, found):
                applied[name] += 1
                if not holds:
                    broken.setdefault(name, (host, vm, access, found))
    return applied, broken


@pytest.mark.parametrize("name", sorted(PROPERTIES))
def test_property(checked: tuple[Counter[str], dict[str, object]], name: str) -> None:
    applied, broken = checked
    assert name not in broken, broken.get(name)
    assert applied[name] > 0


def test_a_blind_forwarder_harms_somebody_where_ac_is_on() -> None:
    """Modes warn and fatal. The article's "any mode but off" came before ratelimit, in which #AC is off."""
    for host, kind in product(space.hosts(), BLIND):
        if kind_on(kind, host.linux) != kind:
            continue
        found = [inside(host, VM((kind,), guest), Access(), Locks()) for guest in space.GUESTS if not guest.shown]
        asked_for = host.processor.split_locks and host.core.test_ctrl
        assert asked_for == (
            host.processor.split_locks
            and not host.disabled
            and host.linux.release.series >= (5, 7)
            and host.armed.mode in ("warn", "fatal")
        )
        assert any(one.harmed for one in found) == asked_for


def test_disabled_is_for_good() -> None:
    for host in space.hosts():
        if host.disabled:
            assert not host.core.test_ctrl
            for access in space.EVERY_ACCESS:
                asked = access.asked
                assert asked or native(host, access, Locks()).fate in ("executed", "slowed", "sigbus")
                if not asked and not host.core.debugctl:
                    assert native(host, access, Locks()).fate == "executed"


def test_32_bits_are_like_64() -> None:
    for processor, test_ctrl, debugctl in product(space.PROCESSORS, (False, True), (False, True)):
        for access in space.EVERY_ACCESS:
            if access.bits == 32:
                core = Core(test_ctrl, debugctl)
                assert raises(processor, core, access) == raises(processor, core, access._replace(bits=64))


def test_the_accesses_of_the_space_are_enough() -> None:
    """Whatever EVERY_ACCESS holds more is told apart by no processor."""
    for processor, test_ctrl, debugctl in product(space.PROCESSORS, (False, True), (False, True)):
        core = Core(test_ctrl, debugctl)
        outcomes = {(a.user, a.asked, raises(processor, core, a)) for a in space.EVERY_ACCESS}
        assert outcomes == {(a.user, a.asked, raises(processor, core, a)) for a in space.ACCESSES}


def test_where_both_are_there() -> None:
    """`warn` and `fatal` use #AC, `ratelimit` uses #DB, never both."""
    for version in space.VERSIONS:
        cores = {m: core(boot(Linux.of(version, m), Processor(True, True))) for m in ("warn", "fatal", "ratelimit:10")}
        assert not any(one.test_ctrl and one.debugctl for one in cores.values())
        if version not in ("5.4", "5.7", "5.12", "5.13"):
            assert [cores[m] for m in cores] == [Core(True), Core(True), Core(False, True)]
