"""CPython's whole test suite and every stress-ng stressor: under splitlock they end, and find, what they do alone.

The oracle is the run alone. What takes longer than its limit there is skipped, and named.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import COMMAND

pytestmark = pytest.mark.slow

PYTHON = "/usr/bin/python3.11"
UNDER_US = [*COMMAND, "run", "-q", "--"]

#: seconds that a module of CPython's may take alone; it gets twice as many under us
LIMIT = float(os.environ.get("SPLITLOCK_TEST_LIMIT", "300"))

#: what a module is run with: what it does not use by default, a terminal's database or the network within the machine;
#: and without what hangs alone, sockets to a virtual machine's host in a virtual machine
OPTIONS = {"test_curses": ["-ucurses"], "test_socketserver": ["-unetwork"], "test_socket": ["-i", "*VSOCK*"]}

OPERATIONS = 1000
STRESS_SECONDS = 3

#: how to have less of what a stressor does: what stays shows as much, and leaves the machine to others
MILDER = {
    "clone": ["--clone-max", "16"],
    "bigheap": ["--oomable"],
    "brk": ["--oomable"],
    "daemon": ["--daemon-ops", "50"],
    "dirdeep": ["--dirdeep-inodes", "1000"],
    "fallocate": ["--fallocate-bytes", "16m"],
    "hdd": ["--hdd-bytes", "16m"],
    "iomix": ["--iomix-bytes", "16m"],
    "pthread": ["--pthread-max", "64"],
    "readahead": ["--readahead-bytes", "16m"],
    "revio": ["--revio-bytes", "16m"],
    "vforkmany": ["--vforkmany-ops", "10"],
    "zombie": ["--zombie-max", "16"],
    # these two make split locks on purpose, unless told otherwise
    "lockbus": ["--lockbus-nosplit"],
    "misaligned": ["--misaligned-method", "int64rd"],
}

#: what is not run, on no machine that somebody else may be using
LEFT_OUT = {
    reason: names.split()
    for reason, names in {
        "it executes random bytes, which may be split locks": "opcode",
        "it takes the machine's memory or processes until none are left": (
            "dev-shm forkheavy mlockmany oom-pipe resources tmpfs"
        ),
        "it stops, or halts, the machine or a part of it": (
            "bad-ioctl cpu-online klog reboot smi softlockup sysinval watchdog"
        ),
        "it changes what belongs to the machine: devices, mounts, the network, the clock": (
            "bind-mount binderfs dev ioport kvm loop memhotplug netdev netlink-proc netlink-task pci physpage "
            "ramfs rawdev rtc swap sysfs tun umount uprobe"
        ),
    }.items()
}


@dataclass(frozen=True)
class Verdict:
    """How a run ended, and what it says that it found; `None` instead of one: it took too long."""

    status: int
    found: tuple[str, ...]
    said: str = field(compare=False, repr=False)


def _verdict(words: list[str], find: Callable[[str], list[str]], limit: float, **more: object) -> Verdict | None:
    """Run `words` in a session of its own; `find` picks what it found from what it says."""
    with tempfile.TemporaryFile("w+", errors="replace") as output:  # a pipe would be kept by whoever is left behind
        process = subprocess.Popen(  # type: ignore[call-overload]
            words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, **more
        )
        try:
            status = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return None
        output.seek(0)
        said = output.read()
    return Verdict(status if status >= 0 else 128 - status, tuple(find(said)), said)


def _compare(command: list[str], run: Callable[[list[str], float], Verdict | None], limit: float) -> Verdict:
    """Fail where runs under us end as none alone does, twice in four; once is noise, and a warning. Gives one alone."""
    alone = run(command, limit)
    if alone is None:
        pytest.skip(f"takes longer than {limit:g} s alone")
    ours = run([*UNDER_US, *command], 2 * limit)
    if ours != alone:
        others = [alone, *(run(command, 2 * limit) for _ in range(3))]
        again = [ours, *(run([*UNDER_US, *command], 2 * limit) for _ in range(3))]
        for strange in again:
            if strange not in others:
                print(strange.said[-20000:] if strange else "it took too long")
                assert again.count(strange) == 1, (strange, alone)
                warnings.warn(f"once: {strange}, alone: {alone}", stacklevel=2)
    return alone


def _listed(*command: str) -> list[str]:
    """The words that a command prints; none where it is not installed."""
    if shutil.which(command[0]) is None:
        return []
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout.split()


def _stressors() -> list[str]:
    left_out = {name for names in LEFT_OUT.values() for name in names}
    return [name for name in _listed("stress-ng", "--stressors") if name not in left_out]


def _tests(said: str) -> list[str]:
    """How many tests ran, how many were skipped, and which failed; not how long it took."""
    what = r"^Ran \d+ tests?(?= in )|^(?:OK|FAILED)(?: \(.*\))?$|^(?:FAIL|ERROR): .*$|^\d+ passed and \d+ failed"
    return sorted(re.findall(what, said, re.M))


@pytest.mark.parametrize("module", _listed(PYTHON, "-m", "test", "--list-tests"))
def test_cpythons_own_tests(environment: dict[str, str], tmp_path: Path, module: str) -> None:
    """The same tests run, are skipped and fail; in most modules none fails."""
    env = {"TERM": "xterm", **environment, "TMPDIR": str(tmp_path)}

    def run(words: list[str], limit: float) -> Verdict | None:
        return _verdict(words, _tests, limit, cwd=tmp_path, env=env)

    alone = _compare([PYTHON, "-m", "test", "-v", module, *OPTIONS.get(module, [])], run, LIMIT)
    if not alone.found:
        reason = re.search(r"^\S+ skipped -- (.*)$", alone.said, re.M)
        pytest.skip(f"it runs no tests alone: {reason[1] if reason else alone.said[-200:]}")


#: what root needs before it: its rights are left behind, and what is harmful with them
WITHOUT_RIGHTS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]

#: these do nothing without rights, and no harm with them
WITH_RIGHTS = {"chroot", "fanotify", "rawsock", "seccomp", "userfaultfd"}

#: and these do nothing as root
AS_ANOTHER = {"exec": ["unshare", "--map-user=1000", "--map-group=1000"]}
AS_ANOTHER["spawn"] = AS_ANOTHER["exec"]


def _complaints(said: str) -> list[str]:
    """What failed, was warned of or is not supported: once each, without numbers of processes and addresses."""
    lines = re.findall(r"^stress-ng: (?:(?:fail|warn|error): |info: .*skipp).*$", said, re.M)
    return sorted({re.sub(r"0x[0-9a-f]+|\d+", "N", line) for line in lines})


@pytest.mark.parametrize("stressor", _stressors())
def test_stressors(environment: dict[str, str], stressor: str) -> None:
    """The same status, and no failure that it does not find alone too."""
    options = MILDER.get(stressor, [])
    command = ["stress-ng", f"--{stressor}", "1", "--verify", "--timeout", f"{STRESS_SECONDS}s"]
    if f"--{stressor}-ops" not in options:
        command += [f"--{stressor}-ops", str(OPERATIONS)]

    rights = [] if stressor in WITH_RIGHTS or os.geteuid() else AS_ANOTHER.get(stressor, WITHOUT_RIGHTS)
    # else glibc has registered the sequences already, and the stressor cannot
    env = {**environment, "GLIBC_TUNABLES": "glibc.pthread.rseq=0"} if stressor == "rseq" else environment
    with tempfile.TemporaryDirectory(prefix="stress-") as place:

        def run(words: list[str], limit: float) -> Verdict | None:
            return _verdict([*rights, *words], _complaints, limit, cwd=place, env=env)

        alone = _compare([*command, *options], run, 20 * STRESS_SECONDS)
    if skipped := [line for line in alone.said.splitlines() if "skipp" in line]:
        pytest.skip(f"it skips itself alone: {skipped[0]}")
    if "dispatching hogs" not in alone.said:
        pytest.skip(f"it does not run alone: {alone.said[-200:]}")
