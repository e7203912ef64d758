"""How was the kernel built that runs there: its configuration, and what its sysctls show of that."""

from __future__ import annotations

import re
import zlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.host.root import Root
    from splitlock.linux.versions import Release

_RUNNING = "proc/config.gz"  # CONFIG_IKCONFIG_PROC
_PLACES = ("boot/config-{}", "lib/modules/{}/config", "usr/lib/modules/{}/config")
_PACKED, _LARGEST = 1 << 20, 4 << 20  # bytes; a real one has 60 KB, and 300 KB unpacked
_SYSCTLS = "proc/sys/kernel"
_MITIGATE = "split_lock_mitigate"
_LISTED = "sos_commands/kernel/sysctl_-a"
#: What people copy one by one to say which machine it is: these alone are no list of what a kernel has.
_NAMES = {"osrelease", "ostype", "version", "hostname", "domainname"}
_ENOUGH = 3


def config(root: Root, release: Release | None) -> str:
    """Its configuration; empty: it is not there."""
    names = [place.format(release.text) for place in _PLACES] if release else []
    return _unpacked(root) or (root.text(*names) if names else None) or ""


def where(root: Root, release: Release | None) -> str:
    """The file that `config` is from; empty: none."""
    if _unpacked(root):
        return _RUNNING
    names = [place.format(release.text) for place in _PLACES] if release else []
    return next((name for name in names if root.text(name)), "")


def lacks_sysctl(root: Root) -> bool:
    """Are its sysctls there, and kernel.split_lock_mitigate is not among them?"""
    found = set(root.names(_SYSCTLS))
    found |= set(re.findall(r"^kernel\.([\w-]+) =", root.text(_LISTED) or "", re.M))
    return _MITIGATE not in found and len(found - _NAMES) >= _ENOUGH


def _unpacked(root: Root) -> str:
    """The running kernel's own; empty where it is not there whole."""
    packed = zlib.decompressobj(wbits=31)  # with gzip's header
    try:
        with root.open(_RUNNING) as file:
            text = packed.decompress(file.read(_PACKED), _LARGEST)
    except (OSError, zlib.error):
        return ""
    return text.decode("ascii", "replace") if packed.eof else ""
