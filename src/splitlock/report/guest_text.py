"""The report of `splitlock guest` as text, 80 columns wide."""

from __future__ import annotations

import os

from splitlock.report.lines import count, cut, named, page, wrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.report.guest import Detection, Handling, Inside, Processor, Report, Site

_SITES = 20  # sites shown without --verbose
_WHO = 6  # names in the verdict
_CUT = ("duration", "interrupted")  # ends that the guest had no say in


def render(report: Report, *, verbose: bool = False) -> str:
    """The report, with a newline at the end; all of many sites where `verbose`."""
    lines = [line for each in _hypervisors(report) for line in wrap(each)]
    lines += [_head(report)] if report.sites else []
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
        f"watched {watched.seconds:,.1f} s of {named(os.path.basename(report.guest))}: {kernel}, "
        f"{count(watched.cpus, 'CPU')}, "
        f"{count(watched.sites, 'locked instruction')} decoded, {named(watched.emulator)}, ended: {watched.end}"
    )
    for reason in report.unwatched:
        lines += wrap(f"not known: {reason}")
    lines += wrap(_verdict(report))
    return page(lines)


def _head(report: Report) -> str:
    took = f"{count(len(report.sites), 'site')} took {count(report.hits, 'split lock')}"
    return f"{took}, and got {count(report.detection.traps, 'exception')}" if report.detection else took


def _hypervisors(report: Report) -> list[str]:
    """The answer to what `--vmx` is asked for: does each hypervisor keep `#AC` from guests that know nothing of it?"""
    if not report.detection or not report.detection.vmx:
        return []
    lines = []
    for each in report.detection.hypervisors:
        name = "a hypervisor that is not known"
        if each.hypervisor:
            module = each.hypervisor.module
            name = "the kernel's own hypervisor" if module is None else f"module {named(module)}"
        said = _handled(each)
        died = f"; {count(each.triple_faults, 'virtual machine')} died" if each.triple_faults else ""
        lines.append(f"{name}: {said}{died}")
    return lines or ["no virtual machine was entered: nothing is known of a hypervisor"]


def _handled(each: Handling) -> str:
    """What a hypervisor made of the `#AC` of its guests."""
    got, bad = each.exits + each.straight, each.injected + each.straight
    if not got:
        return f"{count(each.entries, 'VM entry', 'VM entries')}, and no #AC of its guests: not known what it does"
    if not bad:
        return "kept the only #AC from its guest" if got == 1 else f"kept all {got:,} #AC from its guests"
    which = "the only #AC" if got == 1 else f"{bad:,} of {got:,} #AC"
    if bad == 1:
        return f"NOT READY: {which} reached a guest that had not asked for it"
    return f"NOT READY: {which} reached guests that had not asked for them"


def _detection(detection: Detection) -> list[str]:
    """What the processors were, and what the kernel said to that."""
    words = ["VMX"] * detection.vmx
    words += ["split-lock #AC"] * detection.split_locks + ["bus-lock #DB"] * detection.bus_locks
    if detection.forward and detection.vmx:
        words.append("a split-lock #AC that nothing announces")
    elif detection.forward:
        words.append(f"#AC forwarded unasked ({detection.forward})")
    resets = f"; the machine began anew {count(detection.resets, 'time')}" if detection.resets else ""
    by = f", by QEMU's gdb stub in {count(detection.passes, 'pass', 'passes')}" if detection.by == "gdb stub" else ""
    lines = wrap(f"processors with {' and '.join(words)}{by}{resets}")
    if detection.parameter is not None:
        why = f": {detection.ignored}" if detection.ignored else ""
        lines += wrap(f"kernel booted with split_lock_detect={named(detection.parameter)}{why}")
    if detection.split_locks and not detection.forward and not detection.turned_on:
        lines.append("the kernel never turned detection on")
    for said in detection.said:
        lines += wrap(f"kernel: {said}")
    return lines


def _verdict(report: Report) -> str:
    """Is it ready to be run where a split lock kills, and who is not?"""
    question = "ready for split_lock_detect=fatal:"
    if report.ready is None:
        nobody = report.detection and report.detection.vmx and report.watched.kernel
        return f"{question} unknown, {'no virtual machine was entered' if nobody else 'no Linux kernel was seen'}"
    if report.ready:
        cut = f", and it was cut short ({report.watched.end})" if report.watched.end in _CUT else ""
        return f"{question} yes, as far as it was watched{cut}"
    who = list(dict.fromkeys(filter(None, map(_who, report.sites))))
    rest = f" and {len(who) - _WHO} more" if len(who) > _WHO else ""
    return f"{question} no, because of {', '.join(who[:_WHO])}{rest}"


