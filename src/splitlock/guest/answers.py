"""What did the guest do about an exception? By its console, and by what the plugin saw the instruction do afterwards.

The kernel's words: linux/log.py; kernel/panic.c.
"""

from __future__ import annotations

import re

from splitlock.linux.log import lines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.guest.shared import Entry, Totals
    from splitlock.report.guest import Answer, Where

_PANIC = re.compile(r"Kernel panic - not syncing: [^\r\n]*")
_KERNEL: tuple[Where, ...] = ("kernel", "module")


class Console:
    """A console's text, searched once."""

    def __init__(self, raw: bytes) -> None:
        text = raw.decode("utf-8", "replace")
        #: the kernel's lines by thread and address
        self.warned: dict[tuple[int, int | None], str] = {}
        self.killed: dict[tuple[int, int | None], str] = {}
        boot = []
        oops = None
        for line in lines(text):
            if line.kind == "trap":
                self.warned.setdefault((line.pid, line.address), line.text)
            elif line.kind == "killed":
                self.killed.setdefault((line.pid, line.address), line.text)
            elif line.kind == "mode":
                boot.append(line.text)
            elif line.kind == "oops":
                oops = oops or line.text.splitlines()[0]
        self.boot = list(dict.fromkeys(boot))  #: what the kernel says of its detection
        panic = _PANIC.search(text)
        self.oops = oops
        self.panic = panic[0] if panic else None


def answers(
    entry: Entry, where: Where, threads: set[int], console: Console, totals: Totals, stuck: bool
) -> tuple[list[Answer], str | None]:
    """What came of the exceptions that one program's instruction got, and the kernel's line about it.

    `threads`: numbers by which the kernel may name the program, empty: any; `stuck`: it did nothing but trap.
    """
    found: list[Answer] = []
    said: str | None = None
    places = (entry.pc, entry.pc + entry.length)
    for answer, told in (("warned", console.warned), ("sigbus", console.killed)):
        for (pid, place), line in told.items():
            if place in places and (not threads or pid in threads):
                found.append(answer)  # type: ignore[arg-type]  # one of Answer's
                said = said or line
                break
    if entry.signals and "sigbus" not in found:
        found.append("sigbus")
    if where in _KERNEL and not entry.hits:
        for answer, words in (("oops", console.oops), ("panic", console.panic)):
            if words:
                found.append(answer)  # type: ignore[arg-type]
                said = said or words
    if entry.triple_faults:
        found.append("triple fault")
    if entry.hits:
        found.append("executed")
    elif stuck:
        found.append("livelock")
    if not entry.hits and totals.resets > 1 and entry.trapped_at:
        found.append("reboot")
    return found or ["never executed"], said
