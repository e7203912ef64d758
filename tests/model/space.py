"""The model's state space: every host, virtual machine and access that its rules tell apart, and that can be."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import get_args

from splitlock.linux.hypervisors import Kind
from splitlock.model import possible
from splitlock.model.cpu import Access, Processor, Where
from splitlock.model.guest import Guest
from splitlock.model.kernel import VALUES, Linux
from splitlock.model.machine import VM, Host

PROCESSORS = [Processor(ac, db) for ac, db in product((False, True), repeat=2)] + [Processor(False, True, amd=True)]
#: A version on each side of what changed: 5.7 #AC and KVM, 5.13 #DB, 5.14 ratelimit and nested, 5.19 misery, 6.13 AMD,
#: 6.14 SVM, 6.16 TDX, 7.1.
VERSIONS = ["5.4", "5.7.0", "5.12.0", "5.13.0", "5.14", "6.1", "6.13.0", "6.14", "7.1"]
KINDS: tuple[Kind, ...] = get_args(Kind)
#: One of each way to answer, one in the other.
_WAYS: tuple[Kind, ...] = ("kvm", "kvm-2020", "virtualbox", "vmware-2020", "acrn")
LAYERS: list[tuple[Kind, ...]] = [(kind,) for kind in KINDS] + list(product(_WAYS, repeat=2))
GUESTS = [
    Guest(None),
    Guest(Linux.of("4.19")),
    Guest(Linux.of("5.7")),
    Guest(Linux.of("6.1")),
    Guest(None, split_locks=True),
    Guest(Linux.of("6.1", "fatal"), bus_locks=True),
]
ACCESSES = [
    *(Access("user", ac, am, 64, emulated) for ac, am, emulated in product((False, True), repeat=3)),
    *(Access(where, False, True, bits, emulated)  # type: ignore[arg-type]
      for where, bits, emulated in product(("kernel", "interrupt"), (16, 64), (False, True))),
    Access(prefixed=True),
]  # fmt: skip
EVERY_ACCESS = [
    Access(where, ac, am, bits, emulated)
    for where, ac, am, bits, emulated in product(get_args(Where), *[(False, True)] * 2, (16, 32, 64), (False, True))
]


def hosts() -> Iterator[Host]:
    """Every host."""
    for processor, version, value, disabled in product(PROCESSORS, VERSIONS, VALUES, (False, True)):
        yield Host(processor, Linux.of(version, value), disabled)
    for processor, version, value in product(PROCESSORS, VERSIONS, VALUES):  # a CPU after it slept; a task let off
        yield Host(processor, Linux.of(version, value), lost=frozenset(("#AC", "#DB")))
        yield Host(processor, Linux.of(version, value), free=True)


def machines(host: Host) -> list[VM]:
    """Every virtual machine that there can be on a host."""
    every = [VM(layers, guest) for layers, guest in product(LAYERS, GUESTS)]
    every += [VM(("kvm",), guest, bus_lock_ratelimit=1) for guest in GUESTS]
    return [vm for vm in every if possible.machine(host, vm) is None]


def accesses(vm: VM) -> list[Access]:
    """Every access that there can be in it."""
    return [access for access in ACCESSES if possible.access(access, vm.layers[0]) is None]
