"""What became of a guest, from what its hypervisor told? KVM's exits: linux/kvm.h; VMX's: SDM vol. 3, appendix C."""

from __future__ import annotations

import errno
import signal

from splitlock.guest.matrix.log import Log
from splitlock.guest.matrix.measure import outcome_of
from splitlock.report.matrix_vmx import Cell, Signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.guest.matrix.guests import Pair
    from splitlock.guest.matrix.log import Told
    from splitlock.report.matrix import End
    from splitlock.report.matrix_vmx import Mode, Outcome, Side

    Fields = dict[str, int | str]

_KVM_EXCEPTION, _KVM_IO, _KVM_SHUTDOWN = 1, 2, 8
_AC, _LINUX = 17, "linux_"
_STUCK = 20  # exceptions: who has so many, and nothing else, is in a livelock; Linux waits some 20 ms after each
_SAID: dict[int, Outcome] = {1: "completed", 2: "derailed", 0x80 + 13: "gp", 0x80 + 17: "handled"}  # inside/vmm.c
_BLIND: dict[str, Outcome] = {
    "completed": "completed", "handled": "handled", "triple-fault": "triple-fault", "livelock": "livelock",
}  # fmt: skip
_INSTRUCTION = {0x80 + 13: 0x100C, 0x80 + 17: 0x1000}  # vmm.c: where WRMSR is, and the split lock
_SPLIT = 4  # blind.c: how far behind the guest's first instruction


def cell(
    pair: Pair, told: Told, end: End, *, kernel: str, mode: Mode, boot: int, processor: Side | None
) -> Cell:  # fmt: skip
    """The cell; `end`: how the boot ended."""
    made = Cell(
        kernel=kernel, mode=mode, hypervisor=pair.hypervisor, guest=pair.guest, outcome="other", boot=boot,
        warnings=told.warnings, log=told.log, processor=processor,
    )  # fmt: skip
    ends = told.said("end")
    killed = _whole(ends[0], "killed") if ends else 0
    if told.panic or told.oops:
        made.outcome = "panic" if told.panic else "oops"
    elif not ends and end != "done":
        made.outcome = "hang" if end == "hang" else "reset"
    elif (refused := _refused(told)) is not None:
        made.outcome, made.reason = "not-tried", refused
    elif pair.guest.startswith(_LINUX):
        _of_linux(made, told)
    elif pair.hypervisor == "kvm":
        _of_kvm(made, told)
    else:
        _of_blind(made, told, killed)
    return made


def _refused(told: Told) -> str | None:
    """Why the guest was not even entered."""
    for what in ("unavailable", "failed", "loaded"):
        for fields in told.said(what):
            if number := _whole(fields, "errno"):
                return f"{fields.get('step', what)}: {errno.errorcode.get(number, number)}"
    return None


def _of_kvm(made: Cell, told: Told) -> None:
    exits, took = told.said("exit"), told.said("took")
    if not exits or not took:
        made.reason = "the VMM said nothing of its guest"
        return
    fields, reason, value = exits[0], _whole(exits[0], "reason"), _whole(exits[0], "value")
    made.nanoseconds, made.executed, made.exit = _whole(took[0], "ns"), _whole(took[0], "executed"), reason
    made.signal = _signal(told)
    if reason == _KVM_IO:
        made.outcome = _SAID.get(value, "other")
        if value & 0x80:
            made.error, made.at_instruction = _whole(fields, "error"), _whole(fields, "ip") == _INSTRUCTION.get(value)
    elif reason == _KVM_SHUTDOWN:
        made.outcome = "triple-fault"
    elif reason == _KVM_EXCEPTION and value == _AC and made.signal and made.signal.number == signal.SIGBUS:
        made.outcome, made.error = "sigbus", _whole(fields, "error")
    if made.outcome == "other":
        made.reason = f"KVM's exit {reason}, {value:#x}"


def _of_linux(made: Cell, told: Told) -> None:
    """A Linux guest: what its own init and kernel say, as of a machine that is not virtual; or its VMM was stopped."""
    exits = told.said("exit")
    if not exits:
        made.reason = "the VMM said nothing of its guest"
        return
    fields, made.exit = exits[0], _whole(exits[0], "reason")
    inner = Log("\n".join(told.guest).encode()).kinds
    made.signal = _signal(told)
    if made.exit == _KVM_EXCEPTION and _whole(fields, "value") == _AC and made.signal:
        made.outcome = "sigbus"
    elif not inner:
        made.reason = f"the guest did not come up: KVM's exit {made.exit}"
        return
    else:
        end: End = "hang" if fields.get("late") else "done" if fields.get("over") else "reset"
        found, made.reason = outcome_of(inner[0], end)
        stuck = found == "hang" and made.processor is not None and made.processor.traps > _STUCK
        made.outcome = "livelock" if stuck else "other" if found == "killed" else found
    if inner and (took := inner[0].said("took")):
        made.nanoseconds, made.executed = _whole(took[0], "ns"), _whole(took[0], "executed")
    made.guest_log = inner[0].log if inner else []


def _signal(told: Told) -> Signal | None:
    """The one that the VMM got."""
    if not (said := told.said("signal")):
        return None
    fields = said[0]
    return Signal(number=_whole(fields, "number"), code=_whole(fields, "code"), address=hex(_whole(fields, "address")))


def _of_blind(made: Cell, told: Told, killed: int) -> None:
    lines = told.said("blind")
    if not lines:
        made.reason = "blind.ko said nothing of its guest"
        return
    fields, word = lines[0], str(lines[0].get("end"))
    made.executed, made.exit = _whole(fields, "executed"), _whole(fields, "reason")
    if word == "stopped" and killed == signal.SIGBUS:
        made.outcome = "sigbus"
    else:
        made.outcome = _BLIND.get(word, "other")
    if made.outcome == "handled":
        made.error = _whole(fields, "handler-error")
        made.at_instruction = _whole(fields, "handler-ip") == _SPLIT
    if made.outcome == "other":
        made.reason = f"blind.ko: {word}"


def _whole(fields: Fields, name: str) -> int:
    value = fields.get(name, 0)
    return value if isinstance(value, int) else 0
