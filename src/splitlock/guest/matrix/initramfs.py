"""What is in the guest's initramfs: our init for 64 and 32 bits, a module where there is one, the places it needs.

Format: Documentation/driver-api/early-userspace/buffer-format.rst, cpio "newc".
"""

from __future__ import annotations

import os

from splitlock._errors import SplitlockError

_INSIDE = os.path.join(os.path.dirname(__file__), "inside")
_DIRECTORY, _PROGRAM, _FILE, _DEVICE = 0o040755, 0o100755, 0o100644, 0o020600
_DEVICES = {"kmsg": (1, 11), "kvm": (10, 232)}  # with their numbers


def initramfs(files: dict[str, bytes], programs: tuple[str, ...] = ("init", "init32")) -> bytes:
    """An uncompressed archive with these files, by name, and our programs.

    Raises SplitlockError where the package was built without a compiler.
    """
    entries = [_entry("proc", _DIRECTORY)]
    entries += [_entry(name, _DEVICE, device=numbers) for name, numbers in _DEVICES.items()]
    for program in programs:
        path = os.path.join(_INSIDE, program)
        try:
            with open(path, "rb") as file:
                entries.append(_entry(program, _PROGRAM, file.read()))
        except OSError:
            raise SplitlockError(f"{path}: not built; install a C compiler and build splitlock again", 2) from None
    entries += [_entry(name, _FILE, data) for name, data in files.items()]
    return b"".join([*entries, _entry("TRAILER!!!", 0)])


def _entry(name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    raw = name.encode() + b"\0"
    # number, mode, user, group, links, time, size, device of the file, device that it is, length of the name, checksum
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(raw), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + raw
    return head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4)
