"""Where are KVM's modules for a kernel? In its package, in the one beside it, or where they are unpacked."""

from __future__ import annotations

import os
import re
from contextlib import closing

from splitlock.guest.matrix.kernels import PACKAGES
from splitlock.image.compressed import compression, expand
from splitlock.image.package import LIMIT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.guest.matrix.kernels import Kernel

MODULES = ("irqbypass", "kvm", "kvm-intel")  #: in the order in which they are loaded
_NEEDED = MODULES[-1]


def kvm_modules(kernel: Kernel) -> dict[str, bytes]:
    """Those of `MODULES` that there are, uncompressed, by name; empty: this kernel's kvm-intel is not to be found."""
    names = re.compile(
        rf"(usr/)?lib/modules/{re.escape(kernel.release)}/(.*/)?({'|'.join(MODULES)})\.ko(\.\w+)?"
    )  # fmt: skip
    place = os.path.dirname(kernel.path) or "."
    beside = f"linux-modules-{kernel.release}_"  # Debian's, since Linux 7.0
    packages = [os.path.join(place, name) for name in sorted(os.listdir(place)) if name.startswith(beside)]
    for package in [kernel.path, *packages]:
        found = _in_package(package, names)
        if _NEEDED in found:
            return found
    for root in (place, os.path.dirname(os.path.abspath(place)), "/"):
        for modules in (f"{root}/lib/modules", f"{root}/usr/lib/modules"):
            found = _in_tree(f"{modules}/{kernel.release}")
            if _NEEDED in found:
                return found
    return {}


def _in_package(path: str, names: re.Pattern[str]) -> dict[str, bytes]:
    found = {}
    with open(path, "rb") as file:
        head = file.read(32)
        for magic, walk in PACKAGES.items():
            if head.startswith(magic):
                with closing(walk(file.fileno(), os.fstat(file.fileno()).st_size, LIMIT * 8)) as members:
                    for stream, name, length in members:
                        if (match := names.fullmatch(name)) and length <= LIMIT:
                            found[match[3]] = _plain(stream.read(length))
    return found


def _in_tree(directory: str) -> dict[str, bytes]:
    found = {}
    for place, _, files in os.walk(directory):
        for name in files:
            base, dot, _ = name.partition(".ko")
            if dot and base in MODULES:
                with open(os.path.join(place, name), "rb") as file:
                    found[base] = _plain(file.read())
    return found


def _plain(raw: bytes) -> bytes:
    return expand(raw, LIMIT) if compression(raw) else raw
