"""Why can an address not be explained, and what is to be done then? One sentence, or two, for each cause."""

from __future__ import annotations

import errno
from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.linux.log import Mapped
    from splitlock.report.watch import Cause

_SAVE = "save /proc/PID/maps and run `splitlock explain --maps SAVED`"
_BASE = "`splitlock explain --image FILE --base ADDR`"
#: Where there is a log alone, of another machine or of long ago.
WAYS = f"`splitlock watch --maps SAVED` (a copy of /proc/PID/maps), or {_BASE}"


#: Causes that are about a file that is mapped.
OF_FILES = frozenset({"no-file", "no-image", "deleted", "replaced"})


class Reason(NamedTuple):
    """A cause, and what to say."""

    cause: Cause
    note: str


def no_address() -> Reason:
    """Somebody shortened the line."""
    return Reason("no-address", "the address was taken out of the line: take the line as the kernel wrote it")


def alone() -> Reason:
    """A log, and nothing to look the address up in."""
    return Reason("gone", f"the address alone: {WAYS}")


def gone(comm: str, pid: int, *, slowed: bool, file: str | None, apart: bool = False) -> Reason:
    """No such task. `slowed`: it is the kernel's mitigation that it suffers from; `file`: the one the line names.

    `apart`: numbers are others here than in the log.
    """
    ended = "it has ended, or the log is another machine's"
    if apart:
        ended += ", or the host's: this is a container, where tasks have other numbers; run it on the host, or `--pid`"
    words = f"This line holds an address only, and {comm}/{pid} is gone (no task {pid} of this name is here: {ended}). "
    if file:
        words = (
            f"{comm}/{pid} has ended, but the line tells where {file} was mapped: give that file, `--image {file}`. "
        )
    words += f"Next time run `sudo splitlock watch` while it plays, or {_SAVE}"
    words += f"; where the base is known: {_BASE}." if not file else "."
    if slowed:
        words += " To stop the slowdown: `sysctl kernel.split_lock_mitigate=0`."
    return Reason("gone", words)


def another(comm: str, pid: int, now: str, *, younger: bool) -> Reason:
    """The number is another task's. `younger`: it began after the line was written."""
    if younger and now == comm:
        what = f"task {pid} is called {comm} too, but began after this line was written: the number was used again"
    elif younger:
        what = f"{comm}/{pid} is gone: task {pid} is {now} now, which began after this line was written"
    else:
        what = f"task {pid} is called {now} now: {comm} has ended, or was renamed; if it is the same: `--pid {pid}`"
    return Reason("another-task", f"{what}. Of an ended one: {_SAVE}, while it runs again")


def renamed(pid: int, now: str) -> str:
    """What is said beside the place."""
    return f"task {pid} is called {now} now"


def not_permitted(comm: str, pid: int) -> Reason:
    """Its mappings are somebody else's."""
    return Reason(
        "not-permitted",
        f"{comm}/{pid} is there, but its memory is not readable: CAP_SYS_PTRACE is wanted; run it with sudo",
    )


def no_memory(pid: int) -> Reason:
    """A task without mappings."""
    return Reason(
        "no-memory",
        f"task {pid} has no memory of its own: a thread of the kernel's, or it has ended and is not waited for",
    )


def memory_unreadable(pid: int) -> Reason:
    """Mappings can be read, memory cannot."""
    return Reason(
        "not-permitted",
        f"it is in memory of no file (JIT code?), and the memory of {pid} is not readable: CAP_SYS_PTRACE is "
        "wanted; run it with sudo",
    )


def kernel_address(comm: str, *, guest: bool) -> Reason:
    """An address of the upper half."""
    if guest:
        return Reason(
            "kernel-address",
            f"an address in the kernel's half, where no program has code: {comm} runs a virtual machine, and this "
            "is its kernel's: look inside it",
        )
    return Reason(
        "kernel-address", "an address in the kernel's half, where no program has code: the line is damaged, or made up"
    )


def no_code_address() -> Reason:
    """Between the halves."""
    return Reason("no-address", "no processor has code at such an address: the line is damaged, or made up")


def not_mapped(pid: int) -> Reason:
    """A live process has nothing there."""
    return Reason(
        "not-mapped",
        f"nothing is mapped at this address in {pid} (any more): a library was unloaded, JIT code was dropped, or the "
        f"line is of an earlier program of this number. Run `sudo splitlock watch` while it happens",
    )


def not_mapped_then() -> Reason:
    """A saved copy has nothing there."""
    return Reason(
        "not-mapped",
        "nothing was mapped at this address when the maps were saved: they are of another run, or of another moment; "
        "save them again after the line",
    )


def not_executable(name: str) -> Reason:
    """Something is mapped that is not run."""
    return Reason(
        "not-executable",
        f"{name} is mapped there, and not to be run: other memory lies there now. Run `sudo splitlock watch` while it "
        "happens",
    )


def not_saved() -> Reason:
    """JIT code, and no process."""
    return Reason(
        "not-saved",
        "JIT code, or other memory of no file: its bytes were not saved, maps hold none. Run `splitlock explain "
        "--pid P`, or `sudo splitlock watch`, while it runs",
    )


