"""Whole machines for tests: a real Debian kernel booted in QEMU, with commands run inside one after another.

No KVM is needed and none is used: TCG, the same everywhere. What is inside: Debian's userland (scripts/guest.sh), the
kernel's own modules, and a payload of the test's. All disks are snapshots: what a guest writes is gone with it.
A guest boots the ELF vmlinux over PVH (a bzImage would unpack itself first, slowly), with a small initramfs that loads
the modules for the disks as any machine does.

    with Machine(kernel("amd64"), payload=directory) as guest:
        done = guest.run(["insmod", "/payload/toy.ko"])
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import lzma
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from modules.debian import ROOT, packages, unpacked, vmlinuz

from splitlock.image.bzimage import vmlinux

STORE = Path(os.environ.get("SPLITLOCK_GUESTS", ROOT / "build" / "guests"))
QEMU = "qemu-system-x86_64"
CPU = "max,cx16=off"  # 6.12 panics on QEMU 7.2's cx16
AGENT = Path(__file__).with_name("agent.py")
# loaded by the initramfs, with what they depend on; the missing ones are built in
_BOOT_MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "crc32c_generic", "ext4")
_INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /root
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
for module in $(/bin/busybox cat /modules/order); do /bin/busybox insmod /modules/$module || echo "no $module"; done
/bin/busybox mount -t ext4 -o rw,noatime /dev/vda /root || exec /bin/busybox sh
/bin/busybox mount -t ext4 -o rw,noatime /dev/vdb /root/lib/modules
[ ! -b /dev/vdc ] || /bin/busybox mount -t ext4 -o rw,noatime /dev/vdc /root/payload
/bin/busybox cp /agent.py /agent-init /root/
/bin/busybox mkdir -p /root/etc/systemd/system/multi-user.target.wants
/bin/busybox cp /agent.service /root/etc/systemd/system/
/bin/busybox ln -sf ../agent.service /root/etc/systemd/system/multi-user.target.wants/agent.service
for place in proc sys dev; do /bin/busybox mount --move /$place /root/$place; done
init=/agent-init
for word in $(/bin/busybox cat /root/proc/cmdline); do case $word in guest_init=*) init=${word#guest_init=};; esac; done
exec /bin/busybox switch_root /root $init
"""
_SERVICE = """[Unit]
Description=runs what the test asks for
[Service]
ExecStart=/usr/bin/python3 -I /agent.py
Environment=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
StandardOutput=journal
"""
_AGENT_INIT = """#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -t tmpfs tmp /tmp; mount -t tmpfs run /run; mkdir -p /dev/shm /dev/pts; mount -t tmpfs shm /dev/shm
mount -t securityfs security /sys/kernel/security; mount -t bpf bpf /sys/fs/bpf; mount -t tracefs t /sys/kernel/tracing
mount -t cgroup2 cgroup /sys/fs/cgroup; ip link set lo up 2>/dev/null
exec /usr/bin/python3 -I /agent.py
"""


class MachineError(Exception):
    """The guest did not boot, died or did not answer; says what its console had last."""


@dataclass(frozen=True)
class Done:
    """What a command inside did."""

    status: int  #: its exit status, negative: the signal; -124: it was ended after its time
    out: str
    err: str
    seconds: float  #: by the guest's clock

    def ok(self) -> Self:
        """Itself, where the command succeeded. Raises AssertionError with its words otherwise."""
        assert self.status == 0, f"exit status {self.status}\n{self.out}\n{self.err}"
        return self

    def lines(self) -> list[dict[str, Any]]:
        """The JSON lines it printed."""
        return [json.loads(line) for line in self.out.splitlines() if line.startswith("{")]


@dataclass(frozen=True)
class Kernel:
    """What is booted: one of Debian's kernels with the disk that holds its modules."""

    release: str  #: as uname -r says it
    image: Path  #: the ELF vmlinux
    modules: Path  #: ext4 image of /lib/modules
    initramfs: Path


def need(*programs: str) -> None:
    """Fail where a program is missing that `make test` installs."""
    missing = [program for program in programs if not shutil.which(program)]
    if missing:
        pytest.fail(f"not installed: {', '.join(missing)}; make setup")


