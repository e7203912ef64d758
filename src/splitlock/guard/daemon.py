"""The fanotify gate as a process of its own: started, and told that it is up."""

from __future__ import annotations

import importlib
import os
import signal
import threading

from splitlock._errors import SplitlockError
from splitlock.guard import state, status
from splitlock.guard.kernel import Missing
from splitlock.guard.log import LogFile
from splitlock.guard.mitigate import disable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from splitlock.guard.state import State
    from splitlock.modules.policy import Policy
    from splitlock.report.guard import Decision

# file systems that hold no files of their own, or not on this machine
_PASSED = {
    "proc", "sysfs", "devtmpfs", "devpts", "cgroup", "cgroup2", "bpf", "securityfs", "debugfs", "tracefs", "pstore",
    "mqueue", "hugetlbfs", "configfs", "fusectl", "autofs", "binfmt_misc", "efivarfs", "rpc_pipefs", "nsfs",
    "selinuxfs", "nfs", "nfs4", "cifs", "fuse", "ramfs",
}  # fmt: skip


def file_systems() -> list[str]:
    """A mount point of each file system that can hold modules: all local ones."""
    found: dict[str, str] = {}
    with open("/proc/self/mountinfo") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            fields = before.split()
            kind = after.split()[0]
            if kind not in _PASSED and not kind.startswith("fuse."):
                found.setdefault(fields[2], fields[4].encode().decode("unicode_escape"))
    return sorted(found.values())


def start(made: State, policy: Policy, on: list[str]) -> None:
    """Start it; it is up when this returns. Raises SplitlockError. `made` is saved, with its number, when it is up."""
    made.watched = [os.path.abspath(path) for path in on] or file_systems()
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            said = pipe.read()
        os.waitpid(child, 0)
        if said != b"up":
            raise SplitlockError(said.decode("utf-8", "replace") or "guard start: the fanotify gate died", 2)
        return
    os.close(reading)
    os.setsid()
    if os.fork():
        os._exit(0)
    try:
        _run(made, policy, writing)
    except BaseException as error:
        try:
            os.write(writing, str(error or type(error).__name__).encode())
        except OSError:
            pass
    finally:
        os._exit(1)


def _run(made: State, policy: Policy, ready: int) -> NoReturn:
    """The daemon's life."""
    from splitlock.guard import fallback

    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    os.closerange(3, ready)  # the gate's lock among them, which would be held as long as we live
    os.closerange(ready + 1, os.sysconf("SC_OPEN_MAX"))
    os.chdir("/")
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    log = LogFile(made.log)

    def tell(decision: Decision) -> None:
        if decision.verdict == "disable" and not made.audit:
            disable(decision)
        log.append(decision.to_json())

    try:
        gate = fallback.Gate(policy, made.audit, tell)
    except OSError as error:
        raise Missing(
            f"fanotify: {error.strerror}; a kernel with CONFIG_FANOTIFY_ACCESS_PERMISSIONS is needed"
        ) from None
    _preload()
    # It answers before anything is watched: from then on whatever we open ourselves may be a question to us.
    reader = threading.Thread(target=gate.serve, daemon=True)
    reader.start()
    watched = []
    for path in made.watched:
        try:
            gate.watch(path)
            watched.append(path)
        except OSError as error:
            if len(made.watched) == 1:
                raise Missing(f"--on {path}: {error.strerror}; it cannot be watched with fanotify") from None
    if not watched:
        raise Missing("no file system here can be watched with fanotify")
    made.watched, made.pid = watched, os.getpid()
    made.pid_started = status.alive(made.pid)
    _spare()
    state.save(made)
    os.write(ready, b"up")
    os.close(ready)
    reader.join()
    os._exit(1)


def _preload() -> None:
    """Load what is otherwise loaded when it is needed.

    The interpreter keeps its lock while a library is opened, and nobody could answer the question that this asks.
    """
    for name in ("zstandard", "lz4.block", "splitlock.image.functions", "splitlock.modules.sweep"):
        try:
            importlib.import_module(name)
        except ImportError:
            pass


def _spare() -> None:
    """When memory is short, others go first: without us everything is let in."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("-1000")
    except OSError:
        pass
