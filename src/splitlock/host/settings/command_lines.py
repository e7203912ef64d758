"""Where is the kernel's command line kept, and which one will the next boot give to it?

What a boot loader reads (grub.cfg, entries, unified images) is told from what that is made of (/etc/default/grub,
/etc/kernel/cmdline). Sources: GRUB's manual; UAPI.1 Boot Loader Specification; loader.conf(5); systemd-stub(7);
kernel-install(8); ukify(1); dracut.conf(5), dracut.cmdline(7); mkinitcpio(8); Proxmox VE, Host Bootloader; the manuals
of SYSLINUX, rEFInd and Limine.
"""

from __future__ import annotations

import fnmatch
import re
from itertools import chain
from typing import Literal, NamedTuple

from splitlock.host.settings import boot_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from splitlock.host.root import Root
    from splitlock.host.settings.boot_files import Kept

Known = Literal["yes", "no", "unknown"]


class Line(NamedTuple):
    """A command line, or a part of one."""

    where: str  #: the file, by its name on that machine
    text: str  #: words as the kernel would get them
    used: Known  #: does the next boot use it?
    why: str = ""  #: why not, or why that is not known
    builds: str = ""  #: what puts it where the loader reads it; empty: the loader reads it here


class _Machine(NamedTuple):
    """How a machine boots, as far as its files tell."""

    loader: str  #: "" where that is not known
    entries: bool  #: do entries (UAPI.1) count with this loader?
    kept: list[Kept]  #: what the loaders that may be there read


def command_lines(root: Root) -> list[Line]:
    """What is kept, what the loader reads first."""
    machine = _machine(root)
    return [*_read(root, machine), *_sources(root, machine)]


def booted(root: Root) -> str:
    """What the boot loader gave to the kernel that runs: /proc/cmdline without bootconfig's part, which is before it.

    init/main.c setup_command_line(), xbc_snprint_cmdline(): each key of bootconfig once, in their order, so that what
    stands behind is the boot loader's even if it has the same name. The kernel looks for split_lock_detect before it
    has read that part. Where /proc/bootconfig says what the loader gave (6.10 on), that is it.
    """
    text = (root.text("proc/cmdline") or "").strip()
    said = re.search(r"^# Parameters from bootloader:\n# (.*)", root.text("proc/bootconfig") or "", re.M)
    if said:
        return said[1].strip()
    for key, value in bootconfig(root):
        if not key.startswith("kernel."):
            continue
        name = key.removeprefix("kernel.")
        words = (f'{name}="{value}"', f"{name}={value}", *(() if value else (name,)))
        word = next((word for word in words if f"{text} ".startswith(f"{word} ")), None)
        if word is None:
            break
        text = text[len(word) :].lstrip(" ")
    return text


def given(root: Root, logged: str) -> str | None:
    """What the kernel that runs was given; None: nothing says it. `logged`: the lines of its boot."""
    if root.text("proc/cmdline") is not None:
        return booted(root)
    found = re.search(r"Command line: (.*)", logged)  # setup_arch() says it before it has read a bootconfig
    return found[1].strip() if found else None


def bootconfig(root: Root) -> list[tuple[str, str]]:
    """/proc/bootconfig: keys and values, an array's key once for each (fs/proc/bootconfig.c)."""
    found = []
    for line in (root.text("proc/bootconfig") or "").splitlines():
        key, equals, rest = line.partition("=")
        if equals and not line.startswith("#"):
            values = re.findall(r"""\s*(?:"([^"]*)"|'([^']*)'|([^\s,"']+))\s*(?:,|$)""", rest) or [("", "", "")]
            found += [(key.strip(), one or other or bare) for one, other, bare in values]
    return found


def _machine(root: Root) -> _Machine:
    running = booted(root)
    kept = list(chain.from_iterable(find(root) for find in boot_files.FINDERS))
    loaders = {one.loader for one in kept} - {boot_files.ENTRIES}
    entries = any(one.loader == boot_files.ENTRIES for one in kept)
    grub = "GRUB" in loaders or root.exists("etc/default/grub") or boot_files.environment(root) is not None
    if re.search(r"(^| )BOOT_IMAGE=", running):
        loader = "GRUB" if grub or "BOOT_IMAGE=(" in running else "SYSLINUX" if "SYSLINUX" in loaders else "GRUB"
    elif any(one.loader == "a unified image" and one.text.split() == running.split() for one in kept if running):
        loader = "a unified image"
    elif running and (entries or "initrd=\\EFI\\proxmox\\" in running or root.exists("etc/kernel/proxmox-boot-uuids")):
        loader = "systemd-boot"
    else:
        candidates = loaders | ({"GRUB"} if grub else set())
        loader = next(iter(candidates)) if len(candidates) == 1 else ""
        loader = "systemd-boot" if entries and not candidates else loader
    with_entries = loader == "systemd-boot" or (
        loader == "GRUB" and entries and boot_files.grub_reads_entries(root, bool(loaders & {"GRUB"}))
    )
    return _Machine(loader, with_entries, kept)


