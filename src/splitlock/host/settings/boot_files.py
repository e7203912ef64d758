"""What do boot loaders' files, and the files that those are made of, hold as command lines?

The files' formats; which of them counts says command_lines.py, which names the manuals.
"""

from __future__ import annotations

import re
from functools import cmp_to_key
from typing import NamedTuple

from splitlock._errors import ImageError
from splitlock.host.settings.shell import assignments, expanded, lines, unquoted
from splitlock.host.settings.version_order import compare
from splitlock.image import pe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from splitlock.host.root import Root

ENTRIES = "entries"  #: of UAPI.1, which GRUB and systemd-boot may read
_ESP = ("boot", "efi", "boot/efi")  # where the EFI system partition is mounted
_GRUB = ("boot/grub", "boot/grub2")
_LINUX = re.compile(
    r"\s*(?:linux(?:efi|16)?\s+(?!\S*memtest)\S+|module2?\s+(?:\S*vmlinu\S*|\S*/linux\S*|\S*bzImage\S*))(?:\s+(.*))?$",
    re.S,
)
_MENU = re.compile(r"""\s*menuentry\s+(['"])(.*?)\1(?:.*?(?:--id|\$menuentry_id_option)\s+['"]?([^'"\s{]+))?""")
_COUNTED = re.compile(r"\+(\d{1,20})(?:-\d{1,20})?$")  # systemd-boot: tries that are left, and that were done
_LONGEST = 4096  # characters of a variable
_BROKEN = "grub-mkconfig keeps the line break: what stands behind it is not on GRUB's linux line"
_OFTEN = 400  # entries of one kind that are looked at


class Kept(NamedTuple):
    """A command line in a file."""

    loader: str  #: what reads it
    where: str  #: the file
    name: str  #: the entry's
    text: str
    order: tuple[str, ...] = ()  #: of an entry: sort-key, machine-id, version
    spent: bool = False  #: of an entry: no try is left, so that others come before it
    why: str = ""  #: why it counts for nothing; empty: it may count


def grub(root: Root) -> Iterator[Kept]:
    """grub.cfg's entries, the order kept. Quotes and variables are GRUB's: it takes them away."""
    for place in _grub_places(root):
        title, found = "the first", 0
        values = dict(block.values) if (block := environment(root)) else {}
        for line in lines(root.text(f"{place}/grub.cfg") or ""):
            if menu := _MENU.match(line):
                title = menu[3] or menu[2]
            elif (linux := _LINUX.match(line)) and found < _OFTEN:
                found += 1
                yield Kept("GRUB", f"{place}/grub.cfg", title, unquoted(expanded(linux[1] or "", values)))
            else:
                _set(line, values)


def _set(line: str, values: dict[str, str]) -> None:
    for name, value, _ in assignments(line):
        values[name] = unquoted(expanded(value, values))


def _variables(root: Root) -> dict[str, tuple[str, str]]:
    """GRUB's variables when it reads entries: the environment block's, then what grub.cfg sets. File and value."""
    block = environment(root)
    found = {name: (block.where, value.strip()) for name, value in block.values.items()} if block else {}
    for place in _grub_places(root):
        values: dict[str, str] = {}
        for line in lines(root.text(f"{place}/grub.cfg") or ""):
            _set(line, values)
        found |= {name: (f"{place}/grub.cfg", value) for name, value in values.items() if value}
    return found


def grub_reads_entries(root: Root, configured: bool) -> bool:
    """Does GRUB read entries? `configured`: its grub.cfg has command lines of its own."""
    texts = [root.text(f"{place}/grub.cfg") for place in _grub_places(root)]
    return any("blscfg" in text for text in texts if text) or not configured


class Environment(NamedTuple):
    """GRUB's environment block."""

    where: str
    values: dict[str, str]


def environment(root: Root) -> Environment | None:
    """The first environment block that is there."""
    for place in _grub_places(root):
        if text := root.text(f"{place}/grubenv"):
            lines = [line for line in text.splitlines() if "=" in line and not line.startswith("#")]
            return Environment(f"{place}/grubenv", dict(line.split("=", 1) for line in lines))
    return None


def _grub_places(root: Root) -> list[str]:
    return [*_GRUB, *(f"{esp}/EFI/{name}" for esp in _ESP for name in root.names(f"{esp}/EFI"))]


