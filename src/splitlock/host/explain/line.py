"""What does one line of the kernel's mean? From the bare address to image, function, source line and instruction."""

from __future__ import annotations

import re

from splitlock.host import tasks
from splitlock.host.explain import reasons
from splitlock.host.explain.likely import begins
from splitlock.host.explain.reasons import Reason
from splitlock.host.explain.space import Live, Saved, frames
from splitlock.report.frames import own
from splitlock.report.watch import Event, Place
from splitlock.x86 import logged
from splitlock.x86.locked import locked_size
from splitlock.x86.privileged import spell

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.host.explain.space import Found
    from splitlock.linux.log import Line

_BEFORE = 64  # bytes looked at where no function's start is known
_FUNCTION = 1 << 16  # bytes that a function may have before the address
_LONGEST = 15  # bytes of an instruction
_KERNEL_HALF, _USER_HALF = 1 << 63, 1 << 56  # the second with five levels of page tables, the most there is
_STAMP = re.compile(r"\[ *(\d{1,9}\.\d{6})\]")  # of the kernel's own: seconds since the boot
_CODE = ("trap", "guest", "killed")  # kinds that have an address


def event(line: Line, time: str | None = None) -> Event:
    """A line as an event, with nothing looked up."""
    return Event(
        kind=line.kind,
        exception=line.exception,
        time=time,
        stamp=line.stamp,
        text=line.text,
        comm=line.comm,
        tid=line.pid or None,
        address=None if line.address is None else f"{line.address:#x}",
        number=line.number,
        detail=line.detail,
        guest=line.kind == "guest" or (line.kind == "trap" and tasks.vcpu_thread(line.comm)),
    )


def explain(
    line: Line,
    space: Saved | None = None,
    *,
    live: bool = True,
    time: str | None = None,
    since_boot: float | None = None,
) -> Event:
    """A line with all that is known of it.

    `space`: where to look the address up; None: in the task's own memory, where `live` says that the line is of this
    machine and boot, and the task is still there. `since_boot`: the line's seconds by the kernel's clock, where it does
    not say them itself.
    """
    made = event(line, time)
    if line.kind not in _CODE:
        return made
    if line.address is None:
        return _because(made, reasons.no_address())
    why = reasons.alone()
    if space is None and live:
        own = _own(made, line, since_boot)
        space, why = (own, why) if isinstance(own, Saved) else (None, own)
    vmm = (made.process and made.process.vmm) or tasks.vmm_by_name(line.comm)
    found = space and _found(space, line)
    if found and space:
        made.place, reason = _place(found, line.address, line.exception, space)
        if made.place.instruction is not None and line.kind != "guest":
            # A virtual processor's thread that has such an instruction of its own there is taken at that word.
            made.guest = False
            return _because(made, reason) if reason else made
        why = reason or why
    elif space:
        why = space.nothing(line.address)
    if made.guest or vmm is not None:
        made.guest, made.place = True, None
        return _because(made, _guest(made, vmm))
    return _because(made, _nowhere(made, line.address) or why)


def _because(made: Event, reason: Reason) -> Event:
    made.cause = reason.cause
    made.note = f"{made.note}; {reason.note}" if made.note else reason.note
    return made


def _own(made: Event, line: Line, since_boot: float | None) -> Saved | Reason:
    """The memory of the line's own task, or why it is not to be had."""
    now = tasks.name(line.pid)
    process = tasks.process(line.pid)
    if now is None or process is None:
        slowed = line.kind == "trap" and line.exception == "#AC"
        file = line.mapped.file if line.mapped else None
        return reasons.gone(line.comm, line.pid, slowed=slowed, file=file, apart=tasks.numbered_apart())
    stamp = _STAMP.search(line.stamp)
    seconds = float(stamp[1]) if stamp else since_boot
    younger = tasks.began_after(line.pid, seconds) if seconds is not None else None
    if younger or (now != line.comm and younger is None and line.comm not in tasks.known_as(process)):
        return reasons.another(line.comm, line.pid, now, younger=bool(younger))
    made.process = process
    if now != line.comm:
        made.note = reasons.renamed(line.pid, now)
    try:
        return Live(line.pid)
    except PermissionError:
        return reasons.not_permitted(line.comm, line.pid)
    except OSError:
        return reasons.gone(line.comm, line.pid, slowed=False, file=None)


def _found(space: Saved, line: Line) -> Found | None:
    """What is at the address; after a trap the instruction may be the last one before it."""
    assert line.address is not None
    return space.find(line.address) or (space.find(line.address - 1) if line.exception == "#DB" else None)


def _nowhere(made: Event, address: int) -> Reason | None:
    """Why no program has code at an address, whichever it is; None: one may."""
    if address >= _KERNEL_HALF:
        made.guest = made.exception == "#AC" and made.kind == "trap"
        return reasons.kernel_address(made.comm, guest=made.guest)
    return reasons.no_code_address() if address >= _USER_HALF else None


def _guest(made: Event, vmm: str | None) -> Reason:
    whose = f" of {made.process.vm}" if made.process and made.process.vm else ""
    likely = "" if tasks.vcpu_thread(made.comm) or made.kind == "guest" else "most likely "
    return Reason("guest", f"{likely}an address in the guest{whose}, not {vmm or 'the VMM'}'s own: look inside it")


def _place(found: Found, address: int, exception: str, space: Saved) -> tuple[Place, Reason | None]:
    """The code at a logged address, and why no more is known of it. Memory is what ran; else the file stands in."""
    image = found.loaded
    first = found.address  # as the file has it
    here = address if first is None else first
    if exception == "#DB":
        start = image.start(first) if image and first is not None else None
        length = min(first - start, _FUNCTION) if start is not None and first is not None and first > start else _BEFORE
        whole = start is not None and first is not None and length == first - start
        code = space.read(address - length, length)
        if len(code) != length and image and first is not None:
            code = image.read_before(first, length)
            whole = whole and len(code) == length
        instruction, certain = logged.before(code, here, found.bits, start=whole)
    else:
        code = space.read(address, _LONGEST) or (image.read(first, _LONGEST) if image and first is not None else b"")
        instruction, certain = logged.at(code, here, found.bits), True
        if (
            image
            and first is not None
            and (start := image.start(first + 1)) is not None
            and not begins(image, start, first)
        ):
            instruction = None  # in the middle of another one: no fault of this file's code has such an address
    back = instruction.len if instruction and exception == "#DB" else 0
    place = None if first is None else first - back
    known = frames(image, place) if image and place is not None else []
    front = own(known)
    made = Place(
        image=found.name,
        offset=None if place is None else f"{place:#x}",
        build_id=image.build_id if image else None,
        function=front.function if front else None,
        source=front.source if front else None,
        frames=known,
        instruction=spell(instruction) if instruction else None,
        instruction_address=f"{address - back:#x}" if instruction else None,
        operand_size=locked_size(instruction) if instruction else None,
        certain=certain,
    )
    why = _why(found, space, read=bool(code), locked=instruction is not None)
    return made, why or (reasons.unread(image.trouble) if image and image.trouble else None)


def _why(found: Found, space: Saved, *, read: bool, locked: bool) -> Reason | None:
    """Why no more is known of what was found."""
    if locked:
        return found.missing if found.missing and found.missing.cause in reasons.OF_FILES else None
    if not read:
        return found.missing or space.other(found)
    return space.other(found) if found.executable else reasons.not_executable(found.name)
