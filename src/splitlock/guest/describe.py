"""From what the plugin counted and what had names to the report's sites."""

from __future__ import annotations

from splitlock.guest.answers import Console, answers
from splitlock.guest.shared import LEVEL_2, NESTED, VMX_ROOT
from splitlock.linux import parameter
from splitlock.report.guest import (
    SCHEMA,
    Detection,
    Handling,
    Hypervisor,
    Inside,
    Place,
    Processor,
    Report,
    Site,
    Watched,
)
from splitlock.report.lines import count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.guest.files import Files
    from splitlock.guest.linux import Kernel
    from splitlock.guest.names import Named
    from splitlock.guest.shared import Entry, Totals
    from splitlock.guest.watch import Ended, Watch

_PE = 1  # CR0
_BEFORE_KERNEL = ("firmware", "boot loader")


def describe(watch: Watch, ended: Ended, guest: str, emulator: str, cpus: int, files: Files | None) -> Report:
    """The report. `emulator`: its name and version; `files`: the guest's, where they can be read."""
    totals = watch.machine.shared.totals()
    console = Console(bytes(watch.said))
    found: dict[tuple[object, ...], Site] = {}
    for number, entry in enumerate(watch.machine.shared.entries()):
        if entry.hits or entry.traps:
            named = watch.named.get(number)
            named = watch.names.name(entry) if named is None else named
            # a function of the kernel gets its name only now: at its first hit the kernel may not have been known
            site = _site(entry, named, named.kernel or watch.names.kernel, files)
            if watch.machine.options.detection.vmx:
                site.processor = _processor(entry, named)
            site.inside = _inside(entry, named.inner)
            if entry.traps:
                _add_answers(site, entry, named, console, totals, number in watch.livelocked)
            same = found.setdefault(_key(site), site)
            if same is not site:
                _join(same, site)
    sites = sorted(found.values(), key=lambda site: (-site.hits - site.traps, site.address))
    kernel, unreadable = watch.names.kernel, watch.names.unreadable
    seen = kernel or unreadable
    vmx = watch.machine.options.detection.vmx
    unknown = seen is None or (vmx and not watch.machine.shared.hypervisors() and not sites)
    ready = None if unknown else all(site.where in _BEFORE_KERNEL for site in sites) and not totals.lost
    return Report(
        schema=SCHEMA,
        guest=guest,
        hits=totals.hits,
        unnamed=totals.hits - sum(site.hits for site in sites),
        sites=sites,
        detection=_detection(watch, console),
        ready=ready,
        watched=Watched(
            emulator=emulator,
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


def _add_answers(site: Site, entry: Entry, named: Named, console: Console, totals: Totals, stuck: bool) -> None:
    threads = {named.process.pid, named.process.tid} if named.process else set()
    site.traps = entry.traps
    site.answers, site.said = answers(entry, site.where, threads, console, totals, stuck)
    if entry.waits:
        site.delays = entry.waits
        site.delay_ms = round(entry.waited / entry.waits / 1e6, 3)
        site.longest_delay_ms = round(entry.longest / 1e6, 3)


def _processor(entry: Entry, named: Named) -> Processor:
    place: Place = "no VMX"
    if entry.flags & NESTED:
        place = "nested guest" if entry.flags & LEVEL_2 else "guest"
    elif entry.flags & VMX_ROOT:
        place = "VMX root"
    return Processor(
        hypervisor=named.hypervisor and Hypervisor(module=named.hypervisor.module),
        place=place, cpl=entry.cs & 3 if entry.cr0 & _PE else 0, delivered=entry.delivered, exits=entry.exits,
        injected=entry.injected, triple_faults=entry.triple_faults,
    )  # fmt: skip


def _inside(entry: Entry, inner: Named | None) -> Inside | None:
    if inner is None or inner.kernel is None:
        return None
    site = _site(entry, inner, inner.kernel, None)
    return Inside(
        kernel=inner.kernel.release, where=site.where, image=site.image, function=site.function, offset=site.offset,
        comm=site.comm, pid=site.pid,
    )  # fmt: skip


def _join(site: Site, other: Site) -> None:
    """The same instruction of the same program: at another address, or another thread."""
    if site.processor and other.processor:
        for name in ("delivered", "exits", "injected", "triple_faults"):
            setattr(site.processor, name, getattr(site.processor, name) + getattr(other.processor, name))
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
    if not any(detection):
        return None
    totals = watch.machine.shared.totals()
    options = watch.machine.options
    value = parameter.find(options.append) if options.kernel else None
    return Detection(
        parameter=value, ignored=parameter.setting(value).ignored,
        split_locks=detection.split_locks, bus_locks=detection.bus_locks, forward=detection.forward,
        vmx=detection.vmx, turned_on=watch.machine.shared.turned_on(),
        hypervisors=_handlings(watch), traps=totals.traps,
        resets=max(0, totals.resets - 1), said=console.boot, by="gdb stub" if watch.passes else "plugin",
        passes=watch.passes or 1, untrapped=watch.stops.escaped()[0] if watch.stops else 0,
    )  # fmt: skip


def _handlings(watch: Watch) -> list[Handling]:
    """What each hypervisor made of its guests' `#AC`, in the order in which they first entered one."""
    found: dict[object, Handling] = {}
    for who, entered in zip(watch.hypervisors, watch.machine.shared.hypervisors(), strict=False):
        handling = found.setdefault(who, Handling(
            hypervisor=who and Hypervisor(module=who.module), entries=0, exits=0, injected=0, straight=0,
            triple_faults=0,
        ))  # fmt: skip
        handling.entries += entered.entries
    for number, entry in enumerate(watch.machine.shared.entries()):
        named = watch.named.get(number)
        if named is None or not entry.flags & NESTED or not entry.traps or named.hypervisor not in found:
            continue
        handling = found[named.hypervisor]
        handling.exits += entry.exits
        handling.injected += entry.injected
        handling.straight += entry.delivered
        handling.triple_faults += entry.triple_faults
    return list(found.values())


def _key(site: Site) -> tuple[object, ...]:
    """What makes two of the plugin's entries one site: not where it was loaded, if it has a name."""
    place = (site.image, site.offset) if site.image else (site.function, site.offset) if site.function else site.address
    world = site.processor.place if site.processor else None
    return site.where, site.mode, place, site.instruction, site.comm, site.pid, world


def _site(entry: Entry, named: Named, kernel: Kernel | None, files: Files | None) -> Site:
    image, function, source = named.image, named.function, None
    offset = hex(named.offset) if named.offset is not None else None
    if named.where == "kernel" and kernel is not None:
        known = kernel.symbols.function(entry.pc)
        if known is not None:
            function, offset = known[0], hex(known[1])
    mapping = named.mapping
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
    if watch.machine.options.detection.vmx:
        found.append("what only several processors do: there is one")
        if "noreplace-smp" not in watch.machine.options.append.split():
            found.append(
                "locks of Linux' own code: on one processor it takes them out, without noreplace-smp in --append"
            )
        if not watch.machine.shared.hypervisors():
            found.append(
                "what a hypervisor makes of its guests' split locks: no virtual machine was entered; see on the "
                "console that the module was loaded and the VMM ran"
            )
        found.append("locks on uncached memory, and the processor's own locked accesses (descriptors, page tables)")
        found.append(
            "split locks of code that asks for alignment checks (CR0.AM, EFLAGS.AC, CPL 3): it gets #AC anyway"
        )
        found += [f"who it is inside of some virtual machines: {why}" for why in watch.names.unnamed]
    if totals.lost:
        found.append(f"{count(totals.lost, 'split lock')} in no site: there were more than the table holds")
    if unplaced := totals.traps - sum(site.traps for site in sites):
        found.append(f"{count(unplaced, 'exception')} in no site: there were more than the table holds")
    if any(site.where == "user" and site.comm is None for site in sites):
        found.append("some programs are unknown")
    if files is not None:
        found += files.unread
    return found
