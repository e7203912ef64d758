"""The events of `splitlock watch` and their sum as text, 80 columns wide."""

from __future__ import annotations

import os

from splitlock.report.frames import inlined, short
from splitlock.report.lines import WIDTH, count, cut, printable, wrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.report.watch import Count, Event, Frame, Place, Process, Summary

_MARGIN = "    "
_COUNTS = 20  # places shown without --verbose
_SAYS = {
    "trap": {"#AC": "took a split lock", "#DB": "took a bus lock"},
    "guest": {"#AC": "a guest's split lock, not to be let go on: SIGBUS"},
    "killed": {"#AC": "got SIGBUS for a split lock, or for its own alignment check"},
}


def render(event: Event, *, verbose: bool = False, colour: bool = False) -> str:
    """One event as text."""
    head = " ".join(part for part in ((event.time or event.stamp), event.exception, _what(event)) if part)
    lines = wrap(head, "", _MARGIN)
    if event.kind == "killed" and event.detail:
        lines.append(f"{_MARGIN}{event.detail} (the kernel's word: start and size of the mapping)")
    if event.place:
        lines += _place(event.place, verbose)
    if event.process:
        lines += _process(event.process)
    if event.note:
        lines += wrap(event.note, _MARGIN, _MARGIN)
    if verbose:
        lines.append(cut(f"{_MARGIN}log: {event.text}"))
    text = printable("\n".join(lines) + "\n")
    if colour and event.kind in ("oops", "killed", "guest"):
        text = f"\x1b[1;31m{lines[0]}\x1b[0m" + text[len(lines[0]) :] if lines[0].isprintable() else text
    return text


def _what(event: Event) -> str:
    if event.kind == "unknown":
        return f"not understood, though the kernel's prefix or words are in it: {event.text}"
    if event.kind in ("note", "alignment", "msr"):
        return event.text
    if event.kind == "mode":
        return f"{event.text}" + (f" (mode {event.detail})" if event.detail else "")
    if event.kind == "oops":
        return f"a split lock in the kernel{f', in {event.detail}' if event.detail else ''}: oops"
    if event.kind == "suppressed":
        shared = "" if event.exception else ", some of them perhaps of other exceptions"
        return f"{count(event.number, 'line')} held back by the kernel's rate limit ({event.detail}){shared}"
    if event.kind == "lost":
        return f"{count(event.number, 'record')} lost before they were read"
    address = f" at {event.address}" if event.address else ""
    return f"{event.comm}/{event.tid} {_SAYS[event.kind].get(event.exception, event.text)}{address}"


def _place(place: Place, verbose: bool) -> list[str]:
    words = [short(place.function) if place.function else "?", _file(place.source)]
    words[1] += f" (inlined: {', '.join(inside)})" if (inside := inlined(place.frames)) else ""
    words.append(_at(place.image, place.offset))
    lines = wrap("  ".join(filter(None, words)), _MARGIN, _MARGIN)
    if verbose and len(place.frames) > 1:
        lines += [line for frame in place.frames for line in wrap(_frame(frame), _MARGIN * 2, _MARGIN * 3)]
    if place.instruction:
        likely = "" if place.certain else " (the likeliest)"
        lines.append(cut(f"{_MARGIN}{place.instruction}  ({place.operand_size} bytes){likely}"))
    return lines


def _frame(frame: Frame) -> str:
    return f"{frame.function or '?'}  {frame.source or 'source not known'}{'  inlined in' if frame.inlined else ''}"


def _file(source: str | None) -> str:
    """`inl.cc:5` of a path, Microsoft's included."""
    return source.replace("\\", "/").rpartition("/")[2] if source else ""


def _at(image: str, offset: str | None) -> str:
    return cut(os.path.basename(image) or image, 40) + (f"+{offset}" if offset else "")


def _process(process: Process) -> list[str]:
    words = [cut(" ".join(process.command) or "no command line", WIDTH - 12)]
    words += [f"container {process.container}"] if process.container else []
    words += [f"{process.vmm}{f' running {process.vm}' if process.vm else ''}"] if process.vmm else []
    return wrap(f"{process.pid}: {' · '.join(words)}", _MARGIN, _MARGIN)


def render_summary(summary: Summary, *, verbose: bool = False) -> str:
    """The sum, with a newline at the end."""
    found = summary.traps + summary.guests + summary.killed + summary.oopses
    words = [count(summary.traps, "trap")]
    words += [count(summary.killed, "SIGBUS", "SIGBUS")] if summary.killed else []
    words += [f"{summary.guests:,} of guests not let go on"] if summary.guests else []
    words += [count(summary.oopses, "oops", "oopses")] if summary.oopses else []
    lines = [", ".join(words) if found else "no split or bus lock logged"]
    most = len(summary.counts) if verbose else _COUNTS
    lines += [_count(entry) for entry in summary.counts[:most]]
    if len(summary.counts) > most:
        rest = summary.counts[most:]
        lines.append(
            f"... and {count(len(rest), 'more place')} with {sum(c.lines for c in rest):,} lines (-v lists all)"
        )
    if summary.uncounted:
        lines.append(f"not told apart by place: {count(summary.uncounted, 'line')}")
    if summary.suppressed:
        lines += wrap(f"held back by the kernel's rate limit: {count(summary.suppressed, 'line')} more")
    mode = f", mode {summary.mode}" if summary.mode else ""
    lost = f", {summary.lost:,} lost" if summary.lost else ", none known to be lost"
    cut_short = "" if summary.complete else " (interrupted)"
    lines += wrap(f"read {count(summary.read, 'record')} of {summary.source}{lost}{mode}{cut_short}")
    return printable("\n".join(lines) + "\n")


def _count(entry: Count) -> str:
    where = _at(entry.image, entry.offset) if entry.image else ""
    guest = " (a guest's address)" if entry.guest else ""
    parts = [entry.function or "", where or entry.address or "?"]
    return cut(f"{entry.lines:>7,}  {entry.exception} {entry.comm:<15} {'  '.join(filter(None, parts))}{guest}")
