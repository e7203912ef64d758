"""What the gate needs of the running kernel, and the canary that proves it got it.

Every check raises Missing with one line that says what to do. The order is that of the remedies: what can be told
without trying comes first. What the lists say is not enough: programs on LSM hooks load and attach without an
error on a kernel whose `lsm=` lacks bpf, and are never called. So a module that only the gate knows is loaded after
attaching: the gate refuses it with an errno of its own, a kernel without a live gate finds it malformed.
"""

from __future__ import annotations

import ctypes
import errno
import os

from splitlock._errors import SplitlockError

BPFFS = "/sys/fs/bpf"
BTF = "/sys/kernel/btf/vmlinux"
SECURITY = "/sys/kernel/security"
_INIT_MODULE = 175  # x86-64 system call
_BPF_MAGIC = 0xCAFE4A11  # linux/magic.h, BPF_FS_MAGIC


class Missing(SplitlockError):
    """The kernel cannot have the gate. `str()` says why and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message, 2)


def check_root(what: str) -> None:
    """Loading BPF programs, marking file systems and reading the gate's maps are root's."""
    if os.geteuid() != 0:
        raise SplitlockError(f"guard {what}: needs root; run it with sudo", 2)


def check() -> None:
    """Can this kernel have the gate, as far as it tells? Raises Missing."""
    if not os.path.exists(BTF):
        raise Missing(
            f"{BTF} is not there: a kernel with CONFIG_DEBUG_INFO_BTF=y is needed (Debian's and Ubuntu's are)"
        )
    if lockdown() == "confidentiality":
        raise Missing(
            "lockdown=confidentiality forbids BPF programs that read kernel memory; boot with lockdown=integrity"
        )
    active = lsm()
    if active is not None and "bpf" not in active:
        wanted = ",".join([*active, "bpf"])
        raise Missing(f"bpf is not among the active security modules; boot with lsm={wanted}")


def lsm() -> list[str] | None:
    """The active security modules, None where the kernel does not tell (securityfs is not mounted)."""
    text = _security("lsm")
    return text.split(",") if text else None


def lockdown() -> str:
    """none, integrity or confidentiality; empty where the kernel does not tell."""
    text = _security("lockdown")
    return text.partition("[")[2].partition("]")[0]


def _security(name: str) -> str:
    try:
        with open(f"{SECURITY}/{name}") as file:
            return file.read().strip()
    except OSError:
        return ""


def mount_bpffs() -> None:
    """Mount the BPF file system where it is not: pins live there. Raises Missing."""
    libc = ctypes.CDLL(None, use_errno=True)
    if _type_of(libc, BPFFS) == _BPF_MAGIC:
        return
    os.makedirs(BPFFS, exist_ok=True)
    if libc.mount(b"bpf", BPFFS.encode(), b"bpf", 0, b"mode=700"):
        why = os.strerror(ctypes.get_errno())
        raise Missing(
            f"{BPFFS}: the BPF file system cannot be mounted: {why}; a kernel with CONFIG_BPF_SYSCALL=y has it"
        )


def _type_of(libc: ctypes.CDLL, path: str) -> int | None:
    raw = (ctypes.c_uint64 * 64)()  # struct statfs begins with f_type
    return raw[0] if libc.statfs(path.encode(), raw) == 0 else None


def canary(contents: bytes) -> int:
    """Offer the kernel the canary as a module (init_module, from memory); the errno it is refused with."""
    libc = ctypes.CDLL(None, use_errno=True)
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(_INIT_MODULE), contents, ctypes.c_ulong(len(contents)), b"")
    return ctypes.get_errno() if result else 0


def why_dead(number: int) -> str:
    """Why no live gate answered the canary with its own errno, from what the kernel said instead."""
    if number == errno.ENOSYS:
        return "this kernel loads no modules (CONFIG_MODULES=n), there is nothing to guard"
    if number == errno.EPERM:
        return "loading modules is forbidden here (kernel.modules_disabled=1, or a container)"
    if number == errno.ENOEXEC:
        active = ",".join(lsm() or ["..."])
        return f"the kernel never called it; is bpf among the active security modules? boot with lsm={active},bpf"
    return f"another security module came first ({os.strerror(number)})"
