"""How the C library is called that is compiled when the package is built; scan.h says what its functions do."""

from __future__ import annotations

import ctypes
from ctypes import CFUNCTYPE, POINTER, c_bool, c_char_p, c_int64, c_uint16, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path

from iced_x86 import Decoder

from splitlock._errors import SplitlockError

LIBRARY = Path(__file__).parent / "libscan.so"
NOT_HANDLED = -2  #: what scan_frames gives for a section that it leaves to splitlock.image.functions
BRANCHES, CASES, NAMED, POINTERS = 1, 2, 4, 8
LOCKED, STOPPED = 0, 1


class Segment(ctypes.Structure):
    """struct scan_segment"""

    _fields_ = (("address", c_uint64), ("offset", c_uint64), ("size", c_uint64), ("code", c_uint64))


class Event(ctypes.Structure):
    """struct scan_event"""

    _fields_ = (("address", c_uint64), ("range", c_uint32), ("kind", c_uint32))


class Branch(ctypes.Structure):
    """struct scan_branch"""

    _fields_ = (("target", c_uint64), ("source", c_uint64))


class Function(ctypes.Structure):
    """struct scan_function"""

    _fields_ = (
        ("reached", c_uint64),
        ("instructions", c_uint64),
        ("branches", c_uint64),
        ("dead", c_uint32),
        ("indirect", c_uint16),
        ("labels", c_uint16),
    )


_STRUCTURES = (Segment, Event, Branch, Function)
_ASK = CFUNCTYPE(c_uint32, POINTER(ctypes.c_uint8 * 16))


def _length(code: ctypes._Pointer[ctypes.Array[ctypes.c_uint8]]) -> int:
    """The length of the instruction that 16 bytes begin with, 0 for none."""
    instruction = Decoder(64, bytes(code.contents)).decode()
    return len(instruction) if instruction else 0


_ask = _ASK(_length)  # as long as C may call it


@cache
def library() -> ctypes.CDLL:
    """libscan.so. Raises SplitlockError where it was not built, or is another version's."""
    if not LIBRARY.exists():
        raise SplitlockError(f"{LIBRARY}: not built; install splitlock from a wheel, or a C compiler to build it")
    # PyDLL: the calls are short, but for the answers that they ask Python for
    lib = ctypes.PyDLL(str(LIBRARY))
    sizes = (c_uint32 * len(_STRUCTURES))()
    lib.scan_sizes(sizes)
    if list(sizes) != [ctypes.sizeof(structure) for structure in _STRUCTURES]:
        raise SplitlockError(f"{LIBRARY}: built from another version of scan.h; build the package anew")
    u64s, u32s, u8s = c_void_p, c_void_p, c_void_p
    lib.scan_open.restype = c_void_p
    lib.scan_open.argtypes = [c_char_p, c_uint64, POINTER(Segment), c_uint32, _ASK]
    lib.scan_close.restype = None
    lib.scan_close.argtypes = [c_void_p]
    lib.scan_ranges.restype = None
    lib.scan_ranges.argtypes = [c_void_p, u64s, u64s, c_uint64]
    lib.scan_decode.restype = c_uint32
    lib.scan_decode.argtypes = [c_void_p, c_char_p, c_uint64]
    for name, *arguments in (
        ("scan_frames", c_char_p, c_uint64, c_uint64, u64s, u8s, c_uint64),
        ("scan_cut", c_void_p, u64s, c_uint64, u64s, u64s),
        ("scan_candidates", c_void_p, c_uint64, c_uint64, u8s),
        ("scan_locked", c_void_p, u8s, POINTER(c_uint64), POINTER(c_uint64), POINTER(Event), c_uint64),
        (
            "scan_function", c_void_p, c_uint64, c_uint32, u64s, c_uint64, u32s, c_uint64, u64s, c_uint64, u8s,
            POINTER(Function),
        ),
        ("scan_named", c_void_p, c_bool),
        ("scan_entered", c_void_p, u64s, u8s, c_uint64, c_bool, u8s),
    ):  # fmt: skip
        function = getattr(lib, name)
        function.restype, function.argtypes = c_int64, arguments
    return lib


def opened(data: bytes, segments: list[Segment]) -> int | None:
    """A scan of an image's contents, which the caller keeps and closes; None where they cannot be scanned."""
    listed = (Segment * len(segments))(*segments)
    found: int | None = library().scan_open(data, len(data), listed, len(segments), _ask)
    return found