def entries(root: Root) -> Iterator[Kept]:
    """loader/entries/*.conf: `options` may stand more than once. $kernelopts and the like are GRUB's environment."""
    variables = _variables(root)
    for esp in _ESP:
        for name in root.names(f"{esp}/loader/entries")[:_OFTEN]:
            if not name.endswith(".conf"):
                continue
            where = f"{esp}/loader/entries/{name}"
            lines = [line.split(None, 1) for line in (root.text(where) or "").splitlines()]
            pairs = [(line[0], line[1].strip()) for line in lines if len(line) == 2]
            options = " ".join(value for key, value in pairs if key == "options")
            order = tuple(dict(pairs).get(key, "") for key in ("sort-key", "machine-id", "version"))
            name = name.removesuffix(".conf")
            counted = _COUNTED.search(name)
            name, spent = _COUNTED.sub("", name), counted is not None and not int(counted[1])
            for variable in dict.fromkeys(re.findall(r"\$\{?(\w+)", options)):
                place, value = variables.get(variable, ("", ""))
                if value:
                    yield Kept(ENTRIES, place, name, value, order, spent)
            options = re.sub(r"\$(\w+|\{\w+\})", "", options).strip()
            yield Kept(ENTRIES, where, name, options, order, spent)


def unified(root: Root) -> Iterator[Kept]:
    """Unified kernel images, and add-ons of them: PE files whose section .cmdline is the command line."""
    for esp in _ESP:
        top = f"{esp}/EFI/Linux"
        found = [f"{top}/{name}" for name in root.names(top)[:_OFTEN]]
        found += [f"{place}/{name}" for place in found if place.endswith(".extra.d") for name in root.names(place)]
        found += [f"{esp}/loader/addons/{name}" for name in root.names(f"{esp}/loader/addons")]
        for where in found:
            if not where.endswith(".efi"):
                continue
            try:
                with root.open(where) as file:
                    text = pe.section(file, ".cmdline")
            except (OSError, ImageError):
                continue
            if text is not None:
                line = text.rstrip(b"\0\n").decode("utf-8", "replace")
                yield Kept("a unified image", where, where.rpartition("/")[2], line)


def syslinux(root: Root) -> Iterator[Kept]:
    """SYSLINUX's and EXTLINUX's APPEND, which U-Boot reads too."""
    for where in ("boot/extlinux/extlinux.conf", "boot/syslinux/syslinux.cfg", "boot/syslinux/extlinux.conf"):
        label, lines = "", (root.text(where) or "").splitlines()
        first = next((line.split()[1] for line in lines if re.match(r"\s*default\s+\S", line, re.I)), None)
        found = []
        for line in lines:
            key, _, value = line.strip().partition(" ")
            if key.lower() == "label":
                label = value.strip()
            elif key.lower() == "append":
                found.append(Kept("SYSLINUX", where, label, value.strip()))
        yield from sorted(found, key=lambda one: one.name != first)


def refind(root: Root) -> Iterator[Kept]:
    """refind_linux.conf beside the kernel: "title" "options", the first line is the default."""
    for line in (root.text("boot/refind_linux.conf") or "").splitlines():
        two = re.findall(r'"((?:[^"]|"")*)"', line) if not line.lstrip().startswith("#") else []
        if len(two) > 1:
            yield Kept("rEFInd", "boot/refind_linux.conf", two[0], two[1].replace('""', '"'))


def limine(root: Root) -> Iterator[Kept]:
    """limine.conf's cmdline, an entry's title above it."""
    for where in ("boot/limine.conf", "boot/limine/limine.conf", "efi/limine.conf", "boot/efi/limine.conf"):
        title = "the first"
        for line in (root.text(where) or "").splitlines():
            key, colon, value = line.strip().partition(":")
            if line.strip().startswith("/"):
                title = line.strip().strip("/+ ")
            elif colon and key.lower() in ("cmdline", "kernel_cmdline"):
                yield Kept("Limine", where, title, value.strip())


FINDERS: tuple[Callable[[Root], Iterator[Kept]], ...] = (grub, entries, unified, syslinux, refind, limine)


