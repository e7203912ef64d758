"""What did the programmer call it? The names that compilers of C++ and Rust write into symbols, undone.

C++ and Rust's older names (both begin with _Z): libstdc++'s __cxa_demangle, spelled as gdb and addr2line do. Rust's
newer ones (_R) and Microsoft's (?): LLVM's demanglers, in the package pycxxfilt.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_int, c_void_p

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re

_LONGEST = 1 << 14  # bytes of a name that is looked at
_HASH = r"::h[0-9a-f]{16}(?=$|[ .\[])"  # rustc's, at the end of its older names
# What rustc writes for characters that symbols cannot have (legacy mangling).
_ESCAPES = {"SP": "@", "BP": "*", "RF": "&", "LT": "<", "GT": ">", "LP": "(", "RP": ")", "C": ","}
_ESCAPED = r"\$(SP|BP|RF|LT|GT|LP|RP|C|u[0-9a-f]{1,6})\$"
_libstdcxx: list[ctypes.CDLL | None] = []


def demangle(name: str) -> str:
    """The name that `name` encodes; `name` itself when it encodes none."""
    if name.startswith("_Z"):
        return _older_rust(_itanium(name))
    if name.startswith(("_R", "?")) and len(name) <= _LONGEST:
        from pycxxfilt import demangle as by_llvm

        try:
            return by_llvm(name) or name
        except (ValueError, UnicodeError):
            return name
    return name


def _older_rust(name: str) -> str:
    """`core::sync::atomic::AtomicUsize::fetch_add::h0123456789abcdef` without its hash, and its escapes undone."""
    if "::h" not in name:
        return name
    import re

    plain = re.sub(_HASH, "", name)
    if plain == name:
        return name
    plain = re.sub(r"(^|::)_(?=\$)", r"\1", plain)
    return re.sub(_ESCAPED, _unescaped, plain).replace("..", "::")


def _unescaped(found: re.Match[str]) -> str:
    known = _ESCAPES.get(found[1])
    if known is not None:
        return known
    number = int(found[1][1:], 16)
    return chr(number) if number < 0x110000 else found[0]


def _itanium(name: str) -> str:
    if not _libstdcxx:
        try:
            lib = ctypes.CDLL("libstdc++.so.6")
            lib.__cxa_demangle.argtypes = [c_char_p, c_void_p, c_void_p, POINTER(c_int)]
            lib.__cxa_demangle.restype = c_void_p
            _libstdcxx.append(lib)
        except (OSError, AttributeError):
            _libstdcxx.append(None)
    if (found := _libstdcxx[0]) is None or len(name) > _LONGEST:
        return name
    status = c_int()
    text = found.__cxa_demangle(name.encode("utf-8", "replace"), None, None, ctypes.byref(status))
    if not text:
        return name
    try:
        return ctypes.string_at(text).decode("utf-8", "replace")
    finally:
        free = ctypes.CDLL(None).free
        free.argtypes, free.restype = [c_void_p], None
        free(text)