def _read(root: Root, machine: _Machine) -> Iterator[Line]:
    """What boot loaders read: the loader's own, its default first."""
    default = _default(root, machine) if machine.loader else None
    for one in machine.kept:
        if not machine.loader:
            yield Line(one.where, one.text, "unknown", "which boot loader starts this machine is not known")
        elif not _reads(machine, one.loader):
            yield Line(one.where, one.text, "no", f"{_named(machine)} boots this machine, and does not read it")
        elif default is None:
            yield Line(one.where, one.text, "unknown", "which entry is the default is not known")
        elif one in default:
            yield Line(one.where, one.text, "yes")
        else:
            yield Line(one.where, one.text, "no", f"not the default entry, which is {default[0].name}")


def _reads(machine: _Machine, loader: str) -> bool:
    if loader == boot_files.ENTRIES:
        return machine.entries
    if machine.loader in ("systemd-boot", "a unified image") and loader == "a unified image":
        return True
    return loader == machine.loader and not (loader == "GRUB" and machine.entries)


def _named(machine: _Machine) -> str:
    return f"{machine.loader} with the entries of /boot/loader" if machine.entries else machine.loader


def _default(root: Root, machine: _Machine) -> list[Kept] | None:
    """What the loader starts if nobody chooses; None where that cannot be told."""
    own = [one for one in machine.kept if _reads(machine, one.loader)]
    if len({one.text for one in own}) == 1:
        return own
    running = booted(root).split()
    if machine.loader == "a unified image":
        same = [one for one in own if one.loader == machine.loader and one.text.split() == running]
        return same or None
    wanted = boot_files.wanted(root, machine.loader)
    if wanted and wanted.isdigit():
        return None  # an entry's number, which submenus change
    own = [one for one in own if wanted and fnmatch.fnmatchcase(one.name, wanted)] or own  # else the first
    if machine.entries:
        own = boot_files.ordered(own, machine.loader)
    return [one for one in own if (one.where, one.name) == (own[0].where, own[0].name) or (machine.entries
            and one.name == own[0].name)] or None  # fmt: skip


def _sources(root: Root, machine: _Machine) -> Iterator[Line]:
    """What those are made of."""
    for source in boot_files.sources(root):
        if source.why:
            yield Line(source.where, source.text, "no", source.why)
        elif not machine.loader:
            yield Line(source.where, source.text, "unknown", "which boot loader starts this machine is not known")
        elif source.loader == "GRUB" and machine.loader != "GRUB":
            yield Line(source.where, source.text, "no", f"{_named(machine)} boots this machine, not GRUB")
        elif source.loader == "GRUB":
            builds = "run grubby --update-kernel=ALL --args=..., which writes the entries"
            yield Line(
                source.where,
                source.text,
                "yes",
                builds=builds if machine.entries else "run update-grub, or grub-mkconfig -o",
            )
        elif source.loader == "initramfs":
            yield Line(source.where, source.text, "no",
                       "dracut puts it into the initramfs for its own scripts: the kernel does not see it")  # fmt: skip
        else:
            yield _cmdline(root, machine, source)


def _cmdline(root: Root, machine: _Machine, source: Kept) -> Line:
    """/etc/kernel/cmdline and its like."""
    unified = any(one.loader == "a unified image" for one in machine.kept)
    if machine.loader == "GRUB" and not machine.entries:
        return Line(source.where, source.text, "no", "GRUB boots this machine: it is for systemd-boot and entries")
    if root.exists("etc/kernel/proxmox-boot-uuids") or root.exists("etc/pve"):
        return Line(source.where, source.text, "yes", builds="run proxmox-boot-tool refresh")
    if unified and not machine.entries:
        return Line(source.where, source.text, "yes", builds="build the unified image anew (mkinitcpio -P, ukify)")
    if source.loader == "unified":
        return Line(source.where, source.text, "no", "it goes into unified images, and this machine boots none")
    return Line(source.where, source.text, "yes", builds="kernel-install writes it into the entry of the next kernel")
