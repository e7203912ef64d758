"""How does a kernel get into the machine? Its boot sector waits, and the kernel lies in memory when it goes on.

Linux' 16-bit boot protocol (Documentation/arch/x86/boot.rst): so the kernel's own setup code asks the BIOS for the map
of memory, as with any boot loader. No boot loader and no emulated disk are needed, and loading takes no time.
"""

from __future__ import annotations

import struct

from splitlock._errors import SplitlockError
from splitlock.guest.memory import Memory

LOAD_PORT = 0x8902  # instrument/instrument.h
_FLOPPY = 1_474_560  # bytes
_SETUP, _STACK, _COMMAND = (
    0x10000,
    0xE000,
    0xE000,
)  # the setup code's place, and in it: its stack's end, the command line
_KERNEL = 0x100000
_MEGABYTE = 1 << 20
_TOP = 1 << 20  # bytes at the end of memory that are the firmware's, for its ACPI tables
_OLDEST = 0x20A  # protocol version with init_size: 2.6.31
_HEADER = b"HdrS"
_ANY_LOADER, _CAN_USE_HEAP, _LOADED_HIGH = 0xFF, 0x80, 1


def floppy() -> bytes:
    """A disk whose boot sector asks for the kernel, and jumps to its setup code."""
    code = bytes.fromhex("fa ba") + struct.pack("<H", LOAD_PORT) + bytes.fromhex("ee")  # cli; mov dx, port; out dx, al
    code += b"\xb8" + struct.pack("<H", _SETUP >> 4)  # mov ax, segment
    code += bytes.fromhex("8ed8 8ec0 8ee0 8ee8 8ed0")  # mov ds, es, fs, gs, ss, ax
    code += b"\xbc" + struct.pack("<H", _STACK)  # mov sp, _STACK
    code += b"\xea" + struct.pack("<HH", 0, (_SETUP >> 4) + 0x20)  # jmp far: behind the setup's own boot sector
    return code.ljust(510, b"\0") + b"\x55\xaa" + bytes(_FLOPPY - 512)


class Linux:
    """A kernel, its initramfs and command line, checked: `place` puts them into memory.

    Raises SplitlockError where it is no bzImage, or memory is too small.
    """

    def __init__(self, kernel: str, initrd: str | None, append: str, memory: int) -> None:
        """`memory`: bytes the machine has."""
        image = _read("--kernel", kernel)
        if image[0x202:0x206] != _HEADER or not image[0x211] & _LOADED_HIGH:
            raise SplitlockError(
                f"--kernel {kernel}: no bzImage, which --vmx needs: arch/x86/boot/bzImage, or vmlinuz", 2
            )
        version, sectors = struct.unpack_from("<H", image, 0x206)[0], image[0x1F1] or 4
        if version < _OLDEST:
            raise SplitlockError(f"--kernel {kernel}: older than Linux 2.6.31, which --vmx cannot boot", 2)
        cut = (sectors + 1) * 512
        self._setup, self._code = bytearray(image[:cut]), image[cut:]
        self._initrd = _read("--initrd", initrd) if initrd else b""
        self._command = append.encode("utf-8", "surrogateescape") + b"\0"
        (limit,) = struct.unpack_from("<I", image, 0x238)
        if len(self._command) > min(limit + 1, 0x10000 - _COMMAND):
            raise SplitlockError(f"--append: longer than the {limit} bytes that this kernel takes", 2)
        self._initrd_at = self._top(memory)
        self._fill_header()

    def _top(self, memory: int) -> int:
        """Where the initramfs lies: as high as may be. The kernel unpacks itself below."""
        (most,) = struct.unpack_from("<I", self._setup, 0x22C)
        preferred, size = struct.unpack_from("<QI", self._setup, 0x258)
        at = (min(memory - _TOP, most) - len(self._initrd)) & ~0xFFF
        if at < max(preferred + size, _KERNEL + len(self._code)):
            need = (preferred + size + len(self._initrd) + _TOP >> 20) + 64
            raise SplitlockError(f"-m: too little for this kernel and initramfs; take {need}M or more", 2)
        return int(at)

    def _fill_header(self) -> None:
        setup = self._setup
        setup[0x210] = _ANY_LOADER
        setup[0x211] |= _CAN_USE_HEAP
        struct.pack_into("<II", setup, 0x218, self._initrd_at if self._initrd else 0, len(self._initrd))
        struct.pack_into("<H", setup, 0x224, _STACK - 0x200)
        struct.pack_into("<I", setup, 0x228, _SETUP + _COMMAND)

    def place(self, memory: Memory) -> None:
        """Now: the machine's firmware has done its work, and its boot sector waits."""
        for at, data in (
            (_SETUP, self._setup), (_SETUP + _COMMAND, self._command), (_KERNEL, self._code),
            (self._initrd_at, self._initrd),
        ):  # fmt: skip
            memory.ram[at : at + len(data)] = bytes(data)


def _read(option: str, path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise SplitlockError(f"{option} {path}: {error.strerror}", 2) from None
