"""From what the plugin counted and what had names to the report's sites."""

from __future__ import annotations

from splitlock.guest.answers import Console, answers
from splitlock.guest.detection import plugin_words
from splitlock.guest.linux import Mapping
from splitlock.report.guest import SCHEMA, Detection, Report, Site, Watched

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.guest.files import Files
    from splitlock.guest.linux import Kernel
    from splitlock.guest.names import Named
    from splitlock.guest.shared import Entry, Totals
    from splitlock.guest.watch import Ended, Watch

_BEFORE_KERNEL = ("firmware", "boot loader")


def describe(watch: Watch, ended: Ended, guest: str, qemu: str, cpus: int, files: Files | None) -> Report:
    """The report. `qemu`: its version; `files`: the guest's, where they can be read."""
    totals = watch.machine.shared.totals()
    console = Console(bytes(watch.said))
    found: dict[tuple[object, ...], Site] = {}
    for number, entry in enumerate(watch.machine.shared.entries()):
        if entry.hits or entry.traps:
            named = watch.named.get(number)
            named = watch.names.name(entry) if named is None else named
            # a function of the kernel gets its name only now: at its first hit the kernel may not have been known
            site = _site(entry, named, named.kernel or watch.names.kernel, files)
            if entry.traps:
                _add_answers(site, entry, named, console, totals, ended)
            same = found.setdefault(_key(site), site)
            if same is not site:
                _join(same, site)
    sites = sorted(found.values(), key=lambda site: (-site.hits - site.traps, site.address))
    kernel, unreadable = watch.names.kernel, watch.names.unreadable
    seen = kernel or unreadable
    ready = None if seen is None else all(site.where in _BEFORE_KERNEL for site in sites) and not totals.lost
    return Report(
        schema=SCHEMA,
        guest=guest,
        hits=totals.hits,
        unnamed=totals.hits - sum(site.hits for site in sites),
        sites=sites,
        detection=_detection(watch, console),
        ready=ready,
        watched=Watched(
            qemu=qemu,
            api=totals.api,
            registers=bool(totals.knows & 1 or watch.stops),
            cpus=cpus,
            sites=totals.sites,
            kernel=seen.release if seen else None,
            processes=bool(kernel and kernel.btf),
            seconds=round(ended.seconds, 1),
            end=ended.why,
        ),
        unwatched=_unwatched(watch, sites, files),
    )


def _add_answers(site: Site, entry: Entry, named: Named, console: Console, totals: Totals, ended: Ended) -> None:
    threads = {named.process.pid, named.process.tid} if named.process else set()
    site.traps = entry.traps
    site.answers, site.said = answers(entry, site.where, threads, console, totals, ended.why == "livelock")
    if entry.waits:
        site.delays = entry.waits
        site.delay_ms = round(entry.waited / entry.waits / 1e6, 3)
        site.longest_delay_ms = round(entry.longest / 1e6, 3)


def _join(site: Site, other: Site) -> None:
    """The same instruction of the same program: at another address, or another thread."""
    if other.delays:
        waited = sum(each.delays * (each.delay_ms or 0.0) for each in (site, other))
        site.delays += other.delays
        site.delay_ms = round(waited / site.delays, 3)
        site.longest_delay_ms = max(each.longest_delay_ms or 0.0 for each in (site, other))
    site.hits += other.hits
    site.traps += other.traps
    site.answers = list(dict.fromkeys([*site.answers, *other.answers]))
    if len(site.answers) > 1 and "never executed" in site.answers:
        site.answers.remove("never executed")
    site.said = site.said or other.said


def _detection(watch: Watch, console: Console) -> Detection | None:
    detection = watch.machine.options.detection
    if not plugin_words(detection):
        return None
    totals = watch.machine.shared.totals()
    return Detection(
        split_locks=detection.split_locks, bus_locks=detection.bus_locks, forward=detection.forward, traps=totals.traps,
        resets=max(0, totals.resets - 1), said=console.boot, by="gdb stub" if watch.passes else "plugin",
        passes=watch.passes or 1, untrapped=watch.stops.escaped()[0] if watch.stops else 0,
    )  # fmt: skip


def _key(site: Site) -> tuple[object, ...]:
    """What makes two of the plugin's entries one site: not where it was loaded, if it has a name."""
    place = (site.image, site.offset) if site.image else (site.function, site.offset) if site.function else site.address
    return site.where, site.mode, place, site.instruction, site.comm, site.pid


def _site(entry: Entry, named: Named, kernel: Kernel | None, files: Files | None) -> Site:
    image, function, source = named.image, named.function, None
    offset = hex(named.offset) if named.offset is not None else None
    if named.where == "kernel" and kernel is not None:
        known = kernel.symbols.function(entry.pc)
        if known is not None:
            function, offset = known[0], hex(known[1])
    mapping: Mapping | None = named.mapping
    if mapping is not None and mapping.path:
        image, offset = mapping.path, hex(mapping.offset)
        if files is not None:
            function, source = files.function(mapping, entry.code[: entry.length])
    return Site(
        where=named.where,
        mode=named.mode,
        hits=entry.hits,
        address=hex(entry.pc),
        instruction=_instruction(entry, named.mode),
        operand_size=entry.size,
        operand_address=hex(entry.address),
        image=image,
        offset=offset,
        function=function or None,
        source=source,
        comm=named.process.comm if named.process else None,
        pid=named.process.pid if named.process else None,
    )


def _instruction(entry: Entry, mode: int | None) -> str:
    """In Intel's syntax; as bytes where nobody knows which code it is."""
    code = entry.code[: entry.length]
    if mode is None:
        return str(code.hex(" "))
    from iced_x86 import Decoder, Formatter, FormatterSyntax

    return Formatter(FormatterSyntax.INTEL).format(Decoder(mode, code, ip=entry.pc).decode())


def _unwatched(watch: Watch, sites: list[Site], files: Files | None) -> list[str]:
    """What a reader must know that this report does not know."""
    totals = watch.machine.shared.totals()
    kernel = watch.names.kernel
    found = []
    if watch.passes and not watch.stops:
        found.append("what detection does: the guest ended in the first pass, which has none")
    elif watch.stops:
        executed, met = watch.stops.escaped()
        if executed:
            found.append(f"{executed:,} executions were not trapped: QEMU's gdb stub had no stop for them")
        if met:
            found.append(f"{met:,} instructions that access MSRs or DR6 had no stop: they saw QEMU's own values")
    if not totals.knows & 1 and not watch.stops:
        found.append("no registers (QEMU older than 9.0, built without modules): nobody has a name")
    elif kernel is None and (unreadable := watch.names.unreadable):
        found.append(
            f"Linux {unreadable.release or 'of an unknown version'} was seen, but its symbols cannot be read "
            f"({unreadable}): what ran has no names of functions and processes"
        )
    elif kernel is None:
        found.append("no Linux kernel was seen: what ran has no names of functions and processes")
    elif kernel.btf is None:
        found.append(
            "the guest's kernel carries no BTF, or no symbols that lead to it (CONFIG_KALLSYMS_ALL): "
            "processes and modules have no names"
        )
    if totals.lost:
        found.append(f"{totals.lost:,} split locks in no site: there were more than the table holds")
    if unplaced := totals.traps - sum(site.traps for site in sites):
        found.append(f"{unplaced:,} exceptions in no site: there were more than the table holds")
    if any(site.where == "user" and site.comm is None for site in sites):
        found.append("some programs are unknown")
    if files is not None:
        found += files.unread
    return found
