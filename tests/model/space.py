"""The model's state space: every host, virtual machine and access that its rules tell apart."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import get_args

from splitlock.model.cpu import Access, Processor, Where
from splitlock.model.guest import Guest
from splitlock.model.hypervisor import Kind
from splitlock.model.kernel import VALUES, Linux
from splitlock.model.machine import VM, Host

PROCESSORS = [Processor(ac, db) for ac, db in product((False, True), repeat=2)] + [Processor(False, True, amd=True)]
#: A version on each side of what changed: 5.7 #AC and KVM, 5.13 #DB, 5.14 ratelimit, 5.19 misery,
#: 6.13 AMD, 6.14 SVM, 7.1.
VERSIONS = ["5.4", "5.7", "5.12", "5.13", "5.14", "6.1", "6.13.0", "6.14", "7.1"]
KINDS: tuple[Kind, ...] = get_args(Kind)
LAYERS: list[tuple[Kind, ...]] = [(kind,) for kind in KINDS] + list(product(KINDS, repeat=2))
GUESTS = [
    Guest(None),
    Guest(Linux.of("4.19")),
    Guest(Linux.of("5.7")),
    Guest(Linux.of("6.1")),
    Guest(Linux.of("6.1"), True),
]
ACCESSES = [
    *(Access("user", ac, am, 64, emulated) for ac, am, emulated in product((False, True), repeat=3)),
    *(Access(where, False, True, bits, emulated)  # type: ignore[arg-type]
      for where, bits, emulated in product(("kernel", "interrupt"), (16, 64), (False, True))),
]  # fmt: skip
EVERY_ACCESS = [
    Access(where, ac, am, bits, emulated)
    for where, ac, am, bits, emulated in product(get_args(Where), *[(False, True)] * 2, (16, 32, 64), (False, True))
]


def hosts() -> Iterator[Host]:
    """Every host."""
    for processor, version, value, disabled in product(PROCESSORS, VERSIONS, VALUES, (False, True)):
        yield Host(processor, Linux.of(version, value), disabled)


def machines() -> Iterator[VM]:
    """Every virtual machine."""
    for layers, guest in product(LAYERS, GUESTS):
        yield VM(layers, guest)
