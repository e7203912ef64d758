"""What is in a scenario? A TOML file, checked strictly. docs/simulate.md lists its keys."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple

import msgspec

from splitlock._errors import SplitlockError
from splitlock.linux import versions
from splitlock.linux.hypervisors import Kind
from splitlock.model import possible
from splitlock.model.cpu import Access, Processor
from splitlock.model.guest import Guest
from splitlock.model.hypervisor import TITLES
from splitlock.model.kernel import Linux
from splitlock.model.loader import NONE
from splitlock.model.machine import VM, Host
from splitlock.model.mistakes import said
from splitlock.model.places import Place, line_of, places
from splitlock.modules import policy

_LARGEST = 1 << 20  # bytes
_DETECTS = Literal["#AC", "#DB"]
_Pid = Annotated[int, msgspec.Meta(ge=1, le=4_194_304)]  # include/linux/threads.h: PID_MAX_LIMIT
Cpu = Literal["boot", "sibling", "other"]


class Machine(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The [host]."""

    processor: list[_DETECTS] | None = None  #: null: what most of this vendor's have
    vendor: Literal["intel", "amd"] = "intel"
    linux: str = "6.1"
    mode: str = "warn"  #: what stands behind split_lock_detect=
    mitigate: bool = True
    hz: Literal[100, 250, 300, 1000] = 250
    threads: Literal[1, 2] = 2  #: of a core
    policy: str = "none"  #: none, or as `splitlock scan --policy` has it

    @property
    def detects(self) -> list[str]:
        """What its processor can do."""
        return [*self.processor] if self.processor is not None else ["#DB" if self.vendor == "amd" else "#AC"]


