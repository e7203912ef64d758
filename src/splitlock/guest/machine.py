"""One QEMU: its command line, started so that it never outlives us, and ended."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from typing import Literal, NamedTuple

from splitlock._errors import SplitlockError
from splitlock.guest.console import Console
from splitlock.guest.detection import Detection, plugin_words, processor
from splitlock.guest.emulated import Emulated
from splitlock.guest.memory import LOW
from splitlock.guest.shared import CPUS

PLUGIN = os.path.join(os.path.dirname(__file__), "plugin", "splitlock.so")
QEMU = "qemu-system-x86_64"
_OVMF = ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
         "/usr/share/edk2/ovmf/OVMF_CODE.fd")  # fmt: skip  # Debian and Ubuntu, Arch, Fedora
_CX16_WORKS = 8  # QEMU: Linux 6.12 panics on 7.2's cmpxchg16b


class Options(NamedTuple):
    """What is booted: paths, or None."""

    kernel: str | None
    initrd: str | None
    append: str  #: the kernel's command line
    disk: str | None
    disk_format: str | None  #: as QEMU calls it
    cdrom: str | None
    firmware: str | None  #: `ovmf` or a path; None: a BIOS
    memory: int  #: bytes
    cpus: int
    qemu: str  #: the program; nobody asks in Bochs
    more: list[str]  #: options of QEMU's own
    plugin: bool = True  #: False: without ours, to compare with
    detection: Detection = Detection()  #: what its processors detect
    traps: int | None = None  #: a descriptor to which their exceptions are written, lines of JSON
    slow: Literal["count", "stop"] | None = None  #: detection by QEMU's gdb stub (stub/passes.py): what for


def version(program: str) -> str:
    """QEMU's version, `7.2.22`. Raises SplitlockError where it is not there, or is something else."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        why = "not found" if isinstance(error, FileNotFoundError) else str(error)
        raise SplitlockError(
            f"{program}: {why}; install qemu-system-x86 (Debian, Ubuntu) or name it with --qemu", 2
        ) from None
    found = re.search(r"QEMU emulator version (\d{1,4}(?:\.\d{1,4})*)", done.stdout)
    if found is None:
        raise SplitlockError(f"--qemu {program}: is no qemu-system-x86_64", 2)
    return found[1]


def ovmf(code: str | None = None) -> tuple[str, str | None]:
    """UEFI firmware: its code, and its variables where they are a file of their own. Raises SplitlockError."""
    found = code or next((path for path in _OVMF if os.path.exists(path)), None)
    if found is None:
        raise SplitlockError("--firmware ovmf: not installed; install ovmf (Debian, Ubuntu) or name the file", 2)
    if not os.path.isfile(found):
        raise SplitlockError(f"--firmware {found}: no such file", 2)
    variables = os.path.join(os.path.dirname(found), os.path.basename(found).replace("CODE", "VARS"))
    return found, variables if variables != found and os.path.exists(variables) else None


def comma(path: str) -> str:
    """A path as an option's value: QEMU splits those at commas, and two stand for one."""
    return os.path.abspath(path).replace(",", ",,")


def _stub_words(fd: int) -> list[str]:
    """QEMU's gdb stub at our socket; the guest waits for its word."""
    return ["-S", "-chardev", f"socket,id=stub,fd={fd}", "-gdb", "chardev:stub"]


class Machine(Emulated):
    """QEMU. Raises SplitlockError where it cannot be started."""

    emulator = "QEMU"

    def __init__(self, options: Options, qemu: str) -> None:
        """`qemu`: its version."""
        if not os.path.exists(PLUGIN):
            raise SplitlockError(f"{PLUGIN}: not built; install a C compiler and build splitlock again", 2)
        if options.detection.bus_locks and options.cpus == 1:  # QEMU then runs a split atomic among other instructions
            raise SplitlockError("--bus-lock: needs --smp 2 or more: with one CPU the exception would come late", 2)
        if not 0 < options.cpus < CPUS:
            raise SplitlockError(f"--smp {options.cpus}: 1 to {CPUS - 1} CPUs", 2)
        console = Console()
        super().__init__(options, console)
        self.stub: socket.socket | None = None
        stub = None
        command = self._command(options, qemu, console)
        if options.slow == "stop":
            self.stub, stub = socket.socketpair()
            command += _stub_words(stub.fileno())
        try:
            self.start(
                command, stdin=console.input, stdout=console.output, inherited=[] if stub is None else [stub.fileno()],
                environment={"TMPDIR": "/var/tmp", **os.environ},  # where snapshots grow
            )  # fmt: skip
        finally:
            console.given()
            if stub is not None:
                stub.close()

    def _command(self, options: Options, qemu: str, console: Console) -> list[str]:
        size = options.memory
        words = [
            options.qemu, "-nodefaults", "-no-user-config", "-accel", "tcg,thread=multi",
            "-machine", f"memory-backend=ram,max-ram-below-4g={LOW}", "-m", f"{size >> 20}M",
            "-object", f"memory-backend-file,id=ram,share=on,size={size},mem-path=/proc/self/fd/{self.memory.fd}",
            "-cpu", "max" + ",cx16=off" * (int(qemu.partition(".")[0]) < _CX16_WORKS)
            + processor(options.detection, slow=options.slow is not None),
            "-smp", str(options.cpus), "-display", "none", "-vga", "none",
            *console.option,
            "-device", "virtio-rng-pci",
        ]  # fmt: skip
        if options.plugin:
            detect = "stub" if options.slow else plugin_words(options.detection)
            told = self.plugin_words(detect, traps=bool(detect) and not options.slow)
            words += ["-plugin", f"file={comma(PLUGIN)},{told}"]
        if options.kernel:
            words += ["-kernel", options.kernel, "-append", options.append]
        if options.initrd:
            words += ["-initrd", options.initrd]
        if options.disk:
            words += ["-drive", f"if=virtio,file={comma(options.disk)},format={options.disk_format},snapshot=on"]
        if options.cdrom:
            words += ["-drive", f"media=cdrom,file={comma(options.cdrom)},format=raw,readonly=on"]
        if options.firmware:
            code, variables = ovmf(None if options.firmware == "ovmf" else options.firmware)
            if variables is None:
                words += ["-bios", code]
            else:
                words += ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={comma(code)}",
                          "-drive", f"if=pflash,unit=1,format=raw,snapshot=on,file={comma(variables)}"]  # fmt: skip
        return [*words, *options.more]

    def load(self) -> None:
        """QEMU loads what it boots itself: nobody asks."""

    def clock(self) -> float:
        """Seconds, for deadlines: what an idle guest waits for counts."""
        return time.monotonic()

    def powered_off(self, status: int) -> bool:
        """Whether this exit status is that of a machine that was powered off."""
        return status == 0

    def words(self) -> str:
        """QEMU's last line, or the plugin's, which says more."""
        words = self.said().strip().splitlines()
        own = [line for line in words if line.startswith("splitlock plugin")]
        return (own or words or [""])[-1]

    def stop(self) -> None:
        """Ask QEMU to end: it takes its leave of the disks."""
        if self.process.poll() is None:
            self.process.terminate()

    def hang_up(self) -> None:
        """Answer no more questions, nor the gdb stub's."""
        super().hang_up()
        if self.stub is not None:
            self.stub.close()
