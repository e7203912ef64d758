"""How is the image run in QEMU or Bochs? In a directory of its own; the emulator is ended as soon as the log ends."""

from __future__ import annotations

import errno
import os
import pty
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import NamedTuple

from splitlock._errors import SplitlockError
from splitlock.guest.probe.image import iso
from splitlock.guest.probe.log import LIMIT, read

QEMU, BOCHS = "qemu-system-x86_64", "bochs"
INTERRUPTED = "interrupted"  #: a run that Ctrl-C ended
_POLL = 0.05  # seconds
_NOT_BY_ITSELF = (None, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)  # exit statuses
_NOT_FOUND = 127  # setpriv's exit status
_MEMORY = 32  # MiB
_BOOTS = 100  # at a reset Bochs' debugger takes over, and wants to be told to continue
_BOCHSRC = f"""\
display_library: term
cpu: model=corei7_skylake_x, reset_on_triple_fault=1, ignore_bad_msrs=0
memory: guest={_MEMORY}, host={_MEMORY}
romimage: file=$BXSHARE/BIOS-bochs-latest
vgaromimage: file=$BXSHARE/VGABIOS-lgpl-latest
ata0-master: type=cdrom, path=probe.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=serial
clock: sync=none
panic: action=fatal
log: log
"""


class Ran(NamedTuple):
    """What came of a run."""

    log: bytes
    ended: str  #: how it ended where the image did not come to its end; may be empty
    died: bool = False  #: then: by itself


def qemu(accelerator: str, program: str, seconds: float, more: Sequence[str] = ()) -> Ran:
    """Run it in QEMU on `tcg` or `kvm`; `more`: options of QEMU's. Raises SplitlockError where QEMU does not start."""
    if accelerator == "kvm":
        os.close(open_kvm())
    command = [
        program, "-M", "pc", "-accel", accelerator, "-cpu", "host" if accelerator == "kvm" else "max",
        "-m", str(_MEMORY), "-nodefaults", "-no-user-config", "-display", "none", "-boot", "d",
        "-drive", "if=ide,media=cdrom,format=raw,readonly=on,file=probe.iso", "-serial", "file:serial", *more,
    ]  # fmt: skip
    return _run("QEMU", command, f"{program}: {{}}; install qemu-system-x86, or name it with --qemu-binary", seconds)


def bochs(program: str, seconds: float) -> Ran:
    """Run it in Bochs. Raises SplitlockError where Bochs does not start."""
    command = [program, "-q", "-f", "bochsrc", "-rc", "go"]
    return _run("Bochs", command, f"{program}: {{}}; install bochs and bochs-term", seconds)


def open_kvm() -> int:
    """A descriptor of /dev/kvm. Raises SplitlockError where there is none for us."""
    try:
        return os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        denied = error.errno in (errno.EACCES, errno.EPERM)
        remedy = "be root, or join the group kvm" if denied else "load kvm_intel or kvm_amd, or use --qemu tcg"
        raise SplitlockError(f"/dev/kvm: {error.strerror}; {remedy}", 2) from None


@contextmanager
def started(command: list[str], directory: Path) -> Iterator[tuple[subprocess.Popen[bytes], bytearray]]:
    """An emulator that runs in a directory, on a terminal, which Bochs wants; with the last of what it says there.

    It ends with the context, or with us, however we end. Raises SplitlockError where setpriv(1) is missing.
    """
    ours, theirs = pty.openpty()
    said = bytearray()
    with open(ours, "rb", buffering=0):
        drain = Thread(target=_drain, args=(ours, said), daemon=True)
        drain.start()
        try:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                cwd=directory, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
                env={**os.environ, "TERM": "xterm"},
            )  # fmt: skip
        except OSError as error:
            raise SplitlockError(f"setpriv: {error.strerror}; install util-linux", 2) from None
        finally:
            os.close(theirs)
        try:
            yield process, said
        finally:
            process.kill()
            process.wait()
            drain.join()


def _run(name: str, command: list[str], not_there: str, seconds: float) -> Ran:
    with tempfile.TemporaryDirectory(prefix="splitlock-probe-") as place:
        directory = Path(place)
        serial = directory / "serial"
        try:
            (directory / "probe.iso").write_bytes(iso())
            (directory / "bochsrc").write_text(_BOCHSRC)
            (directory / "go").write_text("c\n" * _BOOTS)
            with started(command, directory) as (process, said):
                ended = _watch(name, process, serial, seconds)
                died = process.returncode not in _NOT_BY_ITSELF
        except KeyboardInterrupt:
            return Ran(_so_far(serial), INTERRUPTED)
        raw = _so_far(serial)
    if process.returncode == _NOT_FOUND and not raw:
        raise SplitlockError(not_there.format("not found"), 2)
    if ended and not raw.strip():
        words = said.decode("utf-8", "replace").strip().splitlines()
        raise SplitlockError(f"{ended}: {words[-1].strip() if words else 'it said nothing'}", 2)
    return Ran(raw, ended, died)


def _watch(name: str, process: subprocess.Popen[bytes], serial: Path, seconds: float) -> str:
    """Wait for the log's end; gives how it ended otherwise."""
    deadline = time.monotonic() + seconds
    while True:
        over = process.poll() is not None  # asked before the log is read, so that nothing is missed
        if read(_so_far(serial)).over:
            return ""
        if over:
            status = process.returncode
            if status < 0:
                return f"{name} was killed by signal {-status} ({signal.strsignal(-status)})"
            return f"{name} ended with status {status}"
        if time.monotonic() > deadline:
            return f"no end after {seconds:g} s, {name} was ended; give it longer with --timeout"
        time.sleep(_POLL)


def _so_far(serial: Path) -> bytes:
    try:
        with serial.open("rb") as file:
            return file.read(LIMIT)
    except FileNotFoundError:
        return b""


def _drain(terminal: int, said: bytearray) -> None:
    """Take what is written to a terminal until nobody has it any more, and keep the last of it."""
    while True:
        try:
            chunk = os.read(terminal, 1 << 16)
        except OSError:  # EIO: closed on the other side
            return
        if not chunk:
            return
        said += chunk
        del said[:-4096]
