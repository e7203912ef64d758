"""A guest's life under watch: its console, the plugin's questions, and what ends it."""

from __future__ import annotations

import os
import re
import selectors
import signal
import socket
import sys
import time
from contextlib import contextmanager
from typing import NamedTuple

from splitlock._errors import SplitlockError
from splitlock.guest.machine import Machine
from splitlock.guest.names import Hypervisor, Named, Names
from splitlock.guest.shared import HYPERVISOR, LOAD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from splitlock.guest.emulated import Emulated
    from splitlock.guest.machine import Options
    from splitlock.guest.stub.stops import Stops

_TICK = 0.5  # seconds between looks for a kernel
_KEEP = 1 << 20  # bytes of the console that are kept
_RECENT = 1 << 16  # of these, in which --until is looked for
_LIVELOCK = 10.0  # seconds in which an instruction does nothing but trap
_GRACE = 5.0  # seconds for QEMU to end after it was asked to


class Ended(NamedTuple):
    """How a guest ended."""

    why: str  #: as report.guest.Watched.end has it; `again`: with `--slow`
    seconds: float  #: that it lived


class Watch:
    """One machine, and what was found while it ran.

    `named`: by the number of the plugin's entry; `said`: on its console, the last of it.
    """

    def __init__(self, machine: Emulated, cpus: int) -> None:
        self.machine = machine
        self.names = Names(machine.memory, machine.shared, cpus)
        self.named: dict[int, Named] = {}
        self.hypervisors: list[Hypervisor | None] = []  #: as `Shared.hypervisors` has them; None: not known
        self.livelocked: set[int] = set()  #: numbers of entries that did nothing but trap
        self.said = bytearray()
        self.stops: Stops | None = None  #: of the gdb stub
        self.passes = 0  #: with `--slow`: which one this is
        self.last_pass = False
        self._stuck: dict[int, tuple[int, int, float]] = {}

    def run(self, *, duration: float | None, until: str | None, console: int | None) -> Ended:
        """Until the guest powers off, `duration` seconds have passed, the console matches `until`, a livelock, Ctrl-C.

        `console`: where its output is written, None for nowhere. What is typed goes to the guest where standard input
        is a terminal. QEMU has ended when this returns. Raises SplitlockError where it never began.
        """
        begin = time.monotonic()
        pattern = re.compile(until.encode()) if until else None
        with selectors.DefaultSelector() as selector, _terminal() as keyboard, _interrupts() as interrupted:
            selector.register(self.machine.asked, selectors.EVENT_READ)
            selector.register(self.machine.console, selectors.EVENT_READ)
            if keyboard is not None:
                selector.register(keyboard, selectors.EVENT_READ)
            if self.stops is not None:
                selector.register(self.stops, selectors.EVENT_READ)
            why, asked_to_end, looked = "", 0.0, 0.0
            while True:
                for key, _ in selector.select(_TICK):
                    if key.fileobj is self.machine.asked:
                        if not self._answer():
                            selector.unregister(self.machine.asked)
                    elif key.fileobj is self.stops:
                        if self.stops is not None and not self.stops.serve():
                            selector.unregister(self.stops)
                    elif key.fileobj is self.machine.console:
                        if not self._listen(console):
                            selector.unregister(self.machine.console)
                        if pattern and pattern.search(self.said, max(0, len(self.said) - _RECENT)):
                            why = why or "until"
                    else:
                        self.machine.console.write(os.read(sys.stdin.fileno(), 1024))
                now = time.monotonic()
                if now - looked >= _TICK:
                    looked = now
                    self._look()
                    if self._livelock(now):
                        why = why or "livelock"
                if self.stops is not None and not self.last_pass and any(self.stops.escaped()):
                    why = why or "again"
                if interrupted:
                    why = why or "interrupted"
                if duration is not None and now - begin >= duration:
                    why = why or "duration"
                status = self.machine.process.poll()
                if status is not None:
                    self._rest(console)
                    return Ended(why or self._how(status), now - begin)
                if why and not asked_to_end:
                    self.machine.stop()
                    asked_to_end = now
                if asked_to_end and now - asked_to_end > _GRACE:
                    self.machine.process.kill()

    def _answer(self) -> bool:
        """Look at who it is that the plugin asks about, and let the guest go on; False when QEMU is gone."""
        question = _receive(self.machine.asked, 4)
        if len(question) < 4:
            return False
        number = int.from_bytes(question, "little")
        if number == LOAD:
            self.machine.load()
        elif number >= HYPERVISOR:
            entered = self.machine.shared.hypervisors()[number - HYPERVISOR]
            self.hypervisors.append(self.names.hypervisor(entered.rip, entered.cr3))
        else:
            self.named[number] = self.names.name(self.machine.shared.entry(number))
        try:
            self.machine.asked.sendall(b"\0")
        except OSError:
            return False
        return True

    def _listen(self, shown: int | None) -> bool:
        """Keep what the guest has said since, and show it; False when there is nothing more."""
        data = self.machine.console.read()
        if shown is not None:
            _write(shown, data)
        self.said += data
        del self.said[:-_KEEP]
        return bool(data)

    def _rest(self, shown: int | None) -> None:
        """What guest and plugin had still to say when QEMU ended."""
        while self._listen(shown):
            pass
        self.machine.asked.setblocking(False)
        while self._answer():
            pass
        self._look()

    def _livelock(self, now: float) -> bool:
        """Has an instruction done nothing but trap for too long, over and over? In the machine's own time."""
        stuck = {}
        totals = self.machine.shared.totals()
        if totals.traps:
            now = totals.clock / 1e9 or now
            for number, entry in enumerate(self.machine.shared.entries()):
                if entry.trapped_at:
                    begin = self._stuck.get(number)
                    if begin is None or begin[0] != entry.hits:
                        begin = (entry.hits, entry.traps, now)
                    stuck[number] = begin
                    if now - begin[2] > _LIVELOCK and entry.traps - begin[1] > 2 * _LIVELOCK:
                        self.livelocked.add(number)
        self._stuck = stuck
        return bool(self.livelocked)

    def _look(self) -> None:
        """Find the kernel that runs, also where nothing splits: the report says so, and names come sooner."""
        totals = self.machine.shared.totals()
        self.names.find_kernel(totals.cr3, totals.cr4)
        self.machine.shared.look()

    def _how(self, status: int) -> str:
        """How the emulator ended of itself. Raises SplitlockError where it did not even begin."""
        if self.machine.powered_off(status):
            return "power off"
        emulator = self.machine.emulator
        words = self.machine.words()
        said = f": {words}" if words else ""
        if status > 0 and not self.machine.shared.totals().sites:
            raise SplitlockError(f"{emulator} did not start{said or f' (exit status {status})'}", 2)
        how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        return f"{emulator.lower()}: {how}{said}"