def _who(site: Site) -> str | None:
    if site.where in ("firmware", "boot loader"):
        return None  # they run before detection does
    if site.where == "module":
        return f"module {named(site.image or '?')}"
    if site.where == "kernel":
        return "the kernel"
    who = named(site.comm or (site.image.rpartition("/")[2] if site.image else "")) or "an unknown program"
    return f"{who}'s guest" if site.where == "nested" else who


def _site(site: Site, width: int) -> list[str]:
    """What took how many, and who ran it."""
    indent = " " * (width + 2)
    bits = f"{site.mode}-bit" if site.mode else "?-bit"
    who = (
        f"{named(site.comm)}/{site.pid}" if site.comm is not None else "unknown process" if site.where == "user" else ""
    )
    place = " ".join(filter(None, (_place(site), who and f"({who})")))
    number = site.traps if site.traps and not site.hits else site.hits
    head = f"{number:>{width},}  {site.where}, {bits}{': ' if place else ''}{place}"
    lines = wrap(head, "", indent)
    if site.source:
        lines += wrap(f"at {named(site.source)}", indent, indent)
    split = f"{count(site.operand_size, 'byte')} at {site.operand_address}"
    lines.append(cut(f"{indent}{site.address}  {site.instruction}  [{split}]"))
    if site.inside:
        lines += wrap(f"in its virtual machine: {_inside(site.inside)}", indent, indent)
    if site.traps:
        lines += wrap(f"{count(site.traps, 'exception')}: {_answers(site)}", indent, indent)
    if site.traps and site.processor:
        lines += wrap(f"processor: {_processor(site.processor)}", indent, indent)
    if site.said:
        lines += wrap(f"kernel: {site.said}", indent, indent)
    return lines


_PLACES = {
    "no VMX": "outside VMX operation",
    "VMX root": "on the host, in VMX operation",
    "guest": "in a virtual machine",
    "nested guest": "in a virtual machine of a virtual machine",
}


def _processor(processor: Processor) -> str:
    """Where it was, and what the exceptions led to."""
    said = f"{_PLACES[processor.place]}, CPL {processor.cpl}"
    if processor.delivered:
        said += f"; {processor.delivered:,} by the interrupt table"
    if processor.exits:
        who = "a hypervisor that is not known"
        if processor.hypervisor:
            module = processor.hypervisor.module
            who = "the kernel's own hypervisor" if module is None else f"module {named(module)}"
        said += f"; {count(processor.exits, 'VM exit')} to {who}, of which it injected {processor.injected:,}"
    if processor.triple_faults:
        said += f"; {count(processor.triple_faults, 'triple fault')}"
    return said


def _inside(inside: Inside) -> str:
    """Who it is there."""
    place = named(inside.function or inside.image or "") or "unknown code"
    offset = f"+{inside.offset}" if inside.offset else ""
    who = f" ({named(inside.comm)}/{inside.pid})" if inside.comm else ""
    return f"Linux {named(inside.kernel)}, {inside.where}: {place}{offset}{who}"


def _answers(site: Site) -> str:
    """What came of them."""
    words = {
        "warned": "the kernel warned",
        "sigbus": "SIGBUS",
        "reboot": "the machine began anew",
        "executed": f"executed {count(site.hits, 'time')}",
        "triple fault": "its virtual machine died (triple fault)",
        "livelock": "nothing but the same exception again: livelock",
    }
    said = ", ".join(words.get(answer, answer) for answer in site.answers)
    if site.delay_ms is not None:
        said += f", {site.delay_ms:,g} ms after the exception (at most {site.longest_delay_ms:,g})"
    return said


def _place(site: Site) -> str:
    """Function, image and offset, as far as they are known."""
    offset = f"+{site.offset}" if site.offset else ""
    function, image = named(site.function or ""), named(site.image or "")
    if site.where == "module":
        return f"{function or '?'}{offset} [{image}]"
    if image:
        return f"{function} in {image}{offset}" if function else f"{image}{offset}"
    return f"{function}{offset}" if function else ""
