"""What does a kernel's oops by a split lock mean? The instruction, its operand, whose code it is, and whom to tell.

Everything comes from the dump's own lines; files (`Files`) add source lines, and code that the kernel could not read.
"""

from __future__ import annotations

from typing import NamedTuple

from iced_x86 import Decoder, Instruction, Register, RegisterExt

from splitlock.host.oops.words import blamed, foreign, outside, report_to, sentences, summary, whose
from splitlock.linux.dump import Dump
from splitlock.linux.dump import Frame as Dumped
from splitlock.report import oops as report
from splitlock.x86.lines import crosses, past_line
from splitlock.x86.locked import bit_offset_register, operand_address, segment_register, split_size
from splitlock.x86.privileged import spell

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.host.oops.files import Files
    from splitlock.host.oops.image import Code

_GENERAL = ("RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R08", "R09", "R10", "R11", "R12", "R13", "R14",
            "R15")  # fmt: skip
_NARROW = ("EAX", "ECX", "EDX", "EBX", "ESP", "EBP", "ESI", "EDI")
_LONGEST = 15  # bytes of an instruction
_INTERRUPTS = frozenset({"IRQ", "NMI", "SOFTIRQ"})


class _Found(NamedTuple):
    """The instruction, its bytes and where they come from; `cut`: the log ends within it."""

    instruction: Instruction
    code: bytes
    source: str
    cut: bool = False


def explain(dump: Dump, files: Files | None = None) -> report.Oops:
    """All that is known of an oops. `files`: code and debug information of the kernel that it comes from."""
    missing: list[str] = []
    code, words = (files.code(dump) if files else None) or (None, "")
    found = _instruction(dump, code)
    operand, fits = _operand(dump, found, code, words, missing)
    to_blame = blamed(dump)
    made = report.Oops(
        detected=dump.head.split,
        inferred=dump.head.lost,
        number=dump.head.number,
        bits=dump.bits,
        place=_frame(dump.place, files, first=True) if dump.place else None,
        instruction=_shown(found, code if found and code and found.source == code.path and code.unfinished else None),
        operand=operand,
        fits=fits,
        frames=[_frame(frame, files) for frame in dump.frames],
        cpu=dump.cpu,
        pid=dump.pid,
        comm=dump.comm,
        work=dump.work,
        interrupt=bool(dump.frames) and dump.frames[0].context in _INTERRUPTS,
        release=dump.release,
        version=dump.version,
        hardware=dump.hardware,
        taint=dump.taint,
        blamed=_frame(to_blame, files, first=to_blame is dump.place) if to_blame else None,
        module_taint=dump.modules.get(to_blame.module, "") if to_blame else "",
        foreign=foreign(dump),
        outside=outside(dump),
        whose=whose(dump),
        ended=dump.ended,
        panic=dump.panic,
        says="",
        means=[],
        report="",
        missing=missing,
    )
    if made.inferred:
        missing.append(
            "why the kernel stopped: the dump's first line is missing, which says it; look for it before this one, in"
            " dmesg, the journal, a serial console's log"
        )
    if made.place is None:
        rest = "has no line with RIP" if _any(dump) else "has nothing of the dump behind its first line"
        missing.append(f"which function it was: the log {rest}")
    if dump.mixed:
        missing.append("whether these are all callers: lines of another dump stand within this one, and were left out")
    if files:
        missing += files.missing(dump)
    made.says, made.means, made.report = summary(made), sentences(made), report_to(made)
    return made


def _shown(found: _Found | None, unfinished: Code | None) -> report.Instruction | None:
    """As text; with the operand's name where the file's bytes do not have its address yet."""
    if found is None or found.cut or found.instruction.is_invalid:
        return None
    name = unfinished.data.name if unfinished and unfinished.data else None
    return report.Instruction(text=spell(found.instruction, name), code=found.code.hex(" "), found_in=found.source)


def _instruction(dump: Dump, code: Code | None) -> _Found | None:
    """What stands at the marked byte; where the log has no code, what the file has there."""
    address = dump.address or (code.address if code else None) or 0
    if dump.at is not None:
        return _decoded(dump.code[dump.at : dump.at + _LONGEST], address, dump.bits, "the log")
    if code is not None and code.raw:
        return _decoded(code.raw, address, dump.bits, code.path)
    return None


