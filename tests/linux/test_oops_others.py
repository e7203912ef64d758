"""Other dumps within an oops's: at no place do they become its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from linux.test_oops import lines, one

if TYPE_CHECKING:
    from splitlock.linux.dump import Dump

_HUNG = """\
INFO: task foo:12 blocked for more than 120 seconds.
      Not tainted 6.12.9 #1
"echo 0 > /proc/sys/kernel/hung_task_timeout_secs" disables this message.
task:foo             state:D stack:0     pid:12    tgid:12    ppid:2      flags:0x00004000
Call Trace:
 <TASK>
 theirs_open+0x10/0x200 [theirs]
 vfs_open+0x10/0x20
RIP: 0033:0x7f0000001234
RAX: ffffffffffffffda RBX: 1111111111111111 RCX: 2222222222222222
 </TASK>"""
_CUT = "------------[ cut here ]------------\nWARNING: CPU: 1 PID: 77 at kernel/foo.c:12 theirs+0x10/0x20"
_NEWER = "------------[ cut here ]------------\nWARNING: kernel/foo.c:12 at theirs+0x10/0x20, CPU#1: other/77"
_LOCKUP = "watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [other:77]"
_NMI = "NMI backtrace for cpu 1"


def body(head: str, *, modules: bool = True, end: bool = True) -> list[str]:
    """The lines of a real dump under another head, as another task's; with functions of its own."""
    real = [line.partition("] ")[2] for line in lines("6.12-skb")]
    first, last = 2, next(number for number, line in enumerate(real) if line.startswith("---[ end"))
    listed = [line for line in real[first:last] if line.startswith("Modules linked")]
    rest = [line for line in real[first:last] if line not in listed]
    rest = [line.replace("PID: 143", "PID: 77").replace("CPU: 0", "CPU: 1") for line in rest]
    rest = [line.replace("splitoops_init", "theirs_init").replace("skb_clone", "theirs") for line in rest]
    rest = [line.replace("ffff8880", "ffff9990") for line in rest]
    return [*head.splitlines(), *(listed if modules else []), *rest, *(real[last : last + 1] if end else [])]


OTHERS = {
    "hung": _HUNG.splitlines(), "warning": body(_CUT), "newer": body(_NEWER), "lockup": body(_LOCKUP, end=False),
    "nmi": body(_NMI, modules=False, end=False),
}  # fmt: skip


def own(dump: Dump, full: Dump) -> None:
    """Nothing of the dump is another's."""
    assert dump.place == full.place
    assert dump.code == full.code
    assert dump.registers == full.registers
    assert dump.modules == full.modules
    assert (dump.cpu, dump.pid, dump.release) == (full.cpu, full.pid, full.release)
    assert all(frame in full.frames for frame in dump.frames)


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("name", ["6.12-module", "6.1-timer", "7.2-mutex", "xdp-7.1.8"])
def test_another_dump_anywhere(name: str, other: str) -> None:
    whole = lines(name)
    full = one(whole)
    end = next(number for number, line in enumerate(whole) if "---[ end trace" in line)
    for at in range(2, end + 1):
        theirs = [f"[   14.1] {line}" for line in OTHERS[other]]
        dump = one([*whole[:at], *theirs, *whole[at:]])
        own(dump, full)
        assert dump.frames == full.frames, at
        assert dump.mixed
        assert dump.panic == full.panic
        assert dump.ended == full.ended


@pytest.mark.parametrize("name", ["6.12-module", "xdp-7.1.8"])
def test_a_second_trace_alone(name: str) -> None:
    """Its first lines were lost."""
    whole = lines(name)
    full = one(whole)
    start = next(number for number, line in enumerate(whole) if "Call Trace:" in line)
    end = next(number for number, line in enumerate(whole) if "Modules linked in" in line)
    for at in range(start + 2, end):
        own(one([*whole[:at], *OTHERS["hung"][4:], *whole[at:]]), full)


def test_a_trace_that_does_not_say_where_it_ends_takes_the_rest() -> None:
    """Callers are left out rather than made up."""
    whole = lines("xdp-7.1.8")
    full = one(whole)
    start = next(number for number, line in enumerate(whole) if "Call Trace:" in line)
    theirs = [line for line in OTHERS["hung"] if "TASK>" not in line]
    dump = one([*whole[: start + 4], *theirs, *whole[start + 4 :]])
    own(dump, full)
    assert dump.frames == full.frames[: len(dump.frames)]


def test_lines_that_dump_nothing_change_nothing() -> None:
    whole = lines("6.12-module")
    assert not one(whole).mixed
    for word in ("usb 1-1: WARNING: odd descriptor, 9 bytes", "systemd[1]: task done", "audit: INFO: x"):
        mixed = [record for line in whole for record in (line, f"[   14.1] {word}")]
        assert one(mixed[:1] + mixed[2:]) == one(whole)
