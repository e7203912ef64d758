"""What do the kernel's log lines about split locks say? All spellings since 5.7.

The words: arch/x86/kernel/cpu/intel.c (bus_lock.c since 6.13): split_lock_warn, handle_guest_split_lock,
handle_bus_lock, sld_state_show; traps.c: show_signal (`traps: ...`) and exc_alignment_check (`Split lock detected`);
lib/ratelimit.c (`callbacks suppressed`); kernel/printk (`printk messages dropped`); systemd's journald-kmsg.c (`Missed
N kernel messages`).
"""

from __future__ import annotations

import re
from collections import namedtuple

PREFIX = "x86/split lock detection: "

#: One line. `kind`:
#:   trap        a task took a split or bus lock and went on
#:   guest       a guest's `#AC` that the host's mode does not let go on: SIGBUS for the VMM. `detail`: fatal, bogus
#:   killed      SIGBUS after `#AC`: mode fatal, or the task asked for alignment checks. `detail`: `in FILE[...]`
#:   mode        what is said at boot; `detail`: off, warn, fatal, ratelimit:N, or empty: something else
#:   oops        a split lock in kernel mode
#:   suppressed  `number` lines held back by a rate limit, or not said by `detail` of which kind they were
#:   lost        `number` records of any kind lost on the way
#: `exception`: #AC, #DB or empty. `pid`: the task's, as the kernel's current->pid has it: a thread's.
#: `address`: as logged; None where somebody took it out. `text`: without what came before it; `stamp`: that.
Line = namedtuple("Line", "kind exception comm pid address number detail text stamp")

# A name is 15 bytes of whatever its owner likes, slashes and blanks among them: `CPU 1/KVM/3302738 took`.
_TRAP = re.compile(
    r"#(AC|DB): (.{0,60})/(\d+) (took a|fatal|bogus) (?:split|bus)_lock trap at address: ?(0x[0-9a-f]+)?"
)
_KILLED = re.compile(
    r"traps: (.{0,60})\[(\d+)\] trap alignment check ip:([0-9a-f]+) sp:[0-9a-f]+ error:[0-9a-f]+( in .*)?"
)
_OOPS = re.compile(r"Split lock detected ?: [0-9a-f]{4} \[#\d+\]")
_SUPPRESSED = re.compile(r"(split_lock_warn|handle_bus_lock|show_signal(?:_msg)?): (\d+) callbacks suppressed")
_LOST = re.compile(r"(?:\*\* (\d+) printk messages dropped|[Mm]issed (\d+) kernel messages)")
_RATE = re.compile(r"rate limit to (\d+)/sec")
_NEEDLES = ("lock detect", "trap alignment check", "callbacks suppressed", " messages dropped", "issed ")
_MODES = (
    ("disabled", "off"),  # 5.7 and later; also the posted `disabled due to VMLAUNCH in module: NAME`
    ("MSR access failed: Disabled", "off"),
    ("warning about user-space split_locks", "warn"),  # 5.7 to 5.12: before there were bus locks
    ("sending SIGBUS on user-space split_locks", "fatal"),
    ("#AC: crashing the kernel on kernel split_locks and warning on", "warn"),
    ("#AC: crashing the kernel on kernel split_locks and sending SIGBUS on", "fatal"),
    ("#DB: warning on user-space bus_locks", "warn"),
    ("#DB: sending SIGBUS on user-space bus_locks", "fatal"),
)


def parse(text: str) -> Line | None:
    """What a line says of split locks; None: nothing. `text` may begin with whatever a logger puts there."""
    if not any(needle in text for needle in _NEEDLES):  # a million other lines a minute
        return None
    at = text.find(PREFIX)
    if at >= 0:
        return _ours(text[at + len(PREFIX) :].strip(), text[:at].strip())
    if match := _KILLED.search(text):
        comm, pid, address, place = match.groups()
        return _line(match, text, "killed", "#AC", comm, int(pid), int(address, 16), detail=(place or "").strip())
    if match := _OOPS.search(text):
        return _line(match, text, "oops", "#AC")
    if match := _SUPPRESSED.search(text):
        exception = {"split_lock_warn": "#AC", "handle_bus_lock": "#DB"}.get(match[1], "")
        return _line(match, text, "suppressed", exception, number=int(match[2]), detail=match[1])
    if match := _LOST.search(text):
        return _line(match, text, "lost", "", number=int(match[1] or match[2]))
    return None


def _ours(words: str, stamp: str) -> Line | None:
    """A line after the prefix."""
    if match := _TRAP.match(words):
        exception, comm, pid, verb, address = match.groups()
        kind, detail = ("trap", "") if verb == "took a" else ("guest", verb)
        place = int(address, 16) if address else None
        return Line(kind, f"#{exception}", comm, int(pid), place, 1, detail, words, stamp)
    exception = words[:3] if words[:3] in ("#AC", "#DB") else ""
    rate = _RATE.search(words)
    mode = f"ratelimit:{rate[1]}" if rate else next((mode for start, mode in _MODES if words.startswith(start)), "")
    return Line("mode", exception, "", 0, None, 1, mode, words, stamp)


def _line(
    match: re.Match[str], text: str, kind: str, exception: str, comm: str = "", pid: int = 0,
    address: int | None = None, *, number: int = 1, detail: str = "",
) -> Line:  # fmt: skip
    return Line(kind, exception, comm, pid, address, number, detail, match[0], text[: match.start()].strip())
