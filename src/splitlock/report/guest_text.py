"""The report of `splitlock guest` as text, 80 columns wide."""

from __future__ import annotations

import os

from splitlock.report.lines import count, cut, page, wrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.report.guest import Detection, Report, Site

_SITES = 20  # sites shown without --verbose
_WHO = 6  # names in the verdict


def render(report: Report, *, verbose: bool = False) -> str:
    """The report, with a newline at the end; all of many sites where `verbose`."""
    lines = [_head(report)] if report.sites else []
    most = len(report.sites) if verbose else _SITES
    width = max((len(f"{max(site.hits, site.traps):,}") for site in report.sites), default=0)
    for site in report.sites[:most]:
        lines += _site(site, width)
    if len(report.sites) > most:
        hits = count(sum(site.hits for site in report.sites[most:]), "split lock")
        lines.append(f"... and {count(len(report.sites) - most, 'more site')} with {hits} (-v or --format json)")
    if not report.sites:
        lines.append("no split locks in what was watched")
    if report.detection:
        lines += _detection(report.detection)
    watched = report.watched
    kernel = f"Linux {watched.kernel}" if watched.kernel else "no Linux kernel seen"
    lines += wrap(
        f"watched {watched.seconds:,.1f} s of {os.path.basename(report.guest)}: {kernel}, "
        f"{count(watched.cpus, 'CPU')}, "
        f"{count(watched.sites, 'locked instruction')} translated, QEMU {watched.qemu} "
        f"(plugin interface {watched.api}), ended: {watched.end}"
    )
    for reason in report.unwatched:
        lines += wrap(f"not known: {reason}")
    lines += wrap(_verdict(report))
    return page(lines)


def _head(report: Report) -> str:
    took = f"{count(len(report.sites), 'site')} took {count(report.hits, 'split lock')}"
    return f"{took}, and got {count(report.detection.traps, 'exception')}" if report.detection else took


def _detection(detection: Detection) -> list[str]:
    """What the processors were, and what the kernel said to that."""
    words = ["split-lock #AC"] * detection.split_locks + ["bus-lock #DB"] * detection.bus_locks
    words += [f"#AC forwarded unasked ({detection.forward})"] if detection.forward else []
    resets = f"; the machine began anew {count(detection.resets, 'time')}" if detection.resets else ""
    by = f", by QEMU's gdb stub in {count(detection.passes, 'pass', 'passes')}" if detection.by == "gdb stub" else ""
    lines = wrap(f"processors with {' and '.join(words)}{by}{resets}")
    for said in detection.said:
        lines += wrap(f"kernel: {said}")
    return lines


def _verdict(report: Report) -> str:
    """Is it ready to be run where a split lock kills, and who is not?"""
    question = "ready for split_lock_detect=fatal:"
    if report.ready is None:
        return f"{question} unknown, no Linux kernel was seen"
    if report.ready:
        return f"{question} yes, as far as it was watched"
    who = list(dict.fromkeys(filter(None, map(_who, report.sites))))
    rest = f" and {len(who) - _WHO} more" if len(who) > _WHO else ""
    return f"{question} no, because of {', '.join(who[:_WHO])}{rest}"


def _who(site: Site) -> str | None:
    if site.where in ("firmware", "boot loader"):
        return None  # they run before detection does
    if site.where == "module":
        return f"module {site.image}"
    if site.where == "kernel":
        return "the kernel"
    name = site.comm or (site.image.rpartition("/")[2] if site.image else "an unknown program")
    return f"{name}'s guest" if site.where == "nested" else name


def _site(site: Site, width: int) -> list[str]:
    """What took how many, and who ran it."""
    indent = " " * (width + 2)
    bits = f"{site.mode}-bit" if site.mode else "?-bit"
    who = f"{site.comm}/{site.pid}" if site.comm is not None else "unknown process" if site.where == "user" else ""
    place = " ".join(filter(None, (_place(site), who and f"({who})")))
    number = site.traps if site.traps and not site.hits else site.hits
    head = f"{number:>{width},}  {site.where}, {bits}{': ' if place else ''}{place}"
    lines = wrap(head, "", indent)
    if site.source:
        lines += wrap(f"at {site.source}", indent, indent)
    split = f"{site.operand_size} bytes at {site.operand_address}"
    lines.append(cut(f"{indent}{site.address}  {site.instruction}  [{split}]"))
    if site.traps:
        lines += wrap(f"{count(site.traps, 'exception')}: {_answers(site)}", indent, indent)
    if site.said:
        lines += wrap(f"kernel: {site.said}", indent, indent)
    return lines


def _answers(site: Site) -> str:
    """What came of them."""
    words = {
        "warned": "the kernel warned",
        "sigbus": "SIGBUS",
        "reboot": "the machine began anew",
        "executed": f"executed {count(site.hits, 'time')}",
        "livelock": "nothing but the same exception again: livelock",
    }
    said = ", ".join(words.get(answer, answer) for answer in site.answers)
    if site.delay_ms is not None:
        said += f", {site.delay_ms:,g} ms after the exception (at most {site.longest_delay_ms:,g})"
    return said


def _place(site: Site) -> str:
    """Function, image and offset, as far as they are known."""
    offset = f"+{site.offset}" if site.offset else ""
    if site.where == "module":
        return f"{site.function or '?'}{offset} [{site.image}]"
    if site.image:
        place = f"{site.image}{offset}"
        return f"{site.function} in {place}" if site.function else place
    return f"{site.function}{offset}" if site.function else ""
