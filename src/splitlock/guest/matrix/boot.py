"""How does one boot go? A machine, its console line by line, and an end to it when nothing happens any more."""

from __future__ import annotations

import re
import selectors
import time
from typing import NamedTuple

from splitlock._errors import SplitlockError
from splitlock.guest.shared import LOAD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from splitlock.guest.emulated import Emulated
    from splitlock.report.matrix import End

_LIMIT = 8 << 20  # bytes of a console
_TICK = 0.2  # seconds
_SIGN_OF_LIFE = re.compile(rb"splitlock-matrix: (\w+)[^\n]*\n")


class Booted(NamedTuple):
    """How a boot went."""

    console: bytes  #: what it said
    end: End  #: a power off is a `reset`, too
    seconds: float


def boot(machine: Emulated, deadline: float, marked: Callable[[], None] | None = None) -> Booted:
    """Run a machine until its init is done, it resets, or `deadline` seconds have brought nothing new; then free it.

    Seconds are those of the machine's clock(). `marked` is called while the machine waits, each time that its init says
    so (inside/init.c, mark()). Raises SplitlockError where the emulator does not start.
    """
    try:
        begin = time.monotonic()
        console, end = _listen(machine, deadline, marked)
        if not console and end == "reset" and not machine.shared.totals().sites:
            machine.stop()
            machine.process.wait(deadline)
            words = machine.words().splitlines()
            raise SplitlockError(f"{machine.emulator} did not start{': ' + words[-1] if words else ''}", 2)
        return Booted(console, end, time.monotonic() - begin)
    finally:
        machine.end()
        machine.close()


def _listen(machine: Emulated, deadline: float, marked: Callable[[], None] | None) -> tuple[bytes, End]:
    """The console until its end, and how that came."""
    console, looked, last, loaded_after = bytearray(), 0, machine.clock(), None
    with selectors.DefaultSelector() as selector:
        selector.register(machine.console, selectors.EVENT_READ)
        selector.register(machine.asked, selectors.EVENT_READ)
        while len(console) < _LIMIT and machine.clock() - last < deadline:
            events = selector.select(_TICK)
            if not events and machine.process.poll() is not None:
                return bytes(console), "reset"
            for key, _ in events:
                if key.fileobj is machine.asked:
                    question = _question(machine)
                    resets = machine.shared.totals().resets
                    if question == LOAD and loaded_after is None:
                        loaded_after = resets
                        machine.load()
                    elif question == LOAD and resets != loaded_after:
                        return bytes(console), "reset"
                    elif question == LOAD and marked:
                        marked()
                    if question is None or not _answer(machine):
                        selector.unregister(machine.asked)
                    continue
                data = machine.console.read()
                if not data:
                    return bytes(console), "reset"
                console += data
                while found := _SIGN_OF_LIFE.search(console, looked):
                    looked, last = found.end(), machine.clock()
                    if found[1] == b"done":
                        return bytes(console), "done"
    return bytes(console), "hang"


def _question(machine: Emulated) -> int | None:
    """What the machine waits for: an entry's number, or LOAD; None when the emulator is gone."""
    try:
        asked = machine.asked.recv(1 << 16)
    except OSError:
        return None
    return int.from_bytes(asked[:4], "little") if asked else None


def _answer(machine: Emulated) -> bool:
    """Let the guest go on: who took a split lock does not matter here. False when the emulator is gone."""
    try:
        machine.asked.sendall(b"\0")
    except OSError:
        return False
    return True
