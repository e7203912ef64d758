"""Whose task is it? Command line, container, virtual machine; by what /proc says of it now."""

from __future__ import annotations

import os
import re
import time
from itertools import pairwise

from splitlock.host.root import Root
from splitlock.linux.sentences import COMM
from splitlock.linux.text import number
from splitlock.report.watch import Process

# Containers: as runtimes name their control groups (systemd scopes, cgroupfs, LXC); the kernel gives the path.
_CONTAINER = re.compile(
    r"(?:docker|libpod|cri-containerd|crio|containerd)[-/]([0-9a-f]{12,64})|/([0-9a-f]{64})(?:\.scope)?(?:/|$)"
    r"|lxc\.payload\.([^/]+)|/lxc/([^/]+)|machine\.slice/(?:machine-|systemd-nspawn@)([^/]+?)\.(?:scope|service)"
)
_MACHINE = re.compile(r"machine-(qemu|lxc|ch)\\x2d\d{1,9}\\x2d([^/]{1,255})\.scope")
#: Names of threads in which a virtual processor runs: QEMU's with libvirt or Proxmox, VirtualBox's, VMware's, crosvm's.
_VCPU_THREADS = (
    (re.compile(r"CPU \d+/(KVM|TCG|HVF)$"), "QEMU"), (re.compile(r"EMT(-\d{1,9})?$"), "VirtualBox"),
    (re.compile(r"vmx-vcpu-\d+$"), "VMware"), (re.compile(r"crosvm_vcpu\d+$"), "crosvm"),
    (re.compile(r"fc_vcpu ?\d+$"), "Firecracker"), (re.compile(r"vcpu\d+$"), "cloud-hypervisor"),
)  # fmt: skip
#: Programs that run virtual machines, by the start of their names, cut as the kernel's are.
_PROGRAMS = (
    ("qemu-system", "QEMU"), ("qemu-kvm", "QEMU"), ("kvm", "QEMU"), ("VBoxHeadless", "VirtualBox"),
    ("VirtualBoxVM", "VirtualBox"), ("VBoxSDL", "VirtualBox"), ("vmware-vmx", "VMware"), ("firecracker", "Firecracker"),
    ("cloud-hypervis", "cloud-hypervisor"), ("crosvm", "crosvm"), ("acrn-dm", "ACRN"), ("bochs", "Bochs"),
    ("lkvm", "kvmtool"), ("stratovirt", "StratoVirt"),
)  # fmt: skip


HERE = Root("/")
_INITIAL = 0xEFFFFFFC  # PROC_PID_INIT_INO: the inode of the first PID namespace
_DRIFT = 2  # seconds that the log's clock may be off by


def vcpu_thread(comm: str) -> bool:
    """Is it, by its name, a thread that does nothing but run a virtual processor?"""
    return any(pattern.match(comm) for pattern, _ in _VCPU_THREADS)


def vmm_by_name(comm: str) -> str | None:
    """What runs virtual machines, by a task's name; None: nothing that is known."""
    for pattern, name in _VCPU_THREADS:
        if pattern.match(comm):
            return name
    return next(
        (name for start, name in _PROGRAMS if comm.startswith(start) and (start != "kvm" or comm == "kvm")), None
    )


def name(tid: int, root: Root = HERE) -> str | None:
    """What a task is called now; None when it is gone."""
    try:
        return _read(root, f"proc/{tid}/comm").rstrip("\n")
    except OSError:
        return None


def numbered_apart() -> bool:
    """Has this container task numbers of its own? The kernel's log has the host's (include/linux/proc_ns.h)."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino != _INITIAL
    except OSError:
        return False


def known_as(process: Process) -> set[str]:
    """What else a process is, or its threads are called, cut as the kernel cuts names."""
    names = {name(int(tid)) or "" for tid in HERE.names(f"proc/{process.pid}/task")}
    try:
        names.add(os.path.basename(os.readlink(f"/proc/{process.pid}/exe")))
    except OSError:
        pass
    names |= {re.split(r"[/\\]", word)[-1] for word in process.command[:1]}
    return {each.encode()[:COMM].decode("utf-8", "replace") for each in names} - {""}


def began_after(tid: int, seconds: float) -> bool | None:
    """Did a task begin after a line of the kernel's log was written? None: that cannot be told.

    `seconds`: the line's time stamp, which stands still while the machine sleeps; a task's beginning does not
    (proc_pid_stat(5), field 22), so between the two there may be as much as it slept.
    """
    try:
        ticks = int(_read(HERE, f"proc/{tid}/stat").rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
    began = ticks / os.sysconf("SC_CLK_TCK")
    slept = time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
    if began - slept > seconds + _DRIFT:
        return True
    return False if began <= seconds else None


def process(tid: int, root: Root = HERE) -> Process | None:
    """The process of a task; None when it is gone."""
    try:
        status = _read(root, f"proc/{tid}/status")
        comm = _read(root, f"proc/{tid}/comm").rstrip("\n")
        pid = number(next(line for line in status.splitlines() if line.startswith("Tgid:")).split()[1])
        command = _read(root, f"proc/{pid}/cmdline").rstrip("\0").split("\0")
        groups = _read(root, f"proc/{tid}/cgroup")
    except (OSError, StopIteration, IndexError):
        return None
    if pid is None:
        return None
    vmm = _vmm(pid, command, comm, root)
    return Process(
        pid=pid,
        command=command if command != [""] else [],
        container=container(groups),
        vm=vm_name(command, groups, vmm),
        vmm=vmm,
    )


def descriptors_hidden(pid: int, root: Root) -> bool:
    """Are the files that a process has open not ours to see? Who holds a KVM virtual processor is known by these."""
    try:
        next(root.links(f"proc/{pid}/fd"), None)
    except PermissionError:
        return True
    except OSError:
        pass
    return False


def container(groups: str) -> str | None:
    """The container that a /proc/PID/cgroup names: an id's first 12 digits, or a name."""
    found = _CONTAINER.search(groups)
    name = next((group for group in found.groups() if group), None) if found else None
    if name is None or "machine-qemu" in groups:
        return None
    return name[:12] if re.fullmatch(r"[0-9a-f]{64}", name) else _unescaped(name)


def vm_name(command: list[str], groups: str, vmm: str | None) -> str | None:
    """The virtual machine's name: QEMU's -name, VirtualBox's --startvm or --comment, or systemd-machined's."""
    for option, value in pairwise(command):
        if vmm == "QEMU" and option in ("-name", "--name"):
            words = value.split(",")
            return next((word[6:] for word in words if word.startswith("guest=")), words[0])
        if vmm == "VirtualBox" and option == "--comment":
            return value
    if vmm == "Firecracker" and "--id" in command[:-1]:
        return command[command.index("--id") + 1]
    found = _MACHINE.search(groups)
    return _unescaped(found[2]) if found and found[1] != "lxc" else None


def _vmm(pid: int, command: list[str], comm: str, root: Root) -> str | None:
    program = os.path.basename(command[0]) if command else ""
    found = vmm_by_name(comm) or vmm_by_name(program)
    if found != "QEMU" and found is not None:
        return found
    try:
        if any("kvm-vcpu" in link for link in root.links(f"proc/{pid}/fd")):
            return found or program or "a VMM"
    except OSError:
        return found
    return found


def _unescaped(name: str) -> str:
    """A name as systemd escapes it in units: \\x2d for -."""
    return re.sub(r"\\x([0-9a-f]{2})", lambda match: chr(int(match[1], 16)), name)


def _read(root: Root, name: str) -> str:
    with root.open(name) as file:
        return file.read(1 << 20).decode("utf-8", "replace")
