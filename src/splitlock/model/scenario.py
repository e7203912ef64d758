"""What is in a scenario? A TOML file, checked strictly."""

from __future__ import annotations

import re
import tomllib
from typing import Annotated, Literal, get_args

import msgspec

from splitlock._errors import SplitlockError
from splitlock.linux.parameter import setting
from splitlock.model.cpu import Processor
from splitlock.model.hypervisor import Kind
from splitlock.model.kernel import Linux

_LARGEST = 1 << 20  # bytes


class Machine(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The [host]."""

    processor: list[Literal["#AC", "#DB"]] = msgspec.field(default_factory=lambda: ["#AC"])
    vendor: Literal["intel", "amd"] = "intel"
    linux: str = "6.1"
    mode: str = "warn"  #: as split_lock_detect= has it
    mitigate: bool = True
    hz: Literal[100, 250, 300, 1000] = 250
    policy: str = "none"  #: none, or as `splitlock scan --policy` has it


class Virtual(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A [[vm]]."""

    name: str
    hypervisor: Kind | list[Kind]  #: from the host up
    linux: str | None = None  #: the guest's; null: another system
    mode: str = "warn"  #: of the guest's kernel
    shown: bool = False  #: the guest is shown split-lock detection (ACRN)
    module: str | None = None  #: it starts only if this module was let in
    comm: str = "qemu-system-x86"
    pid: int = 4185


class Event(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """An [[event]]: a module that is loaded, or a split lock."""

    load: str | None = None
    loads: list[str] = []  #: files that the module brings into the kernel by itself, as VirtualBox's driver does
    lock: str | None = None  #: `host`, or a virtual machine's name
    where: Literal["user", "kernel", "interrupt"] = "user"
    asks: bool = False  #: EFLAGS.AC is set
    bits: Literal[16, 32, 64] = 64
    emulated: bool = False
    number: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 1
    every_ms: Annotated[float, msgspec.Meta(ge=0, le=86_400_000)] = 0.0  #: a day at most
    comm: str = "program"
    pid: int = 1000
    address: str = "0x401000"


class Scenario(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The file."""

    title: str
    tells: str = ""
    host: Machine = msgspec.field(default_factory=Machine)
    vm: list[Virtual] = []
    event: list[Event]


def load(path: str) -> Scenario:
    """Read one. Raises SplitlockError that names file and key."""
    try:
        with open(path, "rb") as file:
            text = file.read(_LARGEST)
        found = msgspec.convert(tomllib.loads(text.decode()), Scenario)
    except OSError as error:
        raise SplitlockError(f"{path}: {error.strerror}; name a scenario in TOML (docs/simulate.md)", 2) from None
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        key = where.rstrip("`").lstrip(".") or "top level"
        raise SplitlockError(f"{path}: {key}: {what} (see docs/simulate.md)", 2) from None
    except (ValueError, RecursionError) as error:
        raise SplitlockError(f"{path}: no valid TOML: {error}", 2) from None
    names = [machine.name for machine in found.vm]
    for name in names:
        if name == "host" or names.count(name) > 1:
            why = "the host's" if name == "host" else "another's"
            raise SplitlockError(f"{path}: vm {name!r}: this name is {why}; give it one of its own", 2)
    for number, event in enumerate(found.event):
        if (event.load is None) == (event.lock is None):
            raise SplitlockError(f"{path}: event[{number}]: give it either `load` or `lock`", 2)
        if event.lock is not None and event.lock not in ("host", *names):
            raise SplitlockError(f"{path}: event[{number}].lock: no [[vm]] is named {event.lock!r}", 2)
        if not re.fullmatch(r"0x[0-9a-fA-F]{1,16}", event.address):
            raise SplitlockError(f"{path}: event[{number}].address: {event.address!r} is no hexadecimal address", 2)
    for machine in found.vm:
        if isinstance(machine.hypervisor, list) and not machine.hypervisor:
            raise SplitlockError(f"{path}: vm {machine.name!r}: name a hypervisor ({', '.join(get_args(Kind))})", 2)
        if machine.linux is not None:
            linux(machine.linux, machine.mode, f"{path}: vm {machine.name!r}")
    linux(found.host.linux, found.host.mode, f"{path}: host")
    return found


def linux(release: str, value: str, where: str, mitigate: bool = True, hz: int = 250) -> Linux:
    """A kernel from its words. Raises SplitlockError, which says `where` they stand."""
    try:
        found = Linux.of(release, value, mitigate, hz)
    except ValueError:
        raise SplitlockError(f"{where}: {release!r} is no version of Linux, such as 6.1", 2) from None
    asked = setting(value)
    if asked.ignored or (asked.mode == "ratelimit" and not asked.rate):
        raise SplitlockError(f"{where}: {value!r} is none of off, warn, fatal, ratelimit:1 to ratelimit:1000", 2)
    return found


def processor(machine: Machine, where: str) -> Processor:
    """The host's. AMD's have no `#AC` for split locks. Raises SplitlockError, which says `where` it stands."""
    amd = machine.vendor == "amd"
    if amd and "#AC" in machine.processor:
        raise SplitlockError(f'{where}: no AMD processor has "#AC" for split locks; give it "#DB"', 2)
    return Processor("#AC" in machine.processor, "#DB" in machine.processor, amd)
