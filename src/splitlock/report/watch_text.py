"""The events of `splitlock watch` and their sum as text, 80 columns wide."""

from __future__ import annotations

import os

from splitlock.report.frames import inlined, short
from splitlock.report.lines import WIDTH, count, cut, named, page, wrap
from splitlock.report.oops_text import cause_lines, oops_lines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.report.watch import Count, Event, Frame, Place, Process, Summary

_MARGIN = "    "
_COUNTS = 20  # places shown without --verbose
_NAMES = 3  # of tasks that are named where one address has many
_WORDS = ("mode", "note", "unknown")  # shown as the kernel said it
_KERNEL = {
    "oops": "a split lock in the kernel",
    "alignment": "an alignment check in a kernel that does not know split locks (it may be one)",
}
_SAYS = {
    "trap": {"#AC": "took a split lock", "#DB": "took a bus lock"},
    "guest": {"#AC": "took a guest's split lock: the host's mode kills the virtual machine (SIGBUS)"},
    "killed": {"#AC": "got SIGBUS for a split lock, or for its own alignment check"},
}


def render(
    event: Event, *, verbose: bool = False, colour: bool = False, note: bool = True, again: bool = False,
    elsewhere: bool = False,
) -> str:  # fmt: skip
    """One event as text; `note`: with why no more is known; `again`: an oops at a place that was explained before;
    `elsewhere`: on another machine than the log's first."""
    exception = "" if event.kind in _WORDS else event.exception
    head = " ".join(part for part in ((event.time or event.stamp), exception, _what(event, elsewhere)) if part)
    lines = wrap(f"{head} (again, see above; -v tells all)" if again else head, "", _MARGIN)
    if again:
        return page(lines)
    if event.kind == "killed" and event.detail:
        first = "offset in the file, " if "," in event.detail.rpartition("[")[2] else ""
        lines += wrap(f"{event.detail} (the kernel's word: {first}start and size of the mapping)", _MARGIN, _MARGIN)
    if event.place:
        lines += _place(event.place, verbose)
    if event.oops:
        lines += oops_lines(event.oops, verbose=verbose)
    if event.process:
        lines += _process(event.process)
    for cause in event.causes:
        lines += cause_lines(cause)
    if event.note and note:
        lines += wrap(event.note, _MARGIN, _MARGIN)
    if verbose:
        lines.append(cut(f"{_MARGIN}log: {event.text}"))
    text = page(lines)
    if colour and event.kind in ("oops", "killed", "guest"):
        first = text.partition("\n")[0]
        text = f"\x1b[1;31m{first}\x1b[0m{text[len(first) :]}"
    return text


def _what(event: Event, elsewhere: bool) -> str:
    said = f"{_said(event)} [on {named(event.host)}]" if elsewhere else _said(event)
    return f"{said} [written by {named(event.speaker)}, not by the kernel: not counted]" if event.speaker else said


def _said(event: Event) -> str:
    if event.oops:
        return event.oops.says
    if event.kind in _WORDS:
        words = event.text.partition("detection: ")[2] or event.text
        if event.kind == "unknown":
            return f"not understood: {words}"
        return words + (f" (mode {event.detail})" if event.detail else "")
    if event.kind in _KERNEL:
        return f"{_KERNEL[event.kind]}{f', in {event.detail}' if event.detail else ''}: oops"
    if event.kind == "msr":
        return (
            "this kernel is a guest's and could not turn detection off (as in TDX): who takes a split lock does not "
            f"get on; {event.text}"
        )
    if event.kind == "suppressed":
        shared = "" if event.exception else ": of all signals, segfaults above all"
        return f"{count(event.number, 'line')} held back by the kernel's rate limit ({event.detail}){shared}"
    if event.kind == "lost":
        return f"{count(event.number, 'record')} lost before they were read"
    address = f" at {event.address}" if event.address else ""
    return f"{named(event.comm)}/{event.tid} {_SAYS[event.kind].get(event.exception, event.text)}{address}"


def _place(place: Place, verbose: bool) -> list[str]:
    words = [named(short(place.function)) if place.function else "?", _file(place.source)]
    words[1] += f" (inlined: {', '.join(map(named, inside))})" if (inside := inlined(place.frames)) else ""
    words.append(_at(place.image, place.offset))
    lines = wrap("  ".join(filter(None, words)), _MARGIN, _MARGIN)
    if verbose and len(place.frames) > 1:
        lines += [line for frame in place.frames for line in wrap(_frame(frame), _MARGIN * 2, _MARGIN * 3)]
    if place.instruction:
        likely = "" if place.certain else " (the likeliest)"
        lines.append(cut(f"{_MARGIN}{place.instruction}  ({count(place.operand_size or 0, 'byte')}){likely}"))
    return lines


def _frame(frame: Frame) -> str:
    source = named(frame.source) if frame.source else "source not known"
    return f"{named(frame.function or '?')}  {source}{'  inlined in' if frame.inlined else ''}"


def _file(source: str | None) -> str:
    """`inl.cc:5` of a path, Microsoft's included."""
    return named(source.replace("\\", "/").rpartition("/")[2]) if source else ""


