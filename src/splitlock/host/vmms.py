"""Which programs run virtual machines now? By /proc, or by a list of processes; and is that list the whole machine's?

`none` is said only of a list that is whole: kthreadd, which is process 2 of every machine (kernel/rest_init in
init/main.c), is in no container's list, and not in one from which other users' processes are hidden (hidepid, proc(5)).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from splitlock.host import tasks
from splitlock.linux.text import number
from splitlock.report.status import Vmm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.host.root import Root

_PS = ("ps", *(f"sos_commands/process/ps_{how}" for how in ("auxwwwm", "auxwww", "alxwww")))
_AUX = "USER PID %CPU %MEM VSZ RSS TTY STAT START TIME COMMAND"
_TREE = re.compile(r"^[|\s]*\\_ ")  # ps axf
_HIDDEN = (
    "not all processes can be seen: other users' are hidden, or a container has a list of its own; run it on the host, "
    "as root"
)
_KTHREADD = "kthreadd"


class Found(NamedTuple):
    """What runs virtual machines."""

    vmms: list[Vmm] | None  #: None: that is not known
    why: str  #: why not, or why there may be more; may be empty


def vmms(root: Root) -> Found:
    """The programs that run virtual machines."""
    found, whole = _processes(root)
    text = None if found or whole else root.text(*_PS)
    if text is not None:
        found, whole = _listed(text)
    elif not whole and not any(number(name) is not None for name in root.names("proc")):
        return Found(None, "no list of processes is there")
    if not whole:
        return Found(found or None, _HIDDEN)
    return Found(found, "")


def _processes(root: Root) -> tuple[list[Vmm], bool]:
    """Those of /proc, and whether it is the whole machine's."""
    found, whole = [], False
    hidden = False
    for pid in map(number, root.names("proc")):
        if pid is None:
            continue
        process = tasks.process(pid, root=root)
        if process is None:
            hidden = hidden or root.exists(f"proc/{pid}")  # else it has ended
        elif process.vmm:
            found.append(Vmm(pid=process.pid, name=process.vmm, vm=process.vm))
        else:
            hidden = hidden or tasks.descriptors_hidden(pid, root)
        whole = whole or (pid == 2 and process is not None and tasks.name(pid, root) == _KTHREADD)
    return found, whole and not hidden


def _listed(text: str) -> tuple[list[Vmm], bool]:
    """Those that ps(1) lists, whatever its columns: the command is the last; and whether the list is whole."""
    first, *lines = text.splitlines() or [""]
    head = first.split()
    if "PID" not in head:
        head, lines = _AUX.split(), [first, *lines]
    at, last = head.index("PID"), len(head) - 1
    found, whole = [], False
    for line in lines:
        words = line.split(None, last)
        pid = number(words[at]) if len(words) > last else None
        if pid is None:
            continue
        command = _TREE.sub("", words[last]).split() or [""]
        whole = whole or (pid == 2 and command[0].strip("[]") == _KTHREADD)
        if vmm := tasks.vmm_by_name(command[0].rpartition("/")[2]):
            found.append(Vmm(pid=pid, name=vmm, vm=tasks.vm_name(command, "", vmm)))
    return found, whole