class Virtual(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A [[vm]]."""

    name: str
    hypervisor: Kind | list[Kind]  #: from the host up
    linux: str | None = None  #: the guest's; null: another system
    mode: str = "warn"  #: of the guest's kernel
    shown: list[_DETECTS] = []  #: what the guest is shown
    cpus: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 2
    bus_lock_ratelimit: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0  #: QEMU's
    module: str | None = None  #: it starts only while this module is loaded
    comm: str = "qemu-system-x86"
    pid: _Pid = 4185

    @property
    def layers(self) -> tuple[Kind, ...]:
        """Its hypervisors, from the host up."""
        return tuple(self.hypervisor) if isinstance(self.hypervisor, list) else (self.hypervisor,)


class Event(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """An [[event]]: one of the six of `KINDS`, and more about it."""

    load: str | None = None
    loads: list[str] = []  #: files that the module brings into the kernel by itself, as VirtualBox's driver does
    unload: str | None = None
    resume: Literal["memory", "idle", "disk"] | None = None  #: the machine slept, and woke
    online: Literal["sibling", "other"] | None = None  #: a CPU was taken offline, and comes online again
    step: Literal["host"] | None = None  #: a debugger's single step
    lock: str | None = None  #: `host`, or a virtual machine's name
    cpu: Cpu = "other"  #: where it runs: the CPU that the machine booted on, its hyperthread, any other
    where: Literal["user", "kernel", "interrupt"] = "user"
    asks: bool = False  #: EFLAGS.AC is set
    bits: Literal[16, 32, 64] = 64
    prefixed: bool = False  #: another prefix stands before LOCK
    emulated: bool = False
    number: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 1
    every_ms: Annotated[float, msgspec.Meta(ge=0, le=86_400_000)] = 0.0  #: a day at most
    comm: str = "program"
    pid: _Pid = 1000
    address: str = "0x401000"

    @property
    def access(self) -> Access:
        """The locked instruction."""
        return Access(self.where, self.asks, True, self.bits, self.emulated, self.prefixed)


#: The keys of which an event has exactly one.
KINDS = ("load", "unload", "resume", "online", "step", "lock")


class Scenario(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The file."""

    title: str
    tells: str = ""
    host: Machine = msgspec.field(default_factory=Machine)
    vm: list[Virtual] = []
    event: list[Event]


class Wrong(NamedTuple):
    """What cannot be, and where it stands."""

    place: Place
    why: str


def load(path: str) -> Scenario:
    """Read one. Raises SplitlockError that names the file, the line, the key and what it may be."""
    try:
        with open(path, "rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise SplitlockError(f"{path}: {error.strerror}; name a scenario in TOML (docs/simulate.md)", 2) from None
    if len(data) > _LARGEST:
        raise SplitlockError(f"{path}: larger than a megabyte; name a scenario in TOML (docs/simulate.md)", 2)
    try:
        text = data.decode().replace("\r\n", "\n")
        raw = tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise SplitlockError(f"{path}: not UTF-8 at byte {error.start}; TOML files are", 2) from None
    except (ValueError, RecursionError) as error:
        what, _, at = str(error).partition(" (at line ")
        row = int(at.partition(",")[0]) if at[:1].isdigit() else text.count("\n") + 1
        raise SplitlockError(f"{path}:{row}: no valid TOML: {what}", 2) from None
    wrong = None
    try:
        found = msgspec.convert(raw, Scenario)
        wrong = next(_wrong(found), None)
    except msgspec.ValidationError as error:
        wrong = Wrong(*said(str(error), raw, Scenario))
    if wrong is not None:
        line = line_of(places(text), wrong.place)
        raise SplitlockError(f"{path}:{line}: {_named(wrong.place)}{wrong.why}", 2)
    return found


def _named(place: Place) -> str:
    """For people, who count from 1."""
    words = ""
    if len(place) > 1 and isinstance(place[1], int):
        words = f"[[{place[0]}]] {place[1] + 1}: "
        place = place[2:]
    elif place and place[0] == "host":
        words = "[host]: "
        place = place[1:]
    return words + (f"{place[0]}: " if place and place[0] else "")


def _wrong(found: Scenario) -> Iterator[Wrong]:
    """What msgspec does not know, in the file's order as far as that is simple."""
    host: Place = ("host",)
    if reason := possible.processor(found.host.vendor, found.host.detects):
        yield Wrong((*host, reason.key), reason.why)
    if why := _version(found.host.linux):
        yield Wrong((*host, "linux"), why)
    if found.host.policy != NONE:
        try:
            policy.load(found.host.policy)
        except SplitlockError as error:
            yield Wrong((*host, "policy"), str(error).removeprefix("--policy "))
    names = [machine.name for machine in found.vm]
    for number, machine in enumerate(found.vm):
        yield from (Wrong(("vm", number, key), why) for key, why in _wrong_machine(found, machine, names[:number]))
    for number, event in enumerate(found.event):
        yield from (Wrong(("event", number, key), why) for key, why in _wrong_event(found, event))


def _wrong_machine(found: Scenario, machine: Virtual, earlier: list[str]) -> Iterator[tuple[str, str]]:
    if machine.name == "host" or machine.name in earlier:
        whose = "the host's" if machine.name == "host" else "another's"
        yield "name", f'"{machine.name}" is {whose} name; give it one of its own'
    if not machine.layers:
        yield "hypervisor", f"the list is empty; name at least one of {', '.join(TITLES)}"
    elif machine.linux is not None and (why := _version(machine.linux)):
        yield "linux", why
    elif reason := possible.machine(host(found.host), virtual(machine)):
        yield reason


def _wrong_event(found: Scenario, event: Event) -> Iterator[tuple[str, str]]:
    kinds = [kind for kind in KINDS if getattr(event, kind) is not None]
    if len(kinds) != 1:
        has = f"it has {' and '.join(kinds)}" if kinds else "it has none"
        yield kinds[-1] if kinds else "", f"give an event exactly one of {', '.join(KINDS)}; {has}"
        return
    machines = {machine.name: machine for machine in found.vm}
    if event.lock is not None and event.lock not in ("host", *machines):
        there = ", ".join(f'"{name}"' for name in ("host", *machines))
        yield "lock", f'no [[vm]] is named "{event.lock}"; there are {there}'
        return
    if not re.fullmatch(r"0x[0-9a-fA-F]{1,16}", event.address):
        yield "address", f'"{event.address}" is not a hexadecimal address in quotes, such as "0x401000"'
    if found.host.threads == 1 and "sibling" in (event.cpu, event.online):
        key = "cpu" if event.cpu == "sibling" else "online"
        yield key, 'threads = 1: no CPU of this host has a sibling; give it "other"'
    if event.lock is not None:
        lowest = machines[event.lock].layers[0] if event.lock in machines else None
        if reason := possible.access(event.access, lowest):
            yield reason


def _version(release: str) -> str:
    """Why it is none; empty: it is one."""
    return "" if versions.release(release) else f'"{release}" is no version of Linux, such as "6.1" or "6.12.48"'


def linux(release: str, value: str = "warn", mitigate: bool = True, hz: int = 250, where: str = "--linux") -> Linux:
    """A kernel from its words. Raises SplitlockError, which says `where` they stand."""
    if why := _version(release):
        raise SplitlockError(f"{where}: {why}", 2)
    return Linux.of(release, value, mitigate, hz)


def processor(vendor: str, detects: list[str], where: str = "--processor") -> Processor:
    """One from its words. Raises SplitlockError, which says `where` they stand."""
    if reason := possible.processor(vendor, detects):
        raise SplitlockError(f"{where}: {reason.why}", 2)
    return Processor("#AC" in detects, "#DB" in detects, vendor == "amd")


def host(machine: Machine) -> Host:
    """The [host], as the model has it."""
    kernel = linux(machine.linux, machine.mode, machine.mitigate, machine.hz, "[host]")
    return Host(processor(machine.vendor, machine.detects, "[host]"), kernel)


def virtual(machine: Virtual) -> VM:
    """A [[vm]], as the model has it."""
    inner = linux(machine.linux, machine.mode, where="[[vm]]") if machine.linux is not None else None
    guest = Guest(inner, "#AC" in machine.shown, "#DB" in machine.shown)
    return VM(machine.layers, guest, machine.cpus, machine.bus_lock_ratelimit)
