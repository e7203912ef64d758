"""An oops explained as text, 80 columns wide: first what it is and what to do, then where, then what is not known."""

from __future__ import annotations

import os

from splitlock.report.lines import count, cut, named, wrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.report.oops import Frame, Inlined, KnownCause, Oops, Operand

_MARGIN, _DEEPER = "    ", "      "
_CALLERS = 8  # shown without --verbose
_TAINTS = {
    "P": "a proprietary module was loaded", "O": "a module from outside Linux was loaded",
    "E": "an unsigned module was loaded", "D": "another oops came before", "W": "a warning came before",
    "M": "a machine check came before", "B": "a bad page came before", "L": "a lockup came before",
    "F": "a module was forced in", "S": "the processor is out of specification", "K": "live patched",
    "C": "a staging driver was loaded", "I": "a firmware bug was worked around",
}  # fmt: skip


def oops_lines(oops: Oops, *, verbose: bool = False) -> list[str]:
    """What follows the line with `oops.says`."""
    lines: list[str] = []
    for sentence in oops.means:
        lines += wrap(sentence, _MARGIN, _MARGIN)
    if oops.report:
        lines += wrap(f"Report it to {oops.report}", _MARGIN, _MARGIN)
    if oops.instruction:
        lines += wrap(oops.instruction.text + _operand(oops.operand), _MARGIN, _DEEPER)
    if oops.place:
        lines += _place(oops.place, _MARGIN, "in ", verbose)
    lines += _callers(oops, verbose)
    lines += wrap(_circumstances(oops), _MARGIN, _DEEPER)
    for missing in oops.missing:
        lines += wrap(f"not known: {missing}", _MARGIN, _DEEPER)
    return lines


def cause_lines(cause: KnownCause) -> list[str]:
    """A known cause."""
    lines = wrap(f"{cause_title(cause)}: {cause.what}", _MARGIN, _DEEPER)
    lines += wrap(f"versions: {cause.versions}", _DEEPER, _DEEPER) if cause.versions else []
    lines += wrap(f"what helps: {cause.fix}", _DEEPER, _DEEPER) if cause.fix else []
    return [*lines, *(f"{_DEEPER}{link}" for link in cause.links)]


def cause_title(cause: KnownCause) -> str:
    """How sure it is."""
    return "known cause" if cause.by == "oops" else "most likely, by its name"


def _operand(operand: Operand | None) -> str:
    if operand is None:
        return ""
    where = f" at {operand.address}" if operand.address else ""
    what = f" ({named(operand.what)})" if operand.what else ""
    lies = ""
    if operand.past:
        lies = f": {operand.size - operand.past} on one cache line, {operand.past} on the next"
    elif operand.past == 0:
        lies = ": all on one cache line"
    why = f"; where they lie is not known: {operand.why}" if operand.past is None and operand.why else ""
    return f"  {count(operand.size, 'byte')}{where}{what}{lies}{why}"


def _place(frame: Frame, margin: str, first: str, verbose: bool) -> list[str]:
    offset = f"+{frame.offset}" if frame.offset else ""
    words = [
        f"{first}{named(frame.function)}{offset}",
        _source(frame.source),
        f"[{named(frame.module)}]" if frame.module else "",
    ]
    lines = wrap("  ".join(filter(None, words)), margin, margin + "  ")
    if frame.inlined:
        lines += wrap(
            f"inlined there: {', from '.join(_inline(each) for each in frame.inlined)}", margin + "  ", margin + "  "
        )
    if verbose and frame.source:
        lines.append(f"{margin}  {named(frame.source)}")
    return lines


def _inline(inlined: Inlined) -> str:
    return f"{named(inlined.function)} {_source(inlined.source)}".rstrip()


def _source(source: str | None) -> str:
    return named(os.path.basename(source)) if source else ""


def _callers(oops: Oops, verbose: bool) -> list[str]:
    """Who called it: in one paragraph, or with `verbose` a line each, with those that are not certain."""
    if verbose:
        return [
            line
            for frame in oops.frames
            for line in _place(frame, _MARGIN, "called by " if frame.reliable else "perhaps by ", verbose)
        ]
    shown = [frame for frame in oops.frames if frame.reliable]
    words, stack = [], shown[0].context if shown else ""
    for frame in shown[:_CALLERS]:
        if frame.context != stack:
            words.append(f"which had interrupted {_named(frame)}")
            stack = frame.context
        else:
            words.append(_named(frame))
    if not words:
        return []
    rest = f", and {count(len(shown) - _CALLERS, 'more caller')} (-v)" if len(shown) > _CALLERS else ""
    return wrap(f"called by {', from '.join(words)}{rest}".replace("from which", "which"), _MARGIN, _DEEPER)


def _named(frame: Frame) -> str:
    return " ".join(
        filter(None, [named(frame.function), _source(frame.source), f"[{named(frame.module)}]" if frame.module else ""])
    )


def _circumstances(oops: Oops) -> str:
    """Task, processor, kernel, in one line."""
    words = []
    if oops.comm.startswith("swapper/"):
        words.append(f"while CPU {oops.cpu} had nothing to do")
    elif oops.comm:
        words.append(f"while {named(oops.comm)}/{oops.pid} was running on CPU {oops.cpu}")
    if oops.work:
        words.append(f"work queue {named(oops.work)}")
    if oops.release:
        words.append(f"Linux {oops.release}" + (f" {cut(oops.version, 60)}" if oops.version else ""))
    words.append("32 bits") if oops.bits == 32 else None
    if oops.taint:
        told = [_TAINTS[letter] for letter in oops.taint if letter in _TAINTS]
        words.append(f"tainted {oops.taint}" + (f": {', '.join(told)}" if told else ""))
    elif oops.taint == "":
        words.append("not tainted")
    if oops.number and oops.number > 1:
        words.append(f"oops number {oops.number} since boot: what an earlier one left behind may be to blame")
    return "; ".join(words) or "the log tells neither task nor kernel"
