"""What does a console say? init's lines, and the kernel's own between them."""

from __future__ import annotations

import re
from typing import NamedTuple

from splitlock.linux.log import parse

_TIME = re.compile(r"^\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? ?")
_OURS = re.compile(r"splitlock-matrix: (\w+)(?: ([a-z]\w*)(?= |$))?(.*)$")
_BLIND = re.compile(r"^blind: (way=.*)$")  # inside/blind.c, report()
_GUEST = re.compile(r"splitlock-guest: (.*)$")  # inside/linux.c: what the guest's own serial port had
_FIELD = re.compile(r" (\w+)=(0x[0-9a-f]{16}|[a-z]+)(?= |$)")
# what of the kernel's lines is about split locks, or about its own end
_ABOUT = re.compile(
    r"split_lock|bus_lock|[Ss]plit lock|alignment check|sysctl parameter|\[#\d+\]|Kernel panic|callbacks suppressed"
    r"|^RIP: 0010|^BUG: |^Oops|blocked for more|soft lockup"
)
_COMMAND_LINE = re.compile(r"[Cc]ommand line")
_MOST = 40  # lines kept of one kind
_OOPS, _PANIC = re.compile(r"\[#\d+\]"), re.compile(r"Kernel panic")


class Line(NamedTuple):
    """A line of init's: `begin user`, with its `name=number`s."""

    what: str
    kind: str
    fields: dict[str, int | str]


class Told:
    """What is told of one kind, in one boot."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.lines: list[Line] = []
        self.log: list[str] = []  #: the kernel's own lines, the first of many
        self.guest: list[str] = []  #: what a Linux guest of its said

    def said(self, what: str) -> list[dict[str, int | str]]:
        """The fields of init's lines of one sort."""
        return [line.fields for line in self.lines if line.what == what]

    @property
    def ended(self) -> bool:
        """Did init come back from it?"""
        return any(line.what == "end" for line in self.lines)

    @property
    def oops(self) -> bool:
        """Did the kernel have one?"""
        return any(_OOPS.search(line) for line in self.log) or any(fields.get("oops") for fields in self.said("end"))

    @property
    def panic(self) -> bool:
        """Did the kernel stop?"""
        return any(_PANIC.search(line) for line in self.log)

    @property
    def warnings(self) -> int:
        """How often did the kernel say that a task took a trap?"""
        return sum(line is not None and line.kind == "trap" for line in map(parse, self.log))


class Log:
    """A boot's console. Whatever is neither init's nor about split locks is passed over."""

    def __init__(self, console: bytes) -> None:
        self.boot: list[str] = []  #: the kernel's lines before init began
        self.ready: dict[str, int | str] | None = None  #: what init said of processor and kernel; None: it never began
        self.kinds: list[Told] = []
        for raw in console.decode("utf-8", "replace").splitlines():
            text = _TIME.sub("", raw.rstrip())
            if (inner := _GUEST.search(text)) and self.kinds:
                self.kinds[-1].guest.append(inner[1].replace("splitlock~matrix:", "splitlock-matrix:"))
            elif ours := _OURS.search(text):
                self._ours(ours[1], ours[2], {name: _number(value) for name, value in _FIELD.findall(ours[3])})
            elif (blind := _BLIND.search(text)) and self.kinds:
                words = (word.partition("=") for word in blind[1].split())
                fields = {name: int(value, 0) if value[0].isdigit() else value for name, _, value in words}
                self.kinds[-1].lines.append(Line("blind", self.kinds[-1].kind, fields))
            elif _ABOUT.search(text) and not _COMMAND_LINE.search(text):
                kept = self.kinds[-1].log if self.kinds else self.boot
                if len(kept) < _MOST:
                    kept.append(text)

    def _ours(self, what: str, kind: str | None, fields: dict[str, int | str]) -> None:
        if what == "ready":
            self.ready = fields
        elif what == "begin" and kind:
            self.kinds.append(Told(kind))
        elif self.kinds and kind == self.kinds[-1].kind:
            self.kinds[-1].lines.append(Line(what, kind, fields))


def _number(text: str) -> int | str:
    return int(text, 16) if text.startswith("0x") else text
