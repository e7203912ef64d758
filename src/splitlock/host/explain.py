"""What does one line of the kernel's mean? From the bare address to image, function, source line and instruction."""

from __future__ import annotations

from splitlock.host import tasks
from splitlock.host.space import Live, Saved
from splitlock.report.watch import Event, Place
from splitlock.x86 import logged
from splitlock.x86.locked import split_size
from splitlock.x86.privileged import spell

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.host.space import Found
    from splitlock.linux.log import Line

_BEFORE = 64  # bytes looked at where no function's start is known
_FUNCTION = 1 << 16  # bytes that a function may have before the address
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


def explain(line: Line, space: Saved | None = None, *, live: bool = True, time: str | None = None) -> Event:
    """A line with all that is known of it.

    `space`: where to look the address up; None: in the task's own memory, where `live` says that the line is of this
    machine and boot, and the task is still there.
    """
    made = event(line, time)
    if line.kind not in _CODE:
        return made
    if line.address is None:
        made.note = "the address was taken out of the line"
        return made
    if space is None and live:
        made.process = tasks.process(line.pid, line.comm)
        if made.process is None:
            made.note = "the task has ended: nothing is known of its memory"
            return made
        try:
            space = Live(line.pid)
        except OSError as error:
            made.note = f"the task's memory cannot be looked at: {error.strerror or error}"
            return made
    vmm = (made.process and made.process.vmm) or tasks.vmm_by_name(line.comm)
    if space is None:
        made.guest = made.guest or vmm is not None
        made.note = _unknown(made, vmm)
        return made
    found = space.find(line.address) or (space.find(line.address - 1) if line.exception == "#DB" else None)
    if found is not None:
        made.place = _place(found, line.address, line.exception, space)
    # A virtual processor's thread that has such an instruction of its own there is taken at that word.
    own = made.place is not None and made.place.instruction is not None
    made.guest = line.kind == "guest" or (vmm is not None and not own)
    if made.guest:
        made.place = None
        made.note = _unknown(made, vmm)
    elif made.place is None:
        made.note = space.nothing
    elif made.place.instruction is None:
        made.note = "no locked instruction there: other code lies there now, or the address is another address space's"
    return made


def _unknown(made: Event, vmm: str | None) -> str:
    if vmm is None and not made.guest:
        return "the address alone: say where the code was mapped (--pid, --maps, or --image and --base)"
    whose = f" of {made.process.vm}" if made.process and made.process.vm else ""
    likely = "" if tasks.vcpu_thread(made.comm) or made.kind == "guest" else "most likely "
    return f"{likely}an address in the guest{whose}, not {vmm or 'the VMM'}'s own: look inside it"


def _place(found: Found, address: int, exception: str, space: Saved) -> Place:
    """The code at a logged address. Memory is what ran; the file stands in where memory is not to be had."""
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
        code = space.read(address, 15) or (image.read(first, 15) if image and first is not None else b"")
        instruction, certain = logged.at(code, here, found.bits), True
    back = instruction.len if instruction and exception == "#DB" else 0
    place = None if first is None else first - back
    frames = image.frames(place) if image and place is not None else []
    named = frames[0] if frames else None
    return Place(
        image=found.name,
        offset=None if place is None else f"{place:#x}",
        build_id=image.build_id if image else None,
        function=named.function if named else None,
        source=next((frame.source for frame in frames if frame.source), None),
        instruction=spell(instruction) if instruction else None,
        instruction_address=f"{address - back:#x}" if instruction else None,
        operand_size=split_size(instruction) if instruction else None,
        certain=certain,
    )
