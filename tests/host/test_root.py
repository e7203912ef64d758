"""Nothing below --root leads out of it or blocks: links, `..`, FIFOs, devices, races. The oracle is chroot(2)."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import random
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from splitlock._errors import SplitlockError
from splitlock.host import tasks
from splitlock.host.root import Root
from splitlock.image.package import Failure, files
from splitlock.linux import below

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="chroot and mknod take root")


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Fail, rather than wait for ever."""

    def late(*_: object) -> None:
        raise AssertionError(f"it took more than {seconds} s: it waits for something")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A root, and beside it what nothing in it may reach."""
    (tmp_path / "secret").write_text("outside")
    (tmp_path / "root" / "etc").mkdir(parents=True)
    (tmp_path / "root" / "etc" / "hostname").write_text("inside")
    return tmp_path / "root"


@pytest.mark.parametrize("length", [1, 39, 40, 41, 42, 80])
def test_a_chain_of_links_ends_inside_or_not_at_all(tree: Path, length: int) -> None:
    """The kernel follows 40 (MAXSYMLINKS): the 41st is ELOOP, whatever it leads to."""
    for number in range(1, length):
        (tree / f"l{number}").symlink_to(f"l{number + 1}")
    (tree / f"l{length}").symlink_to(tree.parent / "secret")
    assert Root(str(tree)).text("l1") is None
    (tree / f"l{length}").unlink()
    (tree / f"l{length}").symlink_to("/etc/hostname")
    assert Root(str(tree)).text("l1") == ("inside" if length <= 40 else None)


def test_links_and_dots(tree: Path) -> None:
    root = Root(str(tree))
    for name, target in (
        ("absolute", "/etc"), ("up", "../../../../../etc"), ("upper", "/../../etc/./../etc"), ("loop", "loop"),
        ("out", str(tree.parent)), ("proc", "/proc/self/root"), ("chained", "absolute/../up"),
    ):  # fmt: skip
        (tree / name).symlink_to(target)
    for name in ("absolute", "up", "upper", "chained", "../../etc", "./etc/../../etc", "/etc", "//etc"):
        assert root.text(f"{name}/hostname") == "inside", name
    for name in ("loop", "out/secret", "proc/etc/hostname", "../secret", "etc/hostname/..", ""):
        assert root.text(name) is None, name
    assert root.names("..") == root.names("/") == sorted(os.listdir(tree))


def test_magic_links_are_refused(tree: Path) -> None:
    """Links of /proc that lead anywhere: to open files, to other roots. Below a root they are no way out."""
    with open(tree.parent / "secret", "rb") as secret:
        proc = Root("/proc")
        number = secret.fileno()
        for name in (f"self/fd/{number}", "self/root/etc/hostname", "self/exe", "self/cwd/pyproject.toml"):
            assert Path("/proc", name).exists()
            assert proc.text(name) is None, name
        assert str(tree.parent / "secret") in list(proc.links("self/fd"))  # read, not followed


def _special(tree: Path) -> list[str]:
    os.mkfifo(tree / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        before = os.getcwd()
        os.chdir(tree)  # an address has 108 bytes
        server.bind("socket")
        os.chdir(before)
    (tree / "link").symlink_to("fifo")
    names = ["fifo", "socket", "link", "etc"]
    if os.geteuid() == 0:
        os.mknod(tree / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
        os.mknod(tree / "tty", stat.S_IFCHR | 0o666, os.makedev(5, 0))
        os.mknod(tree / "disk", stat.S_IFBLK | 0o666, os.makedev(7, 0))
        os.mknod(tree / "watchdog", stat.S_IFCHR | 0o666, os.makedev(10, 130))
        names += ["zero", "tty", "disk", "watchdog"]
    return names


def test_what_is_no_file_is_not_opened(tree: Path) -> None:
    names = _special(tree)
    root = Root(str(tree))
    with at_most(10):
        for name in names:
            assert root.text(name) is None
            with pytest.raises(OSError, match="not a regular file"):
                root.open(name)
            assert root.exists(name)
            assert root.names(name) == ([] if name != "etc" else ["hostname"])
        assert root.files("/") == ["//etc/hostname"]
        told = {item.path: item for item in files(["/"], str(tree))}
    assert list(told) == ["/etc/hostname"]


@pytest.mark.parametrize("verb", ["status", "advise"])
def test_the_commands_do_not_wait(tree: Path, verb: str) -> None:
    """A FIFO wherever they look for a file, or a device: they say what they can, and end."""
    for name in (
        "proc/cpuinfo", "proc/cmdline", "proc/modules", "proc/sys/kernel/osrelease", "var/log/dmesg", "var/log/syslog",
        "etc/default/grub", "etc/sysctl.conf", "lib/modules/6.1.0/kernel/kvm.ko", "var/log/journal/x/system.journal",
        "proc/1/status", "proc/1/comm",
    ):  # fmt: skip
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(path)
    words = [sys.executable, "-m", "splitlock", verb, "--root", str(tree), "--format", "json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (0, 1, 2), done.stderr
    assert done.stderr.count("\n") <= 1
    assert "Traceback" not in done.stderr


def test_a_huge_file_is_refused(tree: Path) -> None:
    with open(tree / "etc" / "sparse", "wb") as file:
        file.truncate(1 << 40)
    with at_most(20), pytest.raises(SplitlockError, match="etc/sparse: larger than 64 MiB"):
        Root(str(tree)).text("etc/sparse")


def test_a_directory_that_is_swapped_meanwhile(tree: Path) -> None:
    """Another process swaps a directory for a link to the outside, again and again: what is read is the inside's."""
    (tree / "a").mkdir()
    (tree / "a" / "secret").write_text("inside")
    (tree / "trap").symlink_to(tree.parent)
    swap = (
        "import ctypes, sys\n"
        "libc = ctypes.CDLL(None)\n"
        "print(flush=True)\n"
        "while True: libc.renameat2(-100, b'a', -100, b'trap', 2)\n"  # RENAME_EXCHANGE
    )
    root = Root(str(tree))
    with subprocess.Popen([sys.executable, "-c", swap], cwd=tree, stdout=subprocess.PIPE) as other:
        assert other.stdout
        other.stdout.readline()
        try:
            seen = {root.text("a/secret") for _ in range(3000)}
            walked = {
                item.path for _ in range(200) for item in files(["/"], str(tree)) if not isinstance(item, Failure)
            }
        finally:
            other.kill()
    assert seen <= {"inside", None}
    assert "inside" in seen
    assert walked <= {"/a/secret", "/trap/secret", "/etc/hostname"}