def _decoded(raw: bytes, address: int, bits: int, source: str) -> _Found:
    instruction = Decoder(bits, raw, ip=address).decode()
    return _Found(instruction, raw[: instruction.len], source, cut=instruction.is_invalid and len(raw) < _LONGEST)


def _operand(
    dump: Dump, found: _Found | None, code: Code | None, words: str, missing: list[str]
) -> tuple[report.Operand | None, report.Fits]:
    """The operand, and whether it makes a split lock."""
    if found is None:
        missing.append(_no_code(dump))
        return None, "unknown"
    if found.cut:
        missing.append("which instruction it was: the log is cut within the line that begins with Code:")
        return None, "unknown"
    size = split_size(found.instruction)
    if not size:
        return None, "no"
    made = report.Operand(size=size, address=None, past=None, what=words, why="")
    made.why = _not_known(dump, found.instruction, unfinished=code is not None and code.unfinished and not dump.code)
    if not made.why and (address := _address(dump, found)) is not None:
        made.address, made.past = f"{address:#x}", past_line(address, size)
        return made, "yes" if crosses(address, size) else "no"
    if code and code.data and code.data.line is not None:  # where it lies in its line is known all the same
        made.past = past_line(code.data.line, size)
        return made, "yes" if made.past else "no"
    return made, "unknown"


def _no_code(dump: Dump) -> str:
    way = f"--module {dump.place.module}.ko" if dump.place and dump.place.module else "--vmlinux FILE"
    if dump.unreadable:
        return f"which instruction it was: the kernel could not read its own code there; give the file it is in: {way}"
    if dump.code:
        return (
            "which instruction it was: no byte is marked (as <f0>) in the line that begins with Code:, nor is it whole;"
            f" give the log as the kernel wrote it, or the file it is in: {way}"
        )
    if not _any(dump):
        return (
            "which instruction it was: none of the dump's lines follows; give the log from its first line to its last"
            " (`journalctl -r` has it in reverse)"
        )
    return f"which instruction it was: the log has no line that begins with Code:; give the file it is in: {way}"


def _any(dump: Dump) -> bool:
    """Does anything of the dump stand behind its head?"""
    return bool(dump.place or dump.registers or dump.frames or dump.modules or dump.release)


def _names(dump: Dump) -> tuple[str, ...]:
    return _GENERAL if dump.bits == 64 else _NARROW


def _not_known(dump: Dump, instruction: Instruction, *, unfinished: bool) -> str:
    """Why the operand's address cannot be told; empty where it can. `unfinished`: the file's bytes do not tell it."""
    if unfinished:
        return "the module's loader had put it in, and the log has no code"
    if instruction.is_ip_rel_memory_operand and not dump.address:
        return "it is relative to the instruction's own address, which the log does not tell"
    names = _names(dump)
    used = (instruction.memory_base, instruction.memory_index, bit_offset_register(instruction))
    for register in used:
        if register != Register.NONE and names[RegisterExt.number(register)] not in dump.registers:
            return f"the log does not tell {names[RegisterExt.number(register)]}"
    segment = segment_register(instruction)
    if segment == Register.GS and "GS" not in dump.registers:
        return "it is relative to GS, the processor's own data, whose base the log does not tell"
    if segment == Register.FS and dump.bits == 32:
        return "it is relative to FS, the processor's own data, whose base a kernel of 32 bits does not print"
    if segment == Register.FS and "FS" not in dump.registers:
        return "it is relative to FS, whose base the log does not tell"
    return ""


def _address(dump: Dump, found: _Found) -> int | None:
    general = [dump.registers.get(name, 0) for name in _names(dump)]
    bases = dump.registers.get("FS", 0), dump.registers.get("GS", 0)
    return operand_address(found.code, found.instruction.ip, general, *bases, dump.bits)


def _frame(frame: Dumped, files: Files | None, *, first: bool = False) -> report.Frame:
    """A place with its source line. A caller's address is that after its call: the line is that of the byte before."""
    names = files.lines(frame, back=not first) if files else []
    return report.Frame(
        function=frame.symbol,
        offset=None if frame.offset is None else f"{frame.offset:#x}",
        module=frame.module or None,
        reliable=frame.reliable,
        context=frame.context,
        source=(names[0].source if names else None) or frame.source or None,
        inlined=[report.Inlined(function=name.function or "?", source=name.source) for name in names[:-1]],
    )
