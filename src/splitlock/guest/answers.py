"""What did the guest do about an exception? By its console, and by what the plugin saw the instruction do afterwards.

The kernel's words: arch/x86/kernel/cpu/intel.c (bus_lock.c since 6.14), traps.c (exc_alignment_check), kernel/panic.c.
"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.guest.shared import Entry, Totals
    from splitlock.report.guest import Answer, Where

SPLIT_LOCK_LINE = "x86/split lock detection: "
_WARNED = re.compile(rb"x86/split lock detection: #(AC|DB): (.{1,15})/(\d+) took a \w+ trap at address: 0x([0-9a-f]+)")
_KILLED = re.compile(rb"traps: (.{1,15})\[(\d+)\] trap alignment check ip:([0-9a-f]+)")
_OOPS = re.compile(rb"Split lock detected(?=\s*(\[ *\d+\.\d+\])?\s*: \w+ \[#\d+\])")  # over two lines
_PANIC = re.compile(rb"Kernel panic - not syncing: ([^\r\n]*)")
_PREFIX = re.compile(rb"^\[ *\d+\.\d+\] ")
_KERNEL: tuple[Where, ...] = ("kernel", "module")


class Console:
    """A console's text, searched once."""

    def __init__(self, text: bytes) -> None:
        self.warned = {(int(pid), int(at, 16)): line for line, (_, _, pid, at) in _lines(_WARNED, text)}
        self.killed = {(int(pid), int(at, 16)): line for line, (_, pid, at) in _lines(_KILLED, text)}
        self.oops = next((line for line, _ in _lines(_OOPS, text)), None)
        self.panic = next((line for line, _ in _lines(_PANIC, text)), None)
        words = SPLIT_LOCK_LINE.encode()
        found = [line for line in text.splitlines() if words in line and not _WARNED.search(line)]
        self.boot = list(dict.fromkeys(map(_plain, found)))  #: what the kernel says of its detection


def answers(
    entry: Entry, where: Where, threads: set[int], console: Console, totals: Totals, stuck: bool
) -> tuple[list[Answer], str | None]:
    """What came of the exceptions that one program's instruction got, and the kernel's line about it.

    `threads`: numbers by which the kernel may name the program, empty: any; `stuck`: it was ended for a livelock.
    """
    found: list[Answer] = []
    said: str | None = None
    places = (entry.pc, entry.pc + entry.length)
    for answer, lines in (("warned", console.warned), ("sigbus", console.killed)):
        for (pid, place), line in lines.items():
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
    if entry.hits:
        found.append("executed")
    elif stuck and entry.trapped_at:
        found.append("livelock")
    if not entry.hits and totals.resets > 1 and entry.trapped_at:
        found.append("reboot")
    return found or ["never executed"], said


def _lines(pattern: re.Pattern[bytes], text: bytes) -> list[tuple[str, tuple[bytes, ...]]]:
    found = []
    for match in pattern.finditer(text):
        end = text.find(b"\n", match.end())
        found.append((_plain(text[match.start() : end if end >= 0 else len(text)]), match.groups()))
    return found


def _plain(line: bytes) -> str:
    return _PREFIX.sub(b"", line.strip()).decode("utf-8", "replace")
