"""The report of `splitlock run` as text, 80 columns wide."""

from __future__ import annotations

import os

from splitlock.report.lines import WIDTH, count, cut, named, page, wrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.report.run import Report, Site

    #: code that was not watched: its name, the reason, bytes, possible locked instructions
    Rest = tuple[str, str, int | None, int | None]

_STACK = 8  # frames shown
_SITES = 20  # sites shown


def render(report: Report, most: int = _SITES) -> str:
    """The report, with a newline at the end; of the sites the `most` that were hit most often."""
    lines = []
    tasks = {(s.pid, s.tid) for site in report.sites for s in site.samples}
    processes = max(len({pid for pid, _ in tasks}), max((s.processes for s in report.sites), default=0))
    threads = max(len(tasks), max((s.threads for s in report.sites), default=0))
    if report.sites:
        did = ", stopped before" if report.mode == "fatal" else " took"
        lines.append(
            f"{count(len(report.sites), 'site')}{did} {count(report.hits, 'split lock')} "
            f"({count(processes, 'process', 'processes')}, {count(threads, 'thread')})"
        )
        width = max(len(f"{s.hits:,}") for s in report.sites)
        before: list[str] = []
        for site in report.sites[:most]:
            head, details = _site(site, width)
            # Unrolled loops and the like: many sites that differ in nothing but themselves.
            lines += head + ([] if details == before else details)
            before = details
        if len(report.sites) > most:
            rest = report.sites[most:]
            hits = count(sum(s.hits for s in rest), "split lock")
            lines.append(f"... and {count(len(rest), 'more site')} with {hits} (-v or --format json lists them)")
    unseen = [(u.image or u.mapping or "", u.reason, u.bytes, u.sites) for u in report.unmonitored]
    watched = report.watched
    head = [coverage(watched.sites, watched.bytes, unseen)] if unseen and lines else []
    tail = summary(bool(lines), watched.sites, watched.bytes, watched.images, watched.processes, unseen)
    return page([*head, *lines, *tail])


def summary(found: bool, sites: int, size: int, images: int, processes: int, unmonitored: list[Rest]) -> list[str]:
    """The lines that say what was watched (locked instructions, bytes of code, images, processes) and what was not.

    Where split locks were `found`, they stand below the lines on these.
    """
    lines = []
    if not found and unmonitored:
        lines.append(coverage(sites, size, unmonitored))
    if not found and size:
        lines.append(f"no split locks in what was watched ({count(processes, 'process', 'processes')})")
    nothing = "" if unmonitored else " · unmonitored: nothing"
    lines.append(f"watched {count(sites, 'site')} in {count(images, 'image')}{nothing}")
    if unmonitored:
        lines.append("unmonitored:")
    for name, reason, code, locked in unmonitored:
        held = "" if locked is None else f", {count(locked, 'possible locked instruction')}"
        much = "" if code is None else count(code, "byte")
        line = f"{_short(name)}: {reason}: {much}{held}" if much else f"{_short(name)}: {reason}"
        lines += wrap(line, "  ", "    ")
    return lines


def coverage(sites: int, size: int, unmonitored: list[Rest]) -> str:
    """The first line of a report where something ran that was not watched: how much was, of what is known.

    `sites` and `size` are what was watched: locked instructions, and bytes of code.
    """
    if not size:
        return "nothing was watched"
    code = [each for _, _, each, _ in unmonitored]
    locked = [each for _, _, _, each in unmonitored]
    if None in code:
        return "only part was watched, and how much of it all is not known"
    of_sites = "an unknown share" if None in locked else _share(sites, sum(filter(None, locked)))
    return f"only part was watched: {_share(size, sum(filter(None, code)))} of the code, {of_sites} of possible sites"


def _share(part: int, rest: int) -> str:
    """A part of the sum in per cent, rounded down: what is not all is never 100%."""
    tenths = 1000 * part // (part + rest) if part + rest else 0
    return f"{tenths // 10}.{tenths % 10}%"


def _site(site: Site, width: int) -> tuple[list[str], list[str]]:
    """Which instruction it is, and what it did."""
    indent = " " * (width + 2)
    function = named(site.function or "?")
    place = f"{cut(_short(site.image), 40)}+{site.offset}"
    where = f"{_tail(site.source)}  {place}" if site.source else place
    room = WIDTH - len(indent) - len(where) - 2
    head = [f"{site.hits:>{width},}  {cut(function, max(room, 20))}  {where}", f"{indent}{site.instruction}"]
    lines = []
    for frame in site.frames[1:]:
        lines.append(cut(f"{indent}inlined into {named(frame.function or '?')}  {_tail(frame.source)}".rstrip()))
    if site.samples:
        first = site.samples[0]
        lines.append(
            cut(
                f"{indent}{count(site.operand_size, 'byte')} at {named(first.operand)}, {first.past_line} past the line"
            )
        )
        lines.append(f"{indent}{drawing(site.operand_size, first.past_line)}")
        callers = [cut(named(entry.rpartition(" ")[0] or entry), 60) for entry in first.stack[1 : _STACK + 1]]
        if callers:
            lines += wrap(" ← ".join(callers), indent, indent)
        names = {named(s.comm) for s in site.samples}
        who = ", ".join(sorted(names)[:4])
        tasks = f"{count(site.threads, 'thread')} of {count(site.processes, 'process', 'processes')}"
        lines.append(cut(f"{indent}{who}: {tasks}, first {first.pid}/{first.tid}"))
    return head, lines


def drawing(size: int, past: int) -> str:
    """The operand over the end of one cache line and the start of the next, a character a byte."""
    before = "." * (32 - (size - past)) + "#" * (size - past)
    return f"[{before}|{'#' * past}{'.' * (32 - past)}]"


def _short(path: str) -> str:
    return named(os.path.basename(path) if path.startswith("/") else path)


def _tail(source: str | None) -> str:
    """The file's own name and line."""
    return named(os.path.basename(source)) if source else ""
