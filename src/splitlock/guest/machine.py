"""One QEMU: its command line, started so that it never outlives us, and ended."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import tempfile
from collections import namedtuple

from splitlock._errors import SplitlockError
from splitlock.guest.console import Console
from splitlock.guest.detection import Detection, plugin_words, processor
from splitlock.guest.memory import LOW, Memory
from splitlock.guest.shared import CPUS, Shared

PLUGIN = os.path.join(os.path.dirname(__file__), "plugin", "splitlock.so")
QEMU = "qemu-system-x86_64"
_OVMF = ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
         "/usr/share/edk2/ovmf/OVMF_CODE.fd")  # fmt: skip  # Debian and Ubuntu, Arch, Fedora
_CX16_WORKS = 8  # QEMU: Linux 6.12 panics on 7.2's cmpxchg16b
_END = 5  # seconds that QEMU has for ending by itself

Options = namedtuple(
    "Options",
    "kernel initrd append disk disk_format cdrom firmware memory cpus qemu more plugin detection traps slow",
    defaults=(True, Detection(), None, None),
)
"""What is booted: paths or None, and the disk's format as QEMU calls it; `firmware`: None, `ovmf` or a path; `memory`
in bytes; `qemu`: the program; `more`: options of its own; `plugin` False: without ours, to compare with;
`detection`: what its processors detect; `traps`: a descriptor to which their exceptions are written, lines of JSON;
`slow`: detection by QEMU's gdb stub (stub/passes.py), None, or what for: `count` or `stop`."""


def version(program: str) -> str:
    """QEMU's version, `7.2.22`. Raises SplitlockError where it is not there, or is something else."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        why = "not found" if isinstance(error, FileNotFoundError) else str(error)
        raise SplitlockError(
            f"{program}: {why}; install qemu-system-x86 (Debian, Ubuntu) or name it with --qemu", 2
        ) from None
    found = re.search(r"QEMU emulator version (\d+(?:\.\d+)*)", done.stdout)
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


class Machine:
    """A guest that runs, from here until `end`. Raises SplitlockError where QEMU cannot be started."""

    def __init__(self, options: Options, qemu: str) -> None:
        """`qemu`: its version."""
        if not os.path.exists(PLUGIN):
            raise SplitlockError(f"{PLUGIN}: not built; install a C compiler and build splitlock again", 2)
        if options.detection.bus_locks and options.cpus == 1:  # QEMU then runs a split atomic among other instructions
            raise SplitlockError("--bus-lock: needs --smp 2 or more: with one CPU the exception would come late", 2)
        if not 0 < options.cpus < CPUS:
            raise SplitlockError(f"--smp {options.cpus}: 1 to {CPUS - 1} CPUs", 2)
        self.options = options
        self.memory = Memory(options.memory)
        self.shared = Shared()
        self.console = Console()
        self.asked, ask = socket.socketpair()
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  # as long as the machine
        inherited = [self.memory.fd, self.shared.fd, ask.fileno()]
        inherited += [options.traps] if options.traps is not None else []
        self.stub: socket.socket | None = None
        stub = None
        if options.slow == "stop":
            self.stub, stub = socket.socketpair()
            inherited.append(stub.fileno())
        try:
            self.process = subprocess.Popen(
                # it ends with us, however we end; and Ctrl-C at the terminal is for us alone
                ["setpriv", "--pdeathsig", "KILL", *self._command(options, qemu, ask.fileno()),
                 *([] if stub is None else _stub_words(stub.fileno()))],
                stdin=self.console.input, stdout=self.console.output, stderr=self.errors, pass_fds=inherited,
                start_new_session=True, env={"TMPDIR": "/var/tmp", **os.environ},  # where snapshots grow
            )  # fmt: skip
        except OSError as error:
            self._close()
            raise SplitlockError(f"setpriv: {error.strerror}; install util-linux", 2) from None
        finally:
            self.console.given()
            ask.close()
            if stub is not None:
                stub.close()

    def _command(self, options: Options, qemu: str, ask: int) -> list[str]:
        size = options.memory
        words = [
            options.qemu, "-nodefaults", "-no-user-config", "-accel", "tcg,thread=multi",
            "-machine", f"memory-backend=ram,max-ram-below-4g={LOW}", "-m", f"{size >> 20}M",
            "-object", f"memory-backend-file,id=ram,share=on,size={size},mem-path=/proc/self/fd/{self.memory.fd}",
            "-cpu", "max" + ",cx16=off" * (int(qemu.partition(".")[0]) < _CX16_WORKS)
            + processor(options.detection, slow=options.slow is not None),
            "-smp", str(options.cpus), "-display", "none", "-vga", "none",
            *self.console.option,
            "-device", "virtio-rng-pci",
        ]  # fmt: skip
        if options.plugin:
            plugin = (
                f"file={comma(PLUGIN)},shared={self.shared.fd},ram={self.memory.fd},low={self.memory.low},ask={ask}"
            )
            if detect := "stub" if options.slow else plugin_words(options.detection):
                plugin += f",detect={detect}" + (
                    f",traps={options.traps}" if options.traps is not None and not options.slow else ""
                )
            words += ["-plugin", plugin]
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

    def words(self) -> str:
        """What QEMU said, its last line first of all."""
        self.errors.seek(0)
        return self.errors.read().decode("utf-8", "replace").strip()

    def stop(self) -> None:
        """Ask QEMU to end: it takes its leave of the disks."""
        if self.process.poll() is None:
            self.process.terminate()

    def end(self) -> None:
        """End QEMU, by force if it must be, and free everything but memory and counts."""
        self._hang_up()
        self.stop()
        try:
            self.process.wait(_END)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.console.close()

    def _hang_up(self) -> None:
        self.asked.close()
        if self.stub is not None:
            self.stub.close()

    def _close(self) -> None:
        self._hang_up()
        self.console.close()
        self.close()

    def close(self) -> None:
        """Free memory and counts, too."""
        self.errors.close()
        self.memory.close()
        self.shared.close()
