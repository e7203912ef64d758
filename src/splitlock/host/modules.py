"""Which hypervisors are among the machine's kernel modules, loaded or installed? The audit's scanner decides."""

from __future__ import annotations

import errno
import os
from contextlib import closing
from typing import NamedTuple

from splitlock.host.kernel import MODULES
from splitlock.modules.audit import Job, audit, batches
from splitlock.modules.policy import load
from splitlock.report.status import Module
from splitlock.x86.privileged import GROUPS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from splitlock.host.root import Root
    from splitlock.modules.audit import Batch
    from splitlock.report.judgement import Known
    from splitlock.report.scan import File

#: What only a hypervisor needs. VMCALL and VMMCALL are a guest's; VMXOFF alone is a crash kernel's.
_HYPERVISOR = frozenset({"VMXON", "VMLAUNCH", "VMRESUME", "VMRUN", "VMPTRLD", "SEAMCALL"})
_LOOKED_FOR = frozenset((*GROUPS["vmx"], *GROUPS["svm"], "FOREIGN-CODE"))
#: Ring-0 code that is no module: VirtualBox's, which its driver loads by itself.
_FOREIGN = ("usr/lib/virtualbox", "opt/VirtualBox", "usr/lib64/virtualbox")
_DRIVERS = {"vboxdrv", "vmmon", "kvm", "kvm_intel", "kvm_amd", "acrn", "mshv_root", "jailhouse", "hax", "nvmm"}
_LSMOD = ("proc/modules", "lsmod", "sos_commands/kernel/lsmod")


class Scanned(NamedTuple):
    """What a scan came to."""

    modules: list[Module]  #: hypervisors, the loaded ones first
    files: int  #: that were looked into
    failed: list[str]  #: which could not be, and why
    interrupted: bool  #: by Ctrl-C: there may be more


def directories(root: Root, release: str | None) -> list[str]:
    """Where the modules of the running kernel are, by their names on that machine; of all kernels where it has none."""
    tops = [top for top in MODULES if root.names(top)]
    for top in tops:
        if release and root.exists(f"{top}/{release}/kernel"):
            return [f"{top}/{release}"]
    found = [f"{top}/{name}" for top in tops for name in root.names(top) if root.exists(f"{top}/{name}/kernel")]
    kept: dict[tuple[int, int] | None, str] = {}
    for name in found:  # /lib may be a link to /usr/lib
        kept.setdefault(root.identity(name), name)
    return list(kept.values())


def loaded(root: Root) -> set[str] | None:
    """The modules that are loaded; None where nobody can tell."""
    text = root.text(*_LSMOD)
    if text is None:
        there = root.exists("proc/modules")
        empty = there and root.unreadable("proc/modules") is None
        return set() if empty or (not there and root.live and root.exists("proc/version")) else None
    return {line.split()[0] for line in text.splitlines() if line.strip() and not line.startswith("Module ")}


def hidden(root: Root) -> list[str]:
    """What would tell of modules, is there, and cannot be read; and why."""
    places = [*MODULES, *_FOREIGN, "proc/modules"]
    found = ((place, root.unreadable(place)) for place in places)
    return [f"/{place}: {why}" for place, why in found if why]


def foreign(root: Root) -> list[str]:
    """Files of ring-0 code that are no modules."""
    return [f"{place}/{name}" for place in _FOREIGN for name in root.names(place) if name.endswith(".r0")]


def hypervisors(
    root: Root, places: list[str], running: set[str] | None, advance: Callable[[int], None] | None = None
) -> Scanned:
    """The hypervisors among what is in `places`: directories and files.

    `running`: the modules that are loaded, None where nobody can tell; `advance` is told how many more files are done.
    """
    paths = [f"/{place.lstrip('/')}" for place in places]
    job = Job(load("refuse"), _LOOKED_FOR)
    found: dict[str, Module] = {}
    scanned, failed = 0, []
    interrupted = False
    try:
        with closing(_audited(paths, job, root.below)) as audited:
            for batch in audited:
                scanned += len(batch.files) + batch.clean
                if advance:
                    advance(len(batch.files) + batch.clean)
                for file in batch.files:
                    if file.verdict == "error":
                        # links, .dep files and the like of a kernel's directory are no modules
                        expected = any(end in os.path.basename(file.path) for end in (".ko", ".r0"))
                        if expected or file.path in paths or file.reason == os.strerror(errno.EACCES):
                            failed.append(f"{file.path}: {file.reason}")
                    elif _is_hypervisor(file):
                        found[file.path] = _module(file, running)
    except KeyboardInterrupt:
        interrupted = True
    modules = sorted(found.values(), key=lambda m: (m.loaded != "yes", m.name, m.path or ""))
    return Scanned(modules, scanned, failed, interrupted)


def unseen(root: Root, release: str | None, running: set[str] | None, seen: list[Module]) -> list[Module]:
    """The hypervisors that are loaded or built in, by their names, and are not among those seen."""
    built_in = _built_in(root, release, running or set())
    names = ((running or set()) | built_in) & _DRIVERS - {module.name for module in seen} - {"kvm"}
    return [
        Module(
            name=name, path=None, loaded="yes", builtin=name in built_in,
            version=(root.text(f"sys/module/{name}/version") or "").strip() or None,
            aware=name.startswith("kvm"), marked=False, intree=name.startswith("kvm"),
            evidence=["built into the kernel" if name in built_in else "its name: its file was not seen"],
            verdict="unknown",
        )
        for name in sorted(names)
    ]  # fmt: skip


def _built_in(root: Root, release: str | None, running: set[str]) -> set[str]:
    """Drivers that are a part of the kernel: named by modules.builtin, or by /sys and not among the modules."""
    found = set()
    for top in MODULES if release else ():
        for line in (root.text(f"{top}/{release}/modules.builtin") or "").splitlines():
            found.add(os.path.basename(line).partition(".")[0].replace("-", "_"))
    return (found | set(root.names("sys/module"))) & _DRIVERS - running


def _audited(paths: list[str], job: Job, root: str) -> Generator[Batch, None, None]:
    number = len(os.sched_getaffinity(0))
    if number == 1 or sum(1 for _ in zip(batches(paths, root), range(2), strict=False)) < 2:
        yield from audit(paths, job, root=root)
        return
    from splitlock.modules.workers import Workers

    with Workers(number) as workers:
        yield from audit(paths, job, executor=workers, workers=number, root=root)


def _is_hypervisor(file: File) -> bool:
    kinds = {finding.kind for finding in file.findings if finding.certainty == "exact"}
    foreign = any(finding.kind == "FOREIGN-CODE" for finding in file.findings) and file.verdict != "allow"
    return bool(kinds & _HYPERVISOR) or foreign


def _module(file: File, running: set[str] | None) -> Module:
    is_loaded: Known = "unknown"
    if not file.path.endswith(".r0"):
        is_loaded = "unknown" if running is None else "yes" if (file.name or "").replace("-", "_") in running else "no"
    return Module(
        name=file.name or os.path.basename(file.path),
        path=file.path,
        loaded=is_loaded,
        aware=file.sld_aware,
        marked=file.sld_safe,
        intree=file.intree,
        evidence=sorted({finding.kind for finding in file.findings} & (_HYPERVISOR | {"FOREIGN-CODE"})),
        verdict=file.verdict,
    )
