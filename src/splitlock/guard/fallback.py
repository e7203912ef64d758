"""The gate for kernels without BPF LSM: a daemon that is asked before files are opened or read (fanotify).

Weaker, and it says so (HOLES). It judges with the exact scanner. Asked is it about every file of the file systems it
watches, but only files that look like modules matter, and of those only loads:

  - whoever is in finit_module(2) when the kernel reads the file, whatever its name: /proc/TID/syscall tells
  - the programs that load modules (insmod, modprobe, udev...), as soon as they open one: what they decompress
    themselves they pass on from memory, where nobody is asked

So copying, packing and scanning a refused module stays possible. A file that looks like a module and cannot be judged,
or not in time, is refused; any other file is let through whatever goes wrong.
"""

from __future__ import annotations

import os
import select
import stat
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from splitlock._errors import ImageError
from splitlock.guard.decisions import from_scan
from splitlock.guard.fanotify import Event, Fanotify
from splitlock.image.compressed import compression, expand
from splitlock.modules.scan import scan
from splitlock.modules.verdict import judge
from splitlock.x86.privileged import DEFAULT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from splitlock.modules.policy import Policy
    from splitlock.report.guard import Decision

HOLES = (
    "modules from memory (init_module), but for those of the known loaders' files; memfd files",
    "files on file systems that are not watched, or were mounted later",
    "files that were open before the gate came up",
    "a file that becomes a module through a shared mapping",
    "what happens when the daemon is killed: everything is let in",
)
LIMIT = 512 << 20  # bytes of a module, decompressed
PATIENCE = 20.0  # seconds for one module; amdgpu, the largest, takes about one
_FINIT_MODULE = {"313", "350", str(313 | 1 << 30)}  # x86-64, i386, x32
_LOADERS = {"insmod", "modprobe", "kmod", "systemd-modules-load", "systemd-udevd", "udevadm"}
_HEAD = 20  # bytes: up to e_machine
_MODULE = b"\x01\x00\x3e\x00"  # e_type ET_REL, e_machine x86-64
_PAUSE = 0.2  # seconds between looks at whether to go on
_REMEMBERED = 4096  # decisions told, that are not told again


class Gate:
    """Answers for the file systems it watches. `tell` is given each decision."""

    def __init__(
        self, policy: Policy, audit: bool, tell: Callable[[Decision], None], patience: float = PATIENCE
    ) -> None:
        self.policy, self.audit, self.tell, self.patience = policy, audit, tell, patience
        self.kinds = DEFAULT | policy.kinds
        self.notify = Fanotify()
        self._workers = ThreadPoolExecutor(4, "judge")  # our own files may be on what we watch: never in the reader
        self._told: dict[tuple[int, int, int, int], bool] = {}
        self._lock = threading.Lock()

    def watch(self, path: str) -> None:
        """Watch the file system of `path`. Raises OSError."""
        self.notify.watch(path)

    def serve(self, going: Callable[[], bool] = lambda: True) -> None:
        """Answer until `going` says no, looked at after each batch."""
        while going():
            if not select.select([self.notify.fd], [], [], _PAUSE)[0]:
                continue
            for event in self.notify.events():
                try:
                    waits = self._concerns(event)
                except Exception:  # whatever it is, nobody else's files wait for us
                    waits = False
                if not waits:
                    self.notify.answer(event, True)
                    continue
                # with a descriptor of its own: the event's is closed when the answer is late
                future = self._workers.submit(self._judged, os.dup(event.fd), event.tid)
                timer = threading.Timer(self.patience, self._late, (event, future))
                timer.daemon = True
                future.add_done_callback(partial(self._done, event, timer))
                timer.start()

    def _concerns(self, event: Event) -> bool:
        """Is this a module that is about to be loaded? Runs in the reader: opens nothing but /proc."""
        if os.path.exists(f"/proc/self/task/{event.tid}"):
            return False
        info = os.fstat(event.fd)
        if not stat.S_ISREG(info.st_mode):
            return False
        head = os.pread(event.fd, _HEAD, 0)
        if not (looks_like_module(head) or compression(head)):
            self.notify.ignore(event.fd)
            return False
        return in_finit_module(event.tid) or is_loader(event.tid)

    def _judged(self, fd: int, tid: int) -> bool:
        """Let it in? Closes `fd`."""
        before = time.monotonic_ns()
        try:
            info = os.fstat(fd)
            raw = _contents(fd, info.st_size)
        finally:
            os.close(fd)
        doubt, data = "", raw
        try:
            if compression(raw[:_HEAD]):
                data = expand(raw, LIMIT)
            if not looks_like_module(data[:_HEAD]):
                return True  # the kernel will not take it either
            found = scan(data, self.kinds)
            verdict = judge(found, self.policy, data)
        except (ImageError, MemoryError) as error:
            found, verdict, doubt = None, None, str(error) or "not enough memory"
        refuse = verdict is None or verdict.verdict == "refuse"
        key = (tid, info.st_dev, info.st_ino, info.st_ctime_ns)
        with self._lock:
            told = self._told.get(key) is not None
            if len(self._told) >= _REMEMBERED:
                self._told.clear()
            self._told[key] = refuse
        if not told:
            self.tell(
                from_scan(
                    data, found, verdict, doubt, self.policy, tid,
                    refused=refuse and not self.audit, nanoseconds=time.monotonic_ns() - before,
                )
            )  # fmt: skip
        return not refuse or self.audit

    def _done(self, event: Event, timer: threading.Timer, future: Future[bool]) -> None:
        timer.cancel()
        with self._lock:
            if future.cancelled() or getattr(future, "answered", False):
                return
            future.answered = True  # type: ignore[attr-defined]
        allow = self.audit if future.exception() else future.result()
        self.notify.answer(event, allow)

    def _late(self, event: Event, future: Future[bool]) -> None:
        """Not judged in time: refused. The worker goes on with a file of its own."""
        with self._lock:
            if getattr(future, "answered", False):
                return
            future.answered = True  # type: ignore[attr-defined]
        self.notify.answer(event, self.audit)


def looks_like_module(head: bytes) -> bool:
    """Is this the beginning of an ELF file that could be linked into this kernel?"""
    return head[:5] == b"\x7fELF\x02" and head[16:20] == _MODULE


def in_finit_module(tid: int) -> bool:
    """Is a thread, which waits for us, inside finit_module(2)?"""
    try:
        with open(f"/proc/{tid}/syscall") as file:
            return file.read().partition(" ")[0] in _FINIT_MODULE
    except OSError:
        return True  # a kernel without it: any reader of a module may be loading it


def is_loader(tid: int) -> bool:
    """Is it one of the programs that load modules? By its name, or its file's."""
    try:
        with open(f"/proc/{tid}/comm") as file:
            comm = file.read().strip()
        exe = os.path.basename(os.readlink(f"/proc/{tid}/exe"))
    except OSError:
        return False
    if exe == "kmod" and comm in {"modinfo", "depmod", "lsmod", "rmmod"}:
        return False  # they only look
    return comm in _LOADERS or exe in _LOADERS


def _contents(fd: int, size: int) -> bytes:
    """The whole file; what is beyond the limit is left out, and then it does not hold together."""
    parts, at = [], 0
    while at < min(size, LIMIT) and (part := os.pread(fd, min(size, LIMIT) - at, at)):
        parts.append(part)
        at += len(part)
    return b"".join(parts)
