"""How does one boot go? QEMU, its console line by line, and an end to it when nothing happens any more."""

from __future__ import annotations

import re
import selectors
import time
from collections import namedtuple

from splitlock._errors import SplitlockError
from splitlock.guest.machine import Machine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.guest.machine import Options

_LIMIT = 8 << 20  # bytes of a console
_TICK = 0.2  # seconds
_SIGN_OF_LIFE = re.compile(rb"splitlock-matrix: (\w+)[^\n]*\n")

Booted = namedtuple("Booted", "console end seconds")
"""What a console said, as bytes; how it ended: `done`, `reset` (or power off) or `hang`; and how long it took."""


def boot(options: Options, qemu: str, deadline: float) -> Booted:
    """Boot a machine until its init is done, it resets, or `deadline` seconds have brought nothing new.

    `qemu`: its version. Raises SplitlockError where QEMU does not start.
    """
    machine = Machine(options, qemu)
    try:
        begin = time.monotonic()
        console, end = _listen(machine, deadline)
        if not console and end == "reset":
            machine.process.wait(deadline)
            words = machine.words().splitlines()
            raise SplitlockError(f"QEMU did not start{': ' + words[-1] if words else ''}", 2)
        return Booted(console, end, time.monotonic() - begin)
    finally:
        machine.end()
        machine.close()


def _listen(machine: Machine, deadline: float) -> tuple[bytes, str]:
    """The console until its end, and how that came."""
    console, looked, last = bytearray(), 0, time.monotonic()
    with selectors.DefaultSelector() as selector:
        selector.register(machine.console, selectors.EVENT_READ)
        selector.register(machine.asked, selectors.EVENT_READ)
        while len(console) < _LIMIT and time.monotonic() - last < deadline:
            for key, _ in selector.select(_TICK):
                if key.fileobj is machine.asked:
                    if not _answer(machine):
                        selector.unregister(machine.asked)
                    continue
                data = machine.console.read()
                if not data:
                    return bytes(console), "reset"
                console += data
                while found := _SIGN_OF_LIFE.search(console, looked):
                    looked, last = found.end(), time.monotonic()
                    if found[1] == b"done":
                        return bytes(console), "done"
    return bytes(console), "hang"


def _answer(machine: Machine) -> bool:
    """Let the guest go on: who took a split lock does not matter here. False when QEMU is gone."""
    try:
        if machine.asked.recv(1 << 16):
            machine.asked.sendall(b"\0")
            return True
    except OSError:
        pass
    return False
