"""What is in one section of a PE file? As unified kernel images have them (systemd-stub(7))."""

from __future__ import annotations

import mmap
import struct
from typing import BinaryIO

from splitlock._errors import ImageError

_LARGEST = 1 << 20  # bytes of a section that are read: a kernel's command line has 2,048


def section(file: BinaryIO, name: str) -> bytes | None:
    """The contents of a section, None where there is no such. ImageError where it is no PE file; OSError."""
    import pefile

    try:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            image = pefile.PE(data=data, fast_load=True)
            for one in image.sections:
                if one.Name.rstrip(b"\0") == name.encode():
                    start, size = one.PointerToRawData, min(one.Misc_VirtualSize, one.SizeOfRawData, _LARGEST)
                    return bytes(data[start : start + size])
    except (pefile.PEFormatError, struct.error, ValueError, AttributeError) as error:
        raise ImageError(f"no PE file: {error}") from None
    return None
