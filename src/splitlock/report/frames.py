"""Which of the functions that an instruction belongs to is the program's own, and how are they shown in short?"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.report.watch import Frame

# Headers of a system or a compiler, as compilers write their paths: C, C++, Rust's core and std, Microsoft's.
_SYSTEM = re.compile(
    r"/usr/(?:local/)?include/|/usr/lib(?:32|64|x32)?/(?:gcc|clang|llvm)|.*/include/c\+\+/|.*/lib/clang/[\d.]+/include/"
    r"|/rustc/|.*/rustlib/src/rust/|.*[/\\]VC[/\\]Tools[/\\]MSVC[/\\]|.*[/\\]Windows Kits[/\\]",
    re.IGNORECASE,
)

_MICROSOFT = re.compile(r"^.*?\b__(?:cdecl|thiscall|stdcall|fastcall|vectorcall) ")
_OFFSET = re.compile(r"\+0x[0-9a-f]+$")


def system(source: str | None) -> bool:
    """Is a source file a header of the system's or the compiler's?"""
    return source is not None and _SYSTEM.match(source) is not None


def own(frames: list[Frame]) -> Frame | None:
    """The outermost frame that is of the program's own source; where there is none, the innermost."""
    return next((frame for frame in reversed(frames) if not system(frame.source)), frames[0] if frames else None)


def inlined(frames: list[Frame]) -> list[str]:
    """What is inlined into that frame, outermost first: functions of the system's by their last names."""
    front = own(frames)
    if front is None:
        return []
    inside = frames[: next(at for at, frame in enumerate(frames) if frame is front)]
    names = [(short(frame.function), system(frame.source)) for frame in reversed(inside) if frame.function]
    return [last(name) if foreign else name for name, foreign in names]


def short(name: str) -> str:
    """A function's name without its arguments, and what Microsoft's compiler puts before it; an offset stays."""
    name = _MICROSOFT.sub("", name)
    for at in _outside(name):
        if name[at] == "(" and not name.startswith("(anonymous", at) and not name[:at].endswith("operator"):
            offset = _OFFSET.search(name)
            return name[:at] + (offset[0] if offset else "")
    return name


def last(name: str) -> str:
    """The last part of a name with scopes, without what it is a template of."""
    cuts = [at for at in _outside(name) if name.startswith("::", at) and not name.startswith("::<", at)]
    plain = name[cuts[-1] + 2 :] if cuts else name
    return plain if plain.startswith("operator") else re.split("(?:::)?<", plain, maxsplit=1)[0] or plain


def _outside(name: str) -> list[int]:
    """The places in a name that are in no angle brackets or braces."""
    found, depth = [], 0
    for at, letter in enumerate(name):
        if letter == "{" or (letter == "<" and not name[:at].rstrip("<").endswith("operator")):
            depth += 1
        elif depth and (letter == "}" or (letter == ">" and name[at - 1] != "-")):
            depth -= 1
        elif not depth:
            found.append(at)
    return found
