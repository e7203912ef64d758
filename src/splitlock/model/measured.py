"""What does the model say of a guest that `splitlock matrix --vmx` measures, and is it what came?

The model's guests are systems; those that are measured are a few instructions. What an exception does that reaches one
of them is the processor's: a handler gets it, and where there is none it is a triple fault, or in real mode whatever
lies behind an empty vector (SDM volume 3, interrupts 8 and 17; "Real-Address Mode Operation").
"""

from __future__ import annotations

import re

from splitlock.linux.often import Heard
from splitlock.model.cpu import Access, Processor
from splitlock.model.guest import Guest
from splitlock.model.kernel import Linux, Locks, guest_split_lock
from splitlock.model.machine import VM, Host, Result, inside
from splitlock.report.lines import count
from splitlock.report.matrix_vmx import Simulated

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from splitlock.linux.hypervisors import Kind
    from splitlock.model.kernel import Answer
    from splitlock.report.matrix_vmx import Cell, Outcome

_PROCESSOR = Processor(split_locks=True)
_ACCESSES = {
    "real": Access("kernel", bits=16),
    "kernel": Access("kernel"),
    "user": Access(),
    "am": Access(),
    "ac": Access(ac=True, am=False),
    "asked": Access(ac=True),
    "linux_user": Access(),
    "linux_module": Access("kernel"),
}
#: How the model calls them. A kernel that does not know what its processor detects is KVM's as it was before its fix:
#: vmx_guest_inject_ac() asks first whether the kernel has split-lock detection, and injects where it has not.
_HYPERVISORS: dict[str, Kind] = {"kvm": "kvm", "forward": "unmarked", "through": "tdx", "off": "unmarked"}
_LINUX: dict[str, Outcome] = {"oops": "oops", "panic": "panic", "livelock": "livelock", "sigbus": "sigbus"}
_NUMBERS = re.compile(r"(?<=/)\d+|0x[0-9a-f]+|(?<=\[)\d+(?=\])")
_WAITED = (
    14_000_000  # ns more than a guest needs that does not wait: the kernel's line itself takes 8 ms on a serial console
)


def simulate(cells: Iterable[Cell]) -> None:
    """Fill `simulated` and `differs` of cells, those of one kernel and mode in the order of their measurement."""
    boots: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        if cell.outcome not in ("not-tried", "impossible"):
            boots.setdefault((cell.kernel, cell.mode), []).append(cell)
    for some in boots.values():
        heard = Heard()
        least = min((cell.nanoseconds for cell in some if cell.nanoseconds is not None and not cell.log), default=None)
        for pid, cell in enumerate(some):
            cell.simulated = _simulated(cell, pid, heard)
            # a Linux guest tells the time of the lock alone, by its own clock
            cell.differs = _differences(cell, 0 if cell.guest.startswith("linux_") else least)


def _simulated(cell: Cell, pid: int, heard: Heard) -> Simulated | None:
    """None: the model has no such event."""
    access = _ACCESSES.get(cell.guest.removesuffix("_idt"))
    if access is None:
        return None
    linux = Linux.of(cell.kernel, "warn" if cell.mode == "unaware" else cell.mode)
    host = Host(_PROCESSOR, linux, disabled=cell.hypervisor == "off")
    locks = Locks(comm="vmm" if cell.hypervisor == "kvm" else f"blind_{cell.hypervisor}", pid=pid, heard=heard)
    if cell.hypervisor == "handle":
        return _asked(cell, host, locks)
    guest = Linux.of(cell.kernel) if cell.guest.startswith("linux_") else None
    kind = _HYPERVISORS[cell.hypervisor]
    if kind == "kvm" and cell.mode == "unaware":
        kind = "kvm-2020"
    found = inside(host, VM((kind,), Guest(guest)), access, locks)
    ours = [step.log for step in found.steps if step.who == "host kernel" and step.lines]
    return Simulated(
        outcome=_outcome(cell, found), delayed=any(step.milliseconds for step in found.steps), log="".join(ours)
    )


def _asked(cell: Cell, host: Host, locks: Locks) -> Simulated:
    """A hypervisor that leaves each `#AC` to the kernel; where nothing is detected there is none."""
    if not host.core.test_ctrl:
        return Simulated(outcome="completed", delayed=False, log="")
    linux = host.linux._replace(value="off") if cell.mode == "unaware" else host.linux
    answer: Answer = guest_split_lock(linux, host.processor, locks)
    killed = answer.fate == "sigbus"
    return Simulated(
        outcome="sigbus" if killed else "completed", delayed=bool(answer.milliseconds),
        log=answer.log if answer.lines else "",
    )  # fmt: skip


def _outcome(cell: Cell, found: Result) -> Outcome:
    if found.victim == "virtual machine":
        return "sigbus"
    if not found.victim:
        return "completed"
    if cell.guest.startswith("linux_"):
        return _LINUX[found.fate]
    if cell.guest.endswith("_idt"):
        return "handled"
    return "derailed" if cell.guest == "real" else "triple-fault"


def _differences(cell: Cell, least: int | None) -> list[str]:
    """`least`: nanoseconds that a guest took that nobody kept waiting."""
    said = cell.simulated
    if said is None:
        return []
    if said.outcome != cell.outcome:
        return [f"{cell.outcome}, simulate: {said.outcome}"]
    found = []
    if cell.executed is not None and cell.executed != (cell.outcome == "completed"):
        found.append(f"the split lock was executed {count(cell.executed, 'time')}")
    if cell.nanoseconds is not None and least is not None and cell.outcome == "completed":
        waited = cell.nanoseconds - least >= _WAITED
        if waited != said.delayed:
            found.append("waited" if waited else "did not wait")
    lines = [_plain(line) for line in cell.log]
    if said.log and _plain(said.log) not in lines:
        found.append("simulate logs a line, the kernel does not" if not lines else f"simulate logs: {said.log}")
    if not said.log and lines:
        found.append("the kernel logs a line, simulate does not")
    return found


def _plain(line: str) -> str:
    """Without process numbers and addresses. (A task's name has 15 characters: blind_handle_idt is cut.)"""
    return re.sub(r"blind_handle\w*", "blind_handle", _NUMBERS.sub("N", line))
