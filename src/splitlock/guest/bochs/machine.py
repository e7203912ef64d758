"""One Bochs: its configuration, started so that it never outlives us, and ended."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from splitlock._errors import SplitlockError
from splitlock.guest.bochs.boot import Linux, floppy
from splitlock.guest.bochs.console import Terminal
from splitlock.guest.bochs.emulator import Emulator
from splitlock.guest.detection import Detection
from splitlock.guest.emulated import Emulated
from splitlock.guest.machine import Options
from splitlock.guest.memory import LOW
from splitlock.guest.watch import Ended, Watch, watched

_STANDS_STILL = 20  # as many of the clock's seconds count as one, should Bochs do nothing at all
_POWER_OFF = re.compile(r"soft power off|shutdown requested")
_PANIC = re.compile(r"^\d+p\[(\w*) *\] >>PANIC<< (.*)$", re.M)
# Time is instructions: as many to the second as CPUID says of the time stamp counter (instrument/processor.cc).
_BOCHSRC = """\
display_library: nogui
cpu: model={model}, ips=25000000, reset_on_triple_fault=1, ignore_bad_msrs=1
memory: guest={memory}, host={memory}
romimage: file={emulator.bios}
vgaromimage: file={emulator.vga_bios}
com1: enabled=1, mode=term, dev={console}
clock: sync=none
speaker: enabled=0
log: log
panic: action=fatal
error: action=ignore
info: action=ignore
debug: action=ignore
"""


def words(detection: Detection) -> str:
    """The library's word for what the processor detects, `detect`."""
    split = ["unannounced"] if detection.forward else ["split-locks"] * detection.split_locks
    return "+".join([*split, *["bus-locks"] * detection.bus_locks])


class BochsMachine(Emulated):
    """Bochs. Raises SplitlockError where it cannot be started, or what is to be booted cannot be booted."""

    emulator = "Bochs"

    def __init__(self, options: Options, emulator: Emulator) -> None:
        if options.memory > LOW:
            raise SplitlockError("-m: with --vmx at most 2G", 2)
        self._linux = None
        if options.kernel:
            self._linux = Linux(options.kernel, options.initrd, options.append, options.memory)
        console = Terminal()
        super().__init__(options, console)
        self._began = time.monotonic()
        self._directory = tempfile.TemporaryDirectory(prefix="splitlock-")
        self._place = Path(self._directory.name)
        try:
            self._configure(emulator, console)
        except OSError as error:
            self.abandon()
            raise SplitlockError(f"--vmx: {self._place}: {error.strerror}; TMPDIR names another place", 2) from None
        self.start(
            [emulator.program, "-q", "-f", "bochsrc"], stdin=subprocess.DEVNULL, directory=self._place,
            environment={**os.environ, "SPLITLOCK": self.plugin_words(words(options.detection))},
        )  # fmt: skip

    def _configure(self, emulator: Emulator, console: Terminal) -> None:
        options = self.options
        text = _BOCHSRC.format(model="tigerlake", memory=options.memory >> 20, emulator=emulator, console=console.path)
        if options.disk:
            os.symlink(os.path.abspath(options.disk), self._place / "disk")
            text += "ata0-master: type=disk, path=disk, mode=volatile, journal=written\n"
        if options.cdrom:
            os.symlink(os.path.abspath(options.cdrom), self._place / "cdrom")
            text += "ata1-master: type=cdrom, path=cdrom, status=inserted\n"
        if self._linux:
            (self._place / "floppy").write_bytes(floppy())
            text += "floppya: 1_44=floppy, status=inserted, write_protected=1\n"
        text += f"boot: {'floppy' if self._linux else 'disk' if options.disk else 'cdrom'}\n"
        (self._place / "bochsrc").write_text(text)

    def load(self) -> None:
        """The boot sector asks for the kernel."""
        if self._linux:
            self._linux.place(self.memory)

    def clock(self) -> float:
        """Seconds, for deadlines: Bochs' own processor time. It never waits, but where this machine is busy.

        Source: proc_pid_stat(5), fields utime and stime.
        """
        wall = (time.monotonic() - self._began) / _STANDS_STILL
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            return wall
        return max(wall, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))

    def powered_off(self, status: int) -> bool:
        """Whether the machine was powered off; the exit status, which says nothing of that, does not matter."""
        return _POWER_OFF.search(self.said()) is not None

    def words(self) -> str:
        """What Bochs said last of why it ended."""
        said = self.said()
        panics = [f"{device.lower()}: {what}".removeprefix(": ") for device, what in _PANIC.findall(said)]
        ours = re.findall(r"^splitlock plugin: .*$", said, re.M)
        return (ours or panics or [""])[-1]

    def said(self) -> str:
        """All that it has said so far, its log too."""
        log = self._place / "log"
        return super().said() + (log.read_text(errors="replace") if log.exists() else "")

    def stop(self) -> None:
        """Ask Bochs to end: nothing is lost, its disks are never written."""
        if self.process.poll() is None:
            self.process.kill()

    def close(self) -> None:
        """Free memory, counts and Bochs' files, too."""
        super().close()
        self._directory.cleanup()


@contextmanager
def lived(
    options: Options, emulator: Emulator, *, duration: float | None, until: str | None, console: int | None
) -> Iterator[tuple[Watch, Ended]]:
    """A machine in Bochs, after its end; arguments are those of `BochsMachine` and of `Watch.run`."""
    with watched(BochsMachine(options, emulator), duration=duration, until=until, console=console) as (watch, ended):
        yield watch, ended
