"""The environment as the program is to have it, and what of it our own interpreter must not heed.

Nothing is imported but os: splitlock._start reads this before anything else of ours.
"""

from __future__ import annotations

import os

#: where we are installed
PLACE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
#: what `python -c` runs to do as the console script does
BOOT = f"import sys; sys.path.append({PLACE!r}); from splitlock._start import entry; entry()"
#: what stands before a name in our own environment that would mean something to Python or to the dynamic linker
HIDDEN = b"SPLITLOCK."
#: variables of Python's that change nothing for us: to hide them, too, would cost a second start
_HARMLESS = {
    b"PYTHONBREAKPOINT", b"PYTHONDONTWRITEBYTECODE", b"PYTHONHASHSEED", b"PYTHONNOUSERSITE", b"PYTHONSAFEPATH",
    b"PYTHONSTARTUP", b"PYTHONUNBUFFERED", b"PYTHONUTF8",
}  # fmt: skip


def given() -> dict[bytes, bytes]:
    """The environment as we were started with it, in its order, for the program: nothing is hidden in it."""
    return {_shown(name): value for name, value in own().items()}


def own() -> dict[bytes, bytes]:
    """Our environment, from the kernel: Python adds LC_CTYPE to its own when there is no locale.

    Without /proc, Python's.
    """
    try:
        with open("/proc/self/environ", "rb", buffering=0) as file:
            raw = b"".join(iter(lambda: file.read(1 << 16), b""))
    except OSError:
        return dict(os.environb)
    pairs = (entry.partition(b"=") for entry in raw.split(b"\0"))
    return {name: value for name, equals, value in pairs if equals and name}


def hidden(environment: dict[bytes, bytes], python: bool, library_path: bool) -> dict[bytes, bytes]:
    """The same for our own interpreter: what speaks to the dynamic linker, and to Python, under another name.

    `python`, `library_path`: whether the variables of Python and LD_LIBRARY_PATH are to be hidden.
    """
    kept = b"" if library_path else b"LD_LIBRARY_PATH"
    return {
        HIDDEN + name if name != kept and _speaks(name, python) else name: value for name, value in environment.items()
    }


def _speaks(name: bytes, python: bool = True) -> bool:
    """Whether a variable would change what our interpreter does (python(1), ld.so(8))."""
    if name.startswith(b"PYTHON"):
        return python and name not in _HARMLESS
    return name.startswith(b"LD_")


def _shown(name: bytes) -> bytes:
    plain = name.removeprefix(HIDDEN)
    return plain if _speaks(plain) else name