@contextmanager
def lived(
    options: Options, qemu: str, *, duration: float | None, until: str | None, console: int | None
) -> Iterator[tuple[Watch, Ended]]:
    """A guest in QEMU, after its end; arguments are those of `Machine` and of `Watch.run`."""
    with watched(Machine(options, qemu), duration=duration, until=until, console=console) as (watch, ended):
        yield watch, ended


@contextmanager
def watched(
    machine: Emulated, *, duration: float | None, until: str | None, console: int | None
) -> Iterator[tuple[Watch, Ended]]:
    """A machine that was just started, after its end; the other arguments are those of `Watch.run`."""
    try:
        watch = Watch(machine, machine.options.cpus)
        try:
            ended = watch.run(duration=duration, until=until, console=console)
        finally:
            machine.end()
        yield watch, ended
    finally:
        machine.close()


def _receive(source: socket.socket, size: int = 1 << 16) -> bytes:
    try:
        return source.recv(size)
    except OSError:  # the other end has gone
        return b""


def _write(target: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(target, data) :]
        except BlockingIOError:
            time.sleep(0.01)
        except OSError:  # nobody looks
            return


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Ctrl-C and a polite end are noted, not acted on: the report is to come."""
    seen: list[int] = []
    before = {number: signal.signal(number, lambda n, _: seen.append(n)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _terminal() -> Iterator[int | None]:
    """Standard input where it is a terminal we own, key by key and without an echo: the guest's console does that."""
    if not sys.stdin or not sys.stdin.isatty() or os.tcgetpgrp(sys.stdin.fileno()) != os.getpgrp():
        yield None
        return
    import termios

    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    changed = termios.tcgetattr(keyboard)
    changed[3] &= ~(termios.ECHO | termios.ICANON)  # Ctrl-C stays ours
    termios.tcsetattr(keyboard, termios.TCSADRAIN, changed)
    try:
        yield keyboard
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