@cache
def base() -> Path:
    """The image of the guests' root file system; skips the test where it cannot be built, as without a network."""
    need("mmdebstrap", "mkfs.ext4")
    done = subprocess.run([ROOT / "scripts" / "guest.sh", STORE], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no guest image: {done.stderr.strip()}")
    return Path(done.stdout.strip())


def image(directory: Path, target: Path, label: str) -> Path:
    """An ext4 image `target` of a directory's contents, with room for some more."""
    used = sum(path.lstat().st_size + 4096 for path in directory.rglob("*"))
    part = target.with_suffix(f".part{os.getpid()}")
    subprocess.run(
        ["mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-E", "root_owner=0:0", "-L", label, "-d", directory, part,
         f"{(used * 5 // 4 >> 20) + 64}M"],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    part.rename(target)
    return target


@cache
def kernel(kind: str) -> Kernel:
    """One of the kernels that scripts/kernels.sh knows, made ready to boot (once, in build/guests)."""
    need("mkfs.ext4", "depmod", "cpio", "busybox")
    tree = unpacked(kind)
    (modules,) = (tree / "lib" / "modules").iterdir()
    directory = STORE / f"{kind}-{packages(kind)[kind].stem}-{_digest(_INIT, _SERVICE, _AGENT_INIT, AGENT.read_text())}"
    made = Kernel(modules.name, directory / "vmlinux", directory / "modules.ext4", directory / "initramfs")
    if not directory.exists():
        STORE.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=STORE))
        staged = part / "stage" / "lib" / "modules" / modules.name
        staged.parent.mkdir(parents=True)
        shutil.copytree(modules, staged, copy_function=_link)
        subprocess.run(["depmod", "-b", part / "stage", modules.name], check=True)
        (part / "vmlinux").write_bytes(vmlinux(vmlinuz(kind).read_bytes(), 1 << 30))
        image(part / "stage" / "lib" / "modules", part / "modules.ext4", "modules")
        (part / "initramfs").write_bytes(_initramfs(staged))
        shutil.rmtree(part / "stage")
        try:
            part.rename(directory)
        except OSError:  # another process was quicker
            shutil.rmtree(part)
    return made


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _digest(*texts: str) -> str:
    return hashlib.sha256("".join(texts).encode()).hexdigest()[:12]


def boot_order(modules: Path, names: Sequence[str]) -> list[Path]:
    """Files of `modules` (a kernel's directory with modules.dep) in the order in which to load `names`."""
    needs: dict[str, list[str]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
    by_name = {Path(path).name.split(".")[0].replace("-", "_"): path for path in needs}
    order: list[Path] = []
    for name in names:
        if name in by_name:
            for path in [*reversed(needs[by_name[name]]), by_name[name]]:
                if modules / path not in order:
                    order.append(modules / path)
    return order


def _initramfs(modules: Path) -> bytes:
    busybox = shutil.which("busybox")
    assert busybox
    root = Path(tempfile.mkdtemp())
    try:
        for place in ("bin", "modules"):
            (root / place).mkdir()
        shutil.copy(busybox, root / "bin" / "busybox")
        names = []
        for path in boot_order(modules, _BOOT_MODULES):
            data = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
            names.append(path.name.split(".")[0] + ".ko")
            (root / "modules" / names[-1]).write_bytes(data)
        (root / "modules" / "order").write_text("\n".join(names))
        (root / "init").write_text(_INIT)
        (root / "init").chmod(0o755)
        (root / "agent.py").write_text(AGENT.read_text())
        (root / "agent-init").write_text(_AGENT_INIT)
        (root / "agent-init").chmod(0o755)
        (root / "agent.service").write_text(_SERVICE)
        listing = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
        done = subprocess.run(
            ["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0"], cwd=root, input=listing.encode(), capture_output=True,
            check=True,
        )  # fmt: skip
        return done.stdout
    finally:
        shutil.rmtree(root)


def splitlock_payload(directory: Path) -> None:
    """Put this splitlock and what it imports into a payload: `PYTHONPATH=/payload/python python3 -m splitlock`."""
    import splitlock

    python = directory / "python"
    shutil.copytree(_libraries(), python, copy_function=_link)
    own = Path(splitlock.__file__).parent
    shutil.copytree(own, python / "splitlock", ignore=shutil.ignore_patterns("__pycache__"))
    _compile(python / "splitlock")


@cache
def _libraries() -> Path:
    """What splitlock imports, compiled and kept: `rich` without what it needs for colouring source code."""
    names = ("iced_x86", "msgspec", "rich", "zstandard")
    places = [Path(str(importlib.util.find_spec(name).origin)).parent for name in names]  # type: ignore[union-attr]
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("iced-x86", "msgspec", "rich", "zstandard")]
    directory = STORE / f"python-{_digest(*versions)}"
    if not directory.exists():
        STORE.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=STORE))
        for place in places:
            shutil.copytree(place, part / place.name, ignore=shutil.ignore_patterns("__pycache__"))
        _compile(part)
        try:
            part.rename(directory)
        except OSError:  # another process was quicker
            shutil.rmtree(part)
    return directory


def _compile(directory: Path) -> None:
    command = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", str(directory)]
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL)


