"""Which virtual machines run: ps(1) in all its formats, containers, hidden processes; `none` only of a whole list."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from splitlock.host.root import Root
from splitlock.host.vmms import vmms

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="name spaces and other users take root")
needs_kthreadd = pytest.mark.skipif(
    not Path("/proc/2/comm").exists() or Path("/proc/2/comm").read_text() != "kthreadd\n",
    reason="this is a container: process 2 is not kthreadd",
)
FORMATS = ["aux", "auxwww", "auxwwwm", "axf", "auxf", "-ef", "-ely", "alxwww", "-eF", "-ejH", "axo user,pid,stat,args"]
STATUS = [sys.executable, "-m", "splitlock", "status", "--no-scan", "--format", "json"]


@pytest.fixture
def machine() -> Iterator[int]:
    """A process that calls itself QEMU, below another."""
    code = "import sys, time; print(flush=True); time.sleep(60)"
    inner = ["qemu-kvm", "-c", code, "-name", "guest=web1,x=y"]
    with subprocess.Popen(inner, executable=sys.executable, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"\n"
        yield process.pid
        process.kill()


@needs_kthreadd
@pytest.mark.parametrize("how", FORMATS)
@pytest.mark.parametrize("name", ["ps", "sos_commands/process/ps_auxwww"])
def test_formats_of_ps(tmp_path: Path, machine: int, how: str, name: str) -> None:
    """The list is the whole machine's, and the machine is in it."""
    wide = {**os.environ, "COLUMNS": "1000"}
    listed = subprocess.run(["ps", *how.split(" ")], capture_output=True, check=True, env=wide).stdout
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(listed)
    found = vmms(Root(str(tmp_path)))
    if how not in ("-ely", "-ejH"):  # these give names alone
        assert (machine, "QEMU", "web1") in [(one.pid, one.name, one.vm) for one in found.vmms or []]
    assert found.why == ""
    without = b"".join(line for line in listed.splitlines(True) if b"kthreadd" not in line and b"qemu" not in line)
    (tmp_path / name).write_bytes(without)
    found = vmms(Root(str(tmp_path)))
    assert found.vmms is None
    assert "not all processes can be seen" in found.why


def tree(root: Path, pid: int, comm: str, links: tuple[str, ...] = ()) -> Path:
    place = root / "proc" / str(pid)
    (place / "fd").mkdir(parents=True)
    (place / "status").write_text(f"Tgid:\t{pid}\n")
    (place / "comm").write_text(f"{comm}\n")
    (place / "cmdline").write_bytes(b"")
    (place / "cgroup").write_text("0::/\n")
    for number, link in enumerate(links):
        (place / "fd" / str(number)).symlink_to(link)
    return root


def test_none_is_said_of_a_whole_list_only(tmp_path: Path) -> None:
    assert vmms(Root(str(tmp_path))) == (None, "no list of processes is there")
    tree(tmp_path, 1, "systemd")
    assert vmms(Root(str(tmp_path))).vmms is None
    tree(tmp_path, 2, "kthreadd")
    assert vmms(Root(str(tmp_path))) == ([], "")
    (tmp_path / "proc/300").mkdir()  # hidepid=1: there, and nothing in it can be read
    assert vmms(Root(str(tmp_path))).vmms is None
    tree(tmp_path, 400, "my-vmm", ("/dev/null", "anon_inode:kvm-vcpu:0"))
    found = vmms(Root(str(tmp_path)))
    assert [one.pid for one in found.vmms or []] == [400]
    assert found.why


def test_who_is_process_2_in_a_container(tmp_path: Path) -> None:
    tree(tree(tmp_path, 1, "sh"), 2, "sleep")
    assert vmms(Root(str(tmp_path))).vmms is None


@pytest.mark.parametrize("comm", ["lkvm", "lkvm-static", "stratovirt", "qemu-kvm", "crosvm", "bochs"])
def test_names(tmp_path: Path, comm: str) -> None:
    found = vmms(Root(str(tree(tmp_path, 10, comm))))
    assert [one.pid for one in found.vmms or []] == [10]


@needs_root
@needs_kthreadd
def test_here() -> None:
    """As root, as somebody else, and in a name space of its own."""
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    for prefix in ([], nobody, ["unshare", "--pid", "--fork", "--mount-proc"]):
        if prefix and shutil.which(prefix[0]) is None:
            pytest.skip(f"{prefix[0]} is not there")
        done = subprocess.run([*prefix, *STATUS], capture_output=True, text=True, check=False, cwd="/")
        found = json.loads(done.stdout)
        assert bool(found["vmms_why"]) == bool(prefix), (prefix, found["vmms"])
        assert found["vmms"] != [] or not prefix