@needs_root
def test_generated_trees_as_chroot_has_them(tmp_path: Path) -> None:
    """Links at random between directories and files, absolute, relative, with `..`: each name is what chroot says."""
    rolled = random.Random(23)
    right = 0
    for number in range(25):
        top = tmp_path / str(number)
        directories = ["."]
        top.mkdir()
        names: list[str] = []
        for each in range(40):
            inside = rolled.choice(directories)
            name = f"{inside}/{rolled.choice('abcd')}{each}"
            kind = rolled.random()
            if kind < 0.3:
                (top / name).mkdir()
                directories.append(name)
            elif kind < 0.5:
                (top / name).write_text(name)
            else:
                (top / name).symlink_to(_target(rolled, [*directories, *names], top))
            names.append(name)
        asked = [*names, *(f"{a}/../{b}" for a, b in zip(names, reversed(names), strict=True))]
        asked += [f"{a}/{b.rpartition('/')[2]}" for a in names for b in rolled.sample(names, 3)]
        root = Root(str(top))
        expected = _in_chroot(top, asked)
        for name, answer in zip(asked, expected, strict=True):
            assert _ours(root, name) == answer, name
        right += sum(isinstance(answer, list) for answer in expected)
    assert right > 500  # many are there at all


def _target(rolled: random.Random, names: list[str], top: Path) -> str:
    name = rolled.choice(names).removeprefix("./")
    up = "../" * rolled.randrange(6)
    return rolled.choice([f"/{name}", f"{up}{name}", f"{up}../{name}", f"/..{up}/{name}", str(top / name), "/"])


def _in_chroot(top: Path, names: list[str]) -> list[list[int] | int]:
    """Device, inode and type of each name, or why not, as the kernel tells a process whose / that is."""
    code = (
        "import json, os, sys\n"
        "names = json.load(sys.stdin)\n"
        "os.chroot(sys.argv[1]); os.chdir('/')\n"
        "def look(name):\n"
        "    try: found = os.stat('/' + name)\n"
        "    except OSError as error: return error.errno\n"
        "    return [found.st_dev, found.st_ino, found.st_mode]\n"
        "print(json.dumps([look(name) for name in names]))\n"
    )
    words = [sys.executable, "-c", code, str(top)]
    answers: list[list[int] | int] = json.loads(subprocess.check_output(words, input=json.dumps(names).encode()))
    return answers


def _ours(root: Root, name: str) -> list[int] | int:
    try:
        held = below.handle(root.below, f"/{name}")
    except OSError as error:
        return error.errno or 0
    found = os.fstat(held)
    os.close(held)
    return [found.st_dev, found.st_ino, found.st_mode]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
def test_without_openat2_it_refuses(tree: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A stand-in for a kernel before 5.6, or a container's filter: the system call fails."""

    class Libc:
        @staticmethod
        def syscall(*_: object) -> int:
            return -1

    monkeypatch.setattr(below, "_libc", Libc)
    monkeypatch.setattr(ctypes, "get_errno", lambda: number)
    with pytest.raises(SplitlockError, match=r"--root .*: openat2 is not to be had here .*5\.6"):
        Root(str(tree))
    assert Root("/").exists("proc/self")  # this machine's own files need none


def test_this_machine() -> None:
    root = Root("/")
    assert root.text("proc/sys/kernel/osrelease") == os.uname().release + "\n"
    found = tasks.process(os.getpid())
    assert found is not None
    assert found.pid == os.getpid()


def test_an_opened_file_is_that_very_file(tree: Path) -> None:
    """For programs that open by paths, journalctl above all: its name may lead out by then."""
    held = Root(str(tree)).handle("etc/hostname")
    (tree / "etc" / "hostname").unlink()
    (tree / "etc" / "hostname").symlink_to(tree.parent / "secret")
    path = below.path(held)
    assert subprocess.check_output(["cat", path], text=True) == Path(path).read_text() == "inside"
    os.close(held)
