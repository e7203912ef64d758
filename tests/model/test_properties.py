"""What the article cares about, checked in every state of the model."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest
from model import space

from splitlock.linux.hypervisors import Kind
from splitlock.model import possible
from splitlock.model.cpu import Access, Core, Processor, raises
from splitlock.model.guest import Guest
from splitlock.model.kernel import Linux, Locks, boot, core
from splitlock.model.machine import VM, Host, Result, inside, native

BLIND: set[Kind] = {"kvm-2020", "kvm-2020-emulator", "vmware-2020", "virtualbox-2020", "unmarked", "tdx"}
KVM: set[Kind] = {"kvm", "virtualbox-kvm"}
EMULATE: set[Kind] = {"virtualbox", "acrn"}
PROPERTIES = {
    "KVM: who did not ask never gets #AC",
    "KVM, warn: nobody who did not ask is harmed",
    "KVM, fatal: who did not ask takes the whole virtual machine along",
    "KVM below, from 5.14 on: what runs above it makes no difference",
    "KVM below KVM, before 5.14: the guest's guest gets #AC",
    "VirtualBox 7 and ACRN: nobody who did not ask is harmed, or waits",
    "blind: every split lock ends in #AC in the guest",
    "no detection: nobody who did not ask is harmed",
    "who asks gets SIGBUS, on every hypervisor but ACRN that detects, and in every mode",
    "the host's kernel oopses of a guest only where KVM without the emulator's fix emulates",
    "nobody is ever called bogus",
    "the host's #DB reaches guests on AMD only, and of KVM's in 6.13 only",
    "a guest's own #DB comes after its lock has executed",
    "where a CPU does not detect, no guest and no program hears of it",
    "who is slowed waits, or is made to",
    "nothing that could not be is ever said to harm",
}


def in_guest(found: Result) -> bool:
    """Did an exception reach the guest's kernel?"""
    return any(step.who == "guest kernel" for step in found.steps)


def violations(host: Host, vm: VM, access: Access, found: Result) -> list[tuple[str, bool]]:
    """The properties that apply to a state, and whether each holds."""
    lowest = vm.layers[0]
    core = host.core
    leaked = found.raised == "#DB"  # the property below that says where
    own = vm.guest.bus_locks and vm.guest.linux is not None
    detecting = host.processor.split_locks and core.test_ctrl
    alone = len(vm.layers) == 1
    after = host.linux.release.series >= (5, 14)
    told = []
    if not access.asked and not leaked and not own:
        if lowest in KVM and (alone or after):
            told.append(("KVM: who did not ask never gets #AC", not in_guest(found)))
            if host.armed.mode == "warn":
                told.append(("KVM, warn: nobody who did not ask is harmed", not found.harmed))
            if detecting and host.armed.mode == "fatal" and not access.emulated:
                name = "KVM, fatal: who did not ask takes the whole virtual machine along"
                told.append((name, found.victim == "virtual machine"))
        if lowest == "kvm" and not alone and after:
            below = inside(host, VM(vm.layers[:1], Guest(Linux.of("6.1"))), access, Locks())
            told.append(("KVM below, from 5.14 on: what runs above it makes no difference", below == found))
        if vm.layers == ("kvm", "kvm") and not after and detecting and not access.emulated:
            told.append(("KVM below KVM, before 5.14: the guest's guest gets #AC", in_guest(found)))
        if alone and lowest in EMULATE and not access.prefixed and not vm.guest.split_locks:
            name = "VirtualBox 7 and ACRN: nobody who did not ask is harmed, or waits"
            told.append((name, found.fate in ("emulated", "executed")))
        if not detecting:
            told.append(("no detection: nobody who did not ask is harmed", not found.harmed))
        elif all(kind in BLIND for kind in vm.layers) and not access.emulated:
            told.append(("blind: every split lock ends in #AC in the guest", in_guest(found)))
    if access.asked and not access.emulated and not (lowest == "acrn" and detecting) and vm.layers[-1] != "acrn":
        name = "who asks gets SIGBUS, on every hypervisor but ACRN that detects, and in every mode"
        told.append((name, found.fate == "sigbus" and found.victim == "guest program"))
    if found.victim == "host kernel":
        name = "the host's kernel oopses of a guest only where KVM without the emulator's fix emulates"
        told.append((name, lowest in ("kvm-2020", "kvm-2020-intercept") and access.emulated))
    if leaked:
        name = "the host's #DB reaches guests on AMD only, and of KVM's in 6.13 only"
        right = host.processor.amd and (lowest not in KVM or host.linux.release.text == "6.13.0")
        told.append((name, right))
    if own and in_guest(found) and found.raised is None and not access.asked:
        told.append(("a guest's own #DB comes after its lock has executed", found.steps[0].what.find("executes") > 0))
    if (host.lost or host.free) and not core.test_ctrl and not core.debugctl and not access.asked and not own:
        name = "where a CPU does not detect, no guest and no program hears of it"
        told.append((name, found.fate in ("executed", "emulated", "slowed") and not in_guest(found)))
    if found.fate == "slowed":
        told.append(("who is slowed waits, or is made to", any(step.milliseconds for step in found.steps)))
    told.append(("nobody is ever called bogus", not any("bogus" in step.log for step in found.steps)))
    told.append(("nothing that could not be is ever said to harm", not possible.machine(host, vm)))
    return told


@pytest.fixture(scope="module")
def checked() -> tuple[Counter[str], dict[str, object]]:
    """How often each property applied, and where it did not hold."""
    applied: Counter[str] = Counter()
    broken: dict[str, object] = {}
    for host in space.hosts():
        for vm in space.machines(host):
            for access in space.accesses(vm):
                found = inside(host, vm, access, Locks())
                for name, holds in violations(host, vm, access, found):
                    applied[name] += 1
                    if not holds:
                        broken.setdefault(name, (host, vm, access, found))
    print(f"{applied['nobody is ever called bogus']:,} states")
    return applied, broken


@pytest.mark.parametrize("name", sorted(PROPERTIES))
def test_property(checked: tuple[Counter[str], dict[str, object]], name: str) -> None:
    applied, broken = checked
    assert name not in broken, broken.get(name)
    assert applied[name] > 0


def test_a_blind_forwarder_harms_somebody_where_ac_is_on() -> None:
    """Modes warn and fatal. The article's "any mode but off" came before ratelimit, in which #AC is off."""
    for host, kind in product(space.hosts(), BLIND):
        machines = [VM((kind,), guest) for guest in space.GUESTS if not guest.bus_locks]
        found = [inside(host, vm, Access(), Locks()) for vm in machines if not possible.machine(host, vm)]
        if not found or (kind == "unmarked" and host.processor.amd):
            continue
        asked_for = host.processor.split_locks and host.core.test_ctrl
        assert asked_for == (
            host.processor.split_locks
            and not host.disabled
            and not host.lost
            and not host.free
            and host.linux.release.series >= (5, 7)
            and host.armed.mode in ("warn", "fatal")
        )
        assert any(one.harmed for one in found) == (asked_for or (host.processor.amd and host.core.debugctl))


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
        if version not in ("5.4", "5.7.0", "5.12.0", "5.13.0"):
            assert [cores[m] for m in cores] == [Core(True), Core(True), Core(False, True)]