class Machine:
    """A booted guest. Raises MachineError where it does not boot within `patience` seconds."""

    def __init__(
        self,
        kernel: Kernel,
        payload: Path | None = None,
        *,
        memory: int = 1024,
        cpus: int = 2,
        command_line: str = "",
        systemd: bool = False,
        patience: float = 180,
        qemu: Sequence[str] = (),
    ) -> None:
        """`memory` in MiB; `payload`: a directory that the guest has as /payload; `qemu`: more of its options."""
        need(QEMU)
        self.kernel = kernel
        self.seconds = 0.0  #: from QEMU's start to the first answer
        self._directory = Path(tempfile.mkdtemp(prefix="guest"))
        disks = [base(), kernel.modules]
        if payload is not None:
            disks.append(image(payload, self._directory / "payload.ext4", "payload"))
        init = "/sbin/init" if systemd else "/agent-init"
        words = f"console=ttyS0 loglevel=4 panic=-1 random.trust_cpu=on guest_init={init} {command_line}"
        self._command = [
            "setpriv", "--pdeathsig", "KILL",  # it ends with the tests, however they end
            QEMU, "-M", "pc", "-accel", "tcg,thread=multi", "-cpu", CPU, "-smp", str(cpus), "-m", str(memory),
            "-nodefaults", "-no-user-config", "-display", "none", "-kernel", str(kernel.image),
            "-initrd", str(kernel.initramfs), "-append", words, "-serial", f"file:{self._directory}/console",
            "-chardev", f"socket,id=agent,path={self._directory}/agent,server=on,wait=off",
            "-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent,name=agent",
            "-device", "virtio-rng-pci",
        ]  # fmt: skip
        for number, disk in enumerate(disks):
            drive = f"if=none,id=disk{number},file={disk},format=raw,snapshot=on"
            self._command += ["-drive", drive, "-device", f"virtio-blk-pci,drive=disk{number}"]
        self._command += list(qemu)
        self._patience = patience
        self._process: subprocess.Popen[bytes] | None = None
        self._stream: io.BufferedRWPair | None = None
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        begin = time.monotonic()
        try:
            errors = (self._directory / "qemu").open("wb")
            environment = {**os.environ, "TMPDIR": os.environ.get("TMPDIR", "/var/tmp")}  # snapshots grow
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stderr=errors, env=environment)
            self.wait_for_agent()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self.seconds = time.monotonic() - begin
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._socket:
            self._socket.close()
        if self._process and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    def wait_for_agent(self) -> None:
        """Wait until the guest answers: after a boot, or a reboot."""
        deadline = time.monotonic() + self._patience
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX)
            while True:
                try:
                    self._socket.connect(str(self._directory / "agent"))
                    break
                except OSError:
                    self._alive(deadline)
                    time.sleep(0.05)
        for line in self._lines(deadline):
            if line.get("hello"):
                return

    def run(
        self,
        command: Sequence[str | Path] | str,
        *,
        timeout: float = 120,
        input: bytes | str = b"",
        env: Mapping[str, str] | None = None,
    ) -> Done:
        """Run a command inside (a string: by sh), to its end or `timeout` seconds by the guest's clock."""
        words = ["sh", "-c", command] if isinstance(command, str) else [str(word) for word in command]
        data = input.encode() if isinstance(input, str) else input
        self._send({"run": words, "timeout": timeout, "input": base64.b64encode(data).decode(), "env": dict(env or {})})
        for answer in self._lines(time.monotonic() + timeout * 2 + 60):
            if "status" in answer:
                return Done(answer["status"], answer["out"], answer["err"], answer["seconds"])
        raise AssertionError("unreachable")

    def splitlock(self, *arguments: str, timeout: float = 180) -> Done:
        """Run `splitlock` inside, out of the payload."""
        return self.run(["python3", "-m", "splitlock", *arguments], timeout=timeout)

    def put(self, path: str, data: bytes) -> None:
        """Write a file inside."""
        self.run(["sh", "-c", 'mkdir -p "$(dirname "$0")" && cat >"$0"', path], input=data).ok()

    def console(self) -> str:
        """What the kernel has printed so far."""
        return (self._directory / "console").read_text(errors="replace")

    def reset(self) -> None:
        """Reboot it (by its own kernel, at once), and wait until it answers again."""
        self._send({"reset": True})
        self.wait_for_agent()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._socket
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise self._dead(str(error)) from error

    def _lines(self, deadline: float) -> Any:
        assert self._socket
        self._socket.settimeout(0.5)
        rest = b""
        while True:
            try:
                chunk = self._socket.recv(1 << 20)
            except TimeoutError:
                self._alive(deadline)
                continue
            if not chunk:
                raise self._dead("it closed its channel")
            rest += chunk
            *whole, rest = rest.split(b"\n")
            for line in whole:
                if line.startswith(b"{"):
                    yield json.loads(line)

    def _alive(self, deadline: float) -> None:
        assert self._process
        if self._process.poll() is not None:
            raise self._dead(f"QEMU ended with status {self._process.returncode}")
        if time.monotonic() > deadline:
            raise self._dead("no answer")

    def _dead(self, what: str) -> MachineError:
        tails = []
        for name in ("qemu", "console"):
            path = self._directory / name
            if path.exists():
                tails.append(path.read_text(errors="replace")[-3000:])
        return MachineError(f"{self.kernel.release}: {what}\n" + "\n".join(tails))
