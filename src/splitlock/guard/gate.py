"""The BPF gate: brought up, proved live, asked, taken down.

All that keeps it up are pins below /sys/fs/bpf/splitlock: of the links, so that the programs stay attached when
the process that loaded them is gone, and of the maps, so that others can read what it decided. It is pinned only
after it has refused the canary; a gate that is not live is taken down again, never left for show.
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager
from ctypes import c_uint64

from splitlock._errors import SplitlockError
from splitlock.guard import judge, kernel, layout
from splitlock.guard.bpfobject import Object
from splitlock.guard.kernel import Missing
from splitlock.guard.libbpf import Map, library, recursion_misses
from splitlock.guard.state import RUN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

PINS = f"{kernel.BPFFS}/splitlock"
MAPS = ("config", "allowed", "decisions", "counters", "pins")
JUDGES = ("read_file", "load_data")  #: the programs that decide
#: ask, after a judge, whether it was called; attached before it, as the kernel calls the newest first,
#: and detached before it (`remove` goes by name)
CHECKS = ("check_file", "check_data")
KEEPERS = ("keep_unlink", "keep_rmdir", "keep_rename", "keep_mount")  #: those that keep the pins
TEST = "judge_test"  #: for BPF_PROG_TEST_RUN only
_PER_CPU = (5, 6)  # enum bpf_map_type: PERCPU_HASH, PERCPU_ARRAY
_ZERO = bytes(4)  # the key of an array's only entry
_LOCK = f"{RUN}/guard.lock"


@contextmanager
def locked() -> Iterator[None]:
    """One of us at a time starts, stops, or reads the ring buffer."""
    os.makedirs(RUN, exist_ok=True)
    fd = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def pins(directory: str = PINS) -> list[str]:
    """The names pinned; empty when the gate is not up."""
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
    except PermissionError:
        raise SplitlockError(f"{directory}: needs root; run it with sudo", 2) from None


def is_up(directory: str = PINS) -> bool:
    """Are both judges attached, by pinned links?"""
    return {f"link_{name}" for name in JUDGES} <= set(pins(directory))


@contextmanager
def opened(name: str, directory: str = PINS) -> Iterator[Map]:
    """One of the running gate's maps."""
    try:
        found = Map.pinned(f"{directory}/{name}")
    except OSError as error:
        raise SplitlockError(
            f"{directory}/{name}: {error.strerror}; is the gate up? (splitlock guard status)", 2
        ) from None
    try:
        yield found
    finally:
        found.close()


def live_config(directory: str = PINS) -> layout.Config:
    """The configuration the running gate judges by. Raises SplitlockError."""
    made = layout.Config()
    with opened("config", directory) as found:
        _, _, size, _ = found.info()
        if size != len(bytes(made)):
            raise SplitlockError("the running gate is another version's; splitlock guard stop, then start", 2)
        found.read(_ZERO, made)
    return made


def counters(directory: str = PINS) -> dict[str, int]:
    """How often the gate did what, since it came up. Raises SplitlockError."""
    with opened("counters", directory) as found:
        kind, _, size, _ = found.info()
        fields = size // 8
        copies = library().libbpf_num_possible_cpus() if kind in _PER_CPU else 1
        values = (c_uint64 * (fields * copies))()
        found.read(_ZERO, values)
    names = [field[0] for field in layout.Counters._fields_]
    counted = {name: sum(values[at::fields]) for at, name in enumerate(names[:fields])}
    return {**counted, "missed": _missed(directory)}


def _missed(directory: str) -> int:
    """How often the kernel did not run one of the gate's programs where it should have. Raises SplitlockError."""
    try:
        return sum(recursion_misses(f"{directory}/{name}") for name in pins(directory) if name.startswith("link_"))
    except OSError as error:
        raise SplitlockError(
            f"{error.filename or directory}: {error.strerror}; is the gate up? (splitlock guard status)", 2
        ) from None


def start(config: layout.Config, *, replace: bool = False, object_path: str | None = None) -> None:
    """Load, attach, prove and pin the gate; with `replace` in place of the one that is up, without a gap.

    The new one is attached before the old one goes. Raises Missing where this kernel cannot have the gate or
    never calls it, SplitlockError for anything else; then nothing of the new one is left.
    """
    path = object_path or judge.built(judge.OBJECT)
    kernel.check()
    kernel.mount_bpffs()
    up = is_up()
    if up and not replace:
        raise SplitlockError("the gate is already up; splitlock guard stop, or start --replace", 2)
    target = f"{PINS}_new" if up else PINS
    remove(target)  # of a start that was cut short
    with Object(path) as made:
        made.leave_out(TEST)
        made.load()
        maps = made.maps
        maps["config"].write(_ZERO, config)
        maps["config"].freeze()
        if up:
            with opened("allowed") as before:
                for digest in before.keys(32):
                    maps["allowed"].write(digest, (1).to_bytes(8, "little"))
        judges = [*CHECKS, *sorted(made.programs.keys() - {*KEEPERS, *CHECKS})]
        for name in judges:
            made.attach(name)
        prove()
        try:
            os.mkdir(target, 0o700)
            for name in MAPS:
                made.pin_map(name, f"{target}/{name}")
            for name in judges:
                made.pin_link(name, f"{target}/link_{name}")
            if up:
                take_down()
                os.rename(target, PINS)
            for name in KEEPERS:
                made.attach(name)
                made.pin_link(name, f"{PINS}/link_{name}")
            maps["pins"].write(_ZERO, layout.Pins.of(PINS))
        except (OSError, SplitlockError) as error:
            remove(target)
            if isinstance(error, SplitlockError):
                raise
            raise SplitlockError(
                f"{error.filename or target}: {error.strerror}; the gate cannot be pinned", 2
            ) from None


def prove() -> None:
    """Offer the canary. Raises Missing when no live gate refuses it."""
    number = kernel.canary(layout.CANARY)
    if number != layout.CANARY_ERRNO:
        raise Missing(f"the gate is loaded, but not live: {kernel.why_dead(number)}")


def take_down(directory: str = PINS) -> None:
    """Remove the gate. Raises SplitlockError where the pins cannot be removed."""
    try:
        remove(directory)
    except OSError as error:
        raise SplitlockError(f"{error.filename or directory}: {error.strerror}; the gate stays up", 2) from None


def wait_until_gone() -> None:
    """Until the canary is no longer refused, 5 s at most: the kernel detaches a while after a pin is gone."""
    for _ in range(50):
        if kernel.canary(layout.CANARY) != layout.CANARY_ERRNO:
            return
        time.sleep(0.1)


def remove(directory: str) -> None:
    """Remove pins, unlocked first: the keepers', the judges', the maps'. Raises OSError, SplitlockError."""
    names = pins(directory)
    if "pins" in names:
        with opened("pins", directory) as kept:
            kept.write(_ZERO, layout.Pins())
    keepers = {f"link_{name}" for name in KEEPERS}
    for name in sorted(names, key=lambda name: (name not in keepers, not name.startswith("link_"), name)):
        os.unlink(f"{directory}/{name}")
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        pass
