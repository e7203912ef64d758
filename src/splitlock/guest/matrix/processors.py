"""Which processors are there to measure on, and how does QEMU come by one?"""

from __future__ import annotations

from splitlock.guest.detection import Detection
from splitlock.guest.machine import Options

PROCESSORS = {"ac": "#AC alone", "db": "#DB alone", "both": "#AC and #DB"}
_MEMORY, _CPUS = 512 << 20, 2  # with one CPU QEMU would not trap right behind a bus lock
_DETECTION = {"ac": Detection(True, False), "db": Detection(False, True), "both": Detection(True, True)}


def options(processor: str, kernel: str, initrd: str, append: str, qemu: str) -> Options:
    """A machine with this processor: see `Options`."""
    return Options(
        kernel=kernel, initrd=initrd, append=append, disk=None, disk_format=None, cdrom=None, firmware=None,
        memory=_MEMORY, cpus=_CPUS, qemu=qemu, more=["-no-reboot"], detection=_DETECTION[processor],
    )  # fmt: skip