def no_file(name: str, error: OSError, root: str | None) -> Reason:
    """A saved copy names a file that is not to be had. `root`: where it was looked for."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        if root:
            return Reason("no-file", f"{name} is not below {root}: unpack its package there, or name it by `--image`")
        return Reason(
            "no-file", f"{name} is not here: `--root DIR` says where that machine's files are, `--image` names it"
        )
    if error.errno == errno.ELOOP:
        return Reason("no-file", f"{name}: its links go round, or out through /proc: name the file by `--image`")
    return Reason("no-file", f"{name} cannot be read: {error.strerror}; name a copy of it by `--image`")


def no_file_of(name: str, error: OSError, pid: int) -> Reason:
    """A live process has a file mapped that is not to be had."""
    if error.errno in (errno.EACCES, errno.EPERM):
        return Reason("no-file", f"{name} of {pid} is not yours to read: run it with sudo")
    return Reason(
        "no-file",
        f"{name} of {pid} is not found by this name (another mount namespace?): run it with sudo, or name the file by "
        "`--image`",
    )


def no_image(name: str) -> Reason:
    """Neither ELF nor PE."""
    return Reason(
        "no-image", f"{name} is mapped there, and is no program: neither ELF nor PE; code that was made at run time?"
    )


def deleted(name: str, pid: int) -> Reason:
    """A live process runs a file that is gone."""
    return Reason(
        "deleted",
        f"{name} was deleted, or replaced by an update, while {pid} runs it: as root it is still read "
        "(CAP_SYS_ADMIN, or CAP_CHECKPOINT_RESTORE); else start the program again",
    )


def deleted_then(name: str) -> Reason:
    """It had been deleted when the maps were saved."""
    return Reason(
        "deleted",
        f"{name} had been deleted, or replaced by an update, when the maps were saved: what has that name now is "
        "another file; name the old one by `--image`, with `--base`",
    )


def replaced(name: str, pid: int) -> Reason:
    """By the name there is another file."""
    return Reason(
        "replaced",
        f"what is called {name} here is not the file that {pid} has mapped (another mount namespace, or it was "
        "replaced): run it with sudo",
    )


def unread(trouble: str) -> Reason:
    """libdw failed over the file. `trouble`: the sentence (image/apart.py)."""
    return Reason("unread", trouble)


def other_code(name: str | None, pid: int) -> Reason:
    """A live process's memory there holds no locked instruction."""
    if name is None:
        return Reason(
            "other-code",
            f"other code lies there now: memory of no file (JIT code?) in {pid} has no locked instruction at this "
            "address any more. Run `sudo splitlock watch` while it happens",
        )
    return Reason(
        "other-code",
        f"no locked instruction there, in memory that {name} is mapped to: another library lay there before, or the "
        f"line is of an earlier program of this number. Run `sudo splitlock watch` while it happens",
    )


def other_file(name: str) -> Reason:
    """A file that a saved copy names has no locked instruction there."""
    return Reason(
        "other-code",
        f"no locked instruction there in {name}: another version of it ran, or the maps are of another run; save them "
        "again after the line",
    )


def other_bytes(name: str, build_id: str | None) -> Reason:
    """The image at this base has no locked instruction there."""
    which = f" (its build ID is {build_id})" if build_id else ""
    return Reason(
        "other-code",
        f"no locked instruction there in {name}{which}: it was mapped at another base, or another version of it ran. "
        "Give `--base`, the first address of its first line in /proc/PID/maps",
    )


def another_file(name: str, said: str) -> Reason:
    """The line names another file."""
    return Reason(
        "other-code", f"no locked instruction there in {name}: the line says that it was {said}; name that by `--image`"
    )


def does_not_fit(name: str, mapped: Mapped) -> Reason:
    """What the line says of the mapping is not this file's."""
    return Reason(
        "does-not-fit",
        f"the line says that {mapped.file} was mapped, {mapped.size:#x} bytes at {mapped.start:#x}: no part of "
        f"{name} that is run has that size. Name the version that ran, or give its `--base`",
    )


def outside(name: str, low: int, high: int) -> Reason:
    """The address is beyond the image."""
    return Reason(
        "outside", f"outside of {name}, which reaches from {low:#x} to {high:#x} at this base: give its `--base`"
    )


def movable(name: str, ends: str, number: int, places: list[str]) -> Reason:
    """Nobody knows where the image was mapped. `number`: how many of its locked instructions end in the same digits."""
    sure = "give `--base`, the first address of its first line in /proc/PID/maps"
    if not number:
        return Reason(
            "outside",
            f"it is not in {name}: that can lie anywhere, but no locked instruction in it has an address that ends in "
            f"{ends}, as its own would. Name another file that the program has loaded",
        )
    some = ", ".join(places) + (f" and {number - len(places):,} more" if number > len(places) else "")
    which = f"it is {some}" if number == 1 else f"it is one of {number:,}: {some}"
    return Reason(
        "outside",
        f"{name} can lie anywhere, and the line does not tell where it did. If the address is in it at all, {which}: "
        f"by its last digits, {ends}. To be sure {sure}",
    )
