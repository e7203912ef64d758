"""How is a file opened below a directory so that no name, link or race leads out of it, and nothing is waited for?

openat2(2) with RESOLVE_IN_ROOT (Linux 5.6): the kernel itself takes the directory for / while it follows links. What
is opened is looked at before it is opened to be read: a FIFO would block, a device may do something.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat

from splitlock._errors import SplitlockError

_OPENAT2 = 437  # the same number on every architecture
_NO_MAGICLINKS, _IN_ROOT = 0x02, 0x10  # include/uapi/linux/openat2.h: RESOLVE_*
_MINE = "/proc/self/fd"
_TRIES = 1000  # EAGAIN: something was renamed just then, and the kernel could not tell whether .. leads out

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _How(ctypes.Structure):
    """struct open_how."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def check(directory: str) -> None:
    """Raise SplitlockError where this kernel, or this container, cannot keep names below a directory."""
    try:
        os.close(handle(directory, "."))
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):
            raise SplitlockError(
                f"--root {directory}: openat2 is not to be had here ({error.strerror}), so links might lead out of it; "
                "Linux 5.6 or later has it, and a container's seccomp filter may forbid it",
                2,
            ) from None
        raise SplitlockError(f"--root {directory}: {error.strerror}; name a directory that can be read", 2) from None
    if not os.path.isdir(_MINE):
        raise SplitlockError(f"--root {directory}: /proc is not mounted here; mount it", 2)


def handle(directory: str, name: str, *, follow: bool = True) -> int:
    """A descriptor of what is named, to look at (O_PATH): nothing is opened by it. Raises OSError.

    `directory`: what the name's / is, and cannot be left; "": this process's own, and names relative to where it is.
    `follow`: what the name's last part links to, not the link.
    """
    if "\0" in name:
        raise FileNotFoundError(errno.ENOENT, "no file's name has a NUL in it", name)
    flags = os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    if directory in ("", "/"):
        return os.open(directory + name, flags)
    top = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        how = _How(flags, 0, _IN_ROOT | _NO_MAGICLINKS)
        path = os.fsencode(name) or b"."
        for _ in range(_TRIES):
            found = _libc.syscall(_OPENAT2, top, path, ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how)))
            if found >= 0:
                return int(found)
            if ctypes.get_errno() not in (errno.EAGAIN, errno.EINTR):
                break
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), name)
    finally:
        os.close(top)


def opened(directory: str, name: str, *, folder: bool = False) -> int:
    """A descriptor to read a regular file by, or (`folder`) a directory. Raises OSError, for anything else too."""
    held = handle(directory, name)
    try:
        mode = os.fstat(held).st_mode
        if folder and not stat.S_ISDIR(mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name)
        if not folder and not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "not a regular file", name)
        return os.open(f"{_MINE}/{held}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except FileNotFoundError:  # what is held is there, whatever became of its name
        raise OSError(errno.ENOENT, "/proc is not mounted here", name) from None
    finally:
        os.close(held)


def path(descriptor: int) -> str:
    """A path to what a descriptor stands for, whatever has become of its name; for this process and its children."""
    return f"/proc/{os.readlink('/proc/self')}/fd/{descriptor}"


def real(descriptor: int) -> str:
    """The path of what a descriptor stands for, without links, as it is now. Raises OSError."""
    return os.readlink(f"{_MINE}/{descriptor}")