def _at(image: str, offset: str | None) -> str:
    return cut(named(os.path.basename(image) or image), 40) + (f"+{offset}" if offset else "")


def _process(process: Process) -> list[str]:
    words = [cut(named(" ".join(process.command)) or "no command line", WIDTH - 12)]
    words += [f"container {named(process.container)}"] if process.container else []
    words += [f"{process.vmm}{f' running {named(process.vm)}' if process.vm else ''}"] if process.vmm else []
    return wrap(f"{process.pid}: {' · '.join(words)}", _MARGIN, _MARGIN)


def render_summary(summary: Summary, *, verbose: bool = False) -> str:
    """The sum, with a newline at the end."""
    lines = wrap(_found(summary))
    counts = _grouped(summary.counts)
    most = len(counts) if verbose else _COUNTS
    lines += [line for entries in counts[:most] for line in _count(entries)]
    if len(counts) > most:
        rest = [entry for entries in counts[most:] for entry in entries]
        more = count(len(counts) - most, "more place")
        lines.append(f"... and {more} with {count(sum(entry.lines for entry in rest), 'line')} (-v lists all)")
    if summary.uncounted:
        lines.append(f"not told apart by place: {count(summary.uncounted, 'line')}")
    if summary.suppressed:
        lines += wrap(f"held back by the kernel's rate limit: {count(summary.suppressed, 'line')} more")
    lines += _others(summary.others)
    for host in summary.hosts:
        known = [f"Linux {host.release}" if host.release else "", f"mode {host.mode}" if host.mode else ""]
        lines += wrap(
            ", ".join(filter(None, [f"{named(host.name)}: {count(host.lines, 'line')}", *known])), "  ", "    "
        )
    mode = f", mode {summary.mode}" if summary.mode and not summary.hosts else ""
    lost = f", {summary.lost:,} lost" if summary.lost else ", none known to be lost"
    cut_short = "" if summary.complete else " (interrupted)"
    lines += wrap(f"read {count(summary.read, 'record')} of {named(summary.source)}{lost}{mode}{cut_short}")
    if summary.doubts and is_found(summary):
        lines += wrap(f"there may be more: {'; '.join(summary.doubts)}")
    elif summary.doubts:
        lines += ["not known whether there were any:"]
        lines += [line for doubt in summary.doubts for line in wrap(f"- {doubt}", "  ", "    ")]
        lines += wrap(_KNOW)
    return page(lines)


_KNOW = "to know: `splitlock run -- PROGRAM` counts a program's own, whatever processor and kernel"


def _others(others: dict[str, int]) -> list[str]:
    """Whose words were not the kernel's."""
    if not others:
        return []
    most = sorted(others, key=lambda speaker: -others[speaker])
    more = f" and {len(most) - _NAMES:,} more" if len(most) > _NAMES else ""
    who = f"{', '.join(map(named, most[:_NAMES]))}{more}"
    return wrap(f"in the kernel's words, but by {who}: {count(sum(others.values()), 'line')}, not counted")


def is_found(summary: Summary) -> bool:
    """Did split or bus locks happen, by this log?"""
    return bool(
        summary.traps or summary.guests or summary.killed or summary.oopses or summary.refused or summary.suppressed
    )


def _found(summary: Summary) -> str:
    if not is_found(summary):
        return "no split or bus lock logged since boot" if summary.whole else _NONE
    words = [count(summary.traps, "trap")]
    words += [count(summary.killed, "SIGBUS", "SIGBUS")] if summary.killed else []
    words += [f"{count(summary.guests, 'virtual machine')} killed"] if summary.guests else []
    words += [count(summary.oopses, "oops", "oopses")] if summary.oopses else []
    words += [f"{summary.refused:,} of a guest that could not turn detection off"] if summary.refused else []
    return ", ".join(words)


_NONE = "no split or bus lock in what was read"


def _grouped(counts: list[Count]) -> list[list[Count]]:
    """What came from one address under several names is one: threads of a program, most likely."""
    found: dict[tuple[object, ...], list[Count]] = {}
    for entry in counts:
        found.setdefault(
            (entry.exception, entry.image, entry.offset, entry.function, entry.address, entry.guest), []
        ).append(entry)
    return sorted(found.values(), key=lambda entries: -sum(entry.lines for entry in entries))


def _count(entries: list[Count]) -> list[str]:
    first = entries[0]
    guest = " (a guest's address)" if first.guest else ""
    image = first.image if first.image != "the kernel" or not first.function else None
    at = _at(image, first.offset) if image else first.address or ("" if first.function else "?")
    place = "  ".join(filter(None, [first.function and named(short(first.function)), at]))
    lines = sum(entry.lines for entry in entries)
    if len(entries) == 1:
        return [cut(f"{lines:>7,}  {first.exception} {named(first.comm):<15} {place}{guest}")]
    names = ", ".join(named(entry.comm) for entry in entries[:_NAMES]) + (", ..." if len(entries) > _NAMES else "")
    said = f"{lines:>7,}  {first.exception} {place}: {lines:,} lines by {len(entries):,} names ({names}){guest}"
    return wrap(said, "", " " * 9)