def wanted(root: Root, loader: str) -> str | None:
    """The name of the entry that is chosen, a pattern; None: nothing chooses one."""
    if loader == "GRUB":
        block = environment(root)
        saved = block.values.get("saved_entry", "").rpartition(">")[2] if block else ""
        text = root.text(*(f"{place}/grub.cfg" for place in _grub_places(root))) or ""
        given = [name for name in re.findall(r'set default="([^"]*)"', text) if name and "$" not in name]
        asked = given[-1].rpartition(">")[2] if given and "${saved_entry}" not in text else saved
        return None if asked in ("", "0") else _literal(asked)
    if loader == "systemd-boot":
        text = root.text(*(f"{esp}/loader/loader.conf" for esp in _ESP)) or ""
        found = re.findall(r"^default\s+(\S+)", text, re.M)
        return found[-1].removesuffix(".conf") if found and not found[-1].startswith("@") else None
    return None


def _literal(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def ordered(kept: list[Kept], loader: str) -> list[Kept]:
    """As the loader shows them. GRUB (blscfg) goes by the entries' names, systemd-boot by their sort keys."""
    return sorted(kept, key=cmp_to_key(_by_name if loader == "GRUB" else _by_key))


def _by_name(one: Kept, other: Kept) -> int:
    return compare(other.name, one.name)  # the newest first


def _by_key(one: Kept, other: Kept) -> int:
    """UAPI.1, "Sorting"."""
    if one.spent != other.spent:
        return 1 if one.spent else -1
    first, second = one.order or ("", "", ""), other.order or ("", "", "")
    if bool(first[0]) != bool(second[0]):
        return -1 if first[0] else 1
    if first[0] and first[:2] != second[:2]:
        return -1 if first[:2] < second[:2] else 1
    return (compare(second[2], first[2]) if first[0] else 0) or _by_name(one, other)


def _defaults(root: Root) -> list[Kept]:
    """/etc/default/grub, then grub.d/*.cfg, as the shell of grub-mkconfig reads them: the last assignment counts."""
    names = [name for name in root.names("etc/default/grub.d") if name.endswith(".cfg")]
    values: dict[str, str] = {}
    found: list[Kept] = []
    for where in ("etc/default/grub", *(f"etc/default/grub.d/{name}" for name in names)):
        for name, value, adds in assignments(root.text(where) or ""):
            text = unquoted(expanded(value, {**values, name: ""} if adds else values))
            values[name] = f"{values.get(name, '')} {text}"[-_LONGEST:] if adds else text
            if not re.fullmatch(r"GRUB_CMDLINE_LINUX(_DEFAULT|_XEN_REPLACE(_DEFAULT)?)?", name):
                continue
            if not adds:
                why = f"{where} sets {name} anew later"
                found = [one._replace(why=one.why or why) if one.name == name else one for one in found]
            first, _, rest = text.partition("\n")
            found.append(Kept("GRUB", where, name, unquoted(first)))
            found += [Kept("GRUB", where, name, unquoted(rest), why=_BROKEN)] if rest else []
    return found


def sources(root: Root) -> Iterator[Kept]:
    """What loaders' files are made of. `loader`: GRUB, entries (or unified images), unified, initramfs."""
    yield from _defaults(root)
    first = next((where for where in ("etc/kernel/cmdline", "usr/lib/kernel/cmdline") if root.text(where)), None)
    if first:
        yield Kept("entries", first, "", (root.text(first) or "").replace("\n", " ").strip())
    mkinitcpio = root.exists("etc/mkinitcpio.conf") or root.exists("usr/lib/initcpio")
    for name in root.names("etc/cmdline.d"):
        where = f"etc/cmdline.d/{name}"
        if name.endswith(".conf"):
            text = " ".join(line for line in (root.text(where) or "").splitlines() if not line.startswith("#"))
            yield Kept("unified" if mkinitcpio else "initramfs", where, "", text)
    for where in ("etc/dracut.conf", *(f"etc/dracut.conf.d/{name}" for name in root.names("etc/dracut.conf.d"))):
        given = {name: unquoted(value) for name, value, _ in assignments(root.text(where) or "")}
        if "kernel_cmdline" in given:
            yield Kept("unified" if given.get("uefi", "").strip() == "yes" else "initramfs", where, "",
                       given["kernel_cmdline"])  # fmt: skip
