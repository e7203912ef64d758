"""What becomes of split locks in guests of real hypervisors? Measured, on a processor with VMX and detection.

Nothing is modelled: Bochs is the processor (bochs/instrument), the kernels and kvm-intel are as they are packaged.
"""

from __future__ import annotations

import os
import tempfile
from typing import NamedTuple

from splitlock._errors import SplitlockError
from splitlock.guest.bochs.emulator import Emulator, find
from splitlock.guest.bochs.machine import BochsMachine
from splitlock.guest.detection import Detection
from splitlock.guest.machine import Options
from splitlock.guest.matrix import module
from splitlock.guest.matrix.boot import boot
from splitlock.guest.matrix.column import Column
from splitlock.guest.matrix.guests import PAIRS, Pair
from splitlock.guest.matrix.initramfs import initramfs
from splitlock.guest.matrix.kernels import headers, kernels
from splitlock.guest.matrix.kvm import kvm_modules
from splitlock.guest.matrix.log import Log, Told
from splitlock.guest.matrix.outcome import cell
from splitlock.guest.matrix.traps import Traps
from splitlock.report.matrix import Kernel
from splitlock.report.matrix_vmx import SCHEMA, Boot, Cell, Mode, Report, Side

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from splitlock.guest.matrix.boot import Booted
    from splitlock.guest.matrix.kernels import Kernel as Image

# `noreplace-smp`: with one processor the kernel would take LOCK prefixes out of its own code, which takes time here.
# `cryptomgr.notests`: since 6.12 the kernel tries its ciphers in threads beside init, for half a minute here.
# `nowatchdog`: without preemption a guest that boots for half a minute is a lockup to the host, which logs that.
_COMMAND_LINE = (
    "console=ttyS0,115200 loglevel=7 printk.devkmsg=on panic=-1 random.trust_cpu=on noreplace-smp mitigations=off "
    "cryptomgr.notests nowatchdog"
)
_MEMORY = 512 << 20
_AWARE, _UNAWARE = Detection(split_locks=True, vmx=True), Detection(vmx=True, forward="always")
_NO_KVM = "no kvm-intel module of this kernel there: name its package (linux-modules-... since Linux 7.0) beside it"
NOTES = [
    "times are the emulated machine's: they show waiting, not what a split lock costs",
    "one processor, 512 MiB; KVM has no posted interrupts there (apicv)",
]


class Wanted(NamedTuple):
    """What to measure: paths; words as in report.matrix_vmx."""

    kernels: list[str]
    headers: list[str] | None
    modes: list[Mode]
    hypervisors: list[str]
    guests: list[str]
    deadline: float  #: seconds of Bochs' processor time without anything new that end a boot


def measure(wanted: Wanted, begin: Callable[[int], None], advance: Callable[[int], None]) -> Report:
    """Boot until every cell is known. `begin` is told how many cells there are, `advance` how many more are done.

    KeyboardInterrupt ends it, with what there is so far. Raises SplitlockError where nothing can be measured.
    """
    emulator = find()
    report = Report(
        schema=SCHEMA, emulator=emulator.version, kernels=[], boots=[], cells=[], notes=[*NOTES], interrupted=False
    )
    kinds = [
        kind for kind, pair in PAIRS.items() if pair.hypervisor in wanted.hypervisors and pair.guest in wanted.guests
    ]
    try:
        with tempfile.TemporaryDirectory(prefix="splitlock-matrix-", dir=os.environ.get("TMPDIR", "/var/tmp")) as place:
            images, passed_over = kernels(wanted.kernels, place, direct=False)
            report.notes += [f"not measured: {line}" for line in passed_over]
            begin(len(images) * len(wanted.modes) * len(kinds))
            for image in images:
                built = _Built(wanted, image, place, report)
                for mode in wanted.modes:
                    _Column(report, image, mode, built, wanted, emulator).all(kinds, advance)
    except KeyboardInterrupt:
        report.interrupted = True
    return report


class _Built:
    """What one kernel's guests are made of: an initramfs, and what is not in it, with the reason."""

    def __init__(self, wanted: Wanted, image: Image, place: str, report: Report) -> None:
        self._kvm = self._headers = ""  #: why there are no modules of KVM's, of ours
        files = {}
        kvm = kvm_modules(image) if "kvm" in wanted.hypervisors else {}
        if kvm:
            files = {f"{name}.ko": data for name, data in kvm.items()}
            with open(image.image, "rb") as kernel:
                files["vmlinuz"] = kernel.read()
        else:
            self._kvm = _NO_KVM
        ours: dict[str, bytes] = {}
        with tempfile.TemporaryDirectory(dir=place) as unpacked:
            tree = self._modules(wanted, image, ours, unpacked, place)
        blind = ours.pop(module.BLIND, None)
        if blind is not None:
            files[f"{module.BLIND}.ko"] = blind
        if kvm:
            files["guest"] = initramfs({f"{name}.ko": data for name, data in ours.items()}, ("init",))
        self.initrd = os.path.join(place, "initramfs")
        with open(self.initrd, "wb") as file:
            file.write(initramfs(files, ("init", "vmm")))
        report.kernels.append(
            Kernel(release=image.release, banner=image.banner, path=image.path, member=image.member, headers=tree)
        )

    def _modules(
        self, wanted: Wanted, image: Image, ours: dict[str, bytes], unpacked: str, place: str
    ) -> str | None:  # fmt: skip
        """Build our modules; gives the headers' directory."""
        try:
            tree = headers(image.release, wanted.headers or wanted.kernels, unpacked)
            if tree is None:
                self._headers = "no headers for this kernel"
                return None
            for name in (module.NAME, module.BLIND):
                with tempfile.TemporaryDirectory(dir=place) as work:
                    ours[name] = module.build(tree, work, name)
        except SplitlockError as error:
            if wanted.headers:
                raise
            self._headers = str(error)
            return None
        return tree.removeprefix(unpacked)

    def missing(self, pair: Pair) -> str:
        """Why there is nothing to try it with; empty: there is."""
        if pair.hypervisor == "kvm" and self._kvm:
            return self._kvm
        return self._headers if pair.hypervisor != "kvm" or pair.guest == "linux_module" else ""


class _Column(Column[str]):
    """The cells of one kernel and mode."""

    def __init__(
        self, report: Report, image: Image, mode: Mode, built: _Built, wanted: Wanted, emulator: Emulator
    ) -> None:
        self.report, self.image, self.mode = report, image, mode
        self.built, self.wanted, self.emulator = built, wanted, emulator
        self._sides: dict[str, Side] = {}

    def all(self, kinds: list[str], advance: Callable[[int], None]) -> None:
        """Fill it: also with what cannot be, or for which something is missing."""
        begin = len(self.report.cells)
        tried = []
        for kind in kinds:
            pair = PAIRS[kind]
            missing = self.built.missing(pair)
            if pair.impossible:
                self._add(Cell(kernel=self.image.release, mode=self.mode, hypervisor=pair.hypervisor, guest=pair.guest,
                               outcome="impossible", reason=pair.impossible))  # fmt: skip
            elif missing:
                self.untried(kind, missing)
            else:
                tried.append(kind)
        advance(len(kinds) - len(tried))
        self.fill(tried, advance)
        order = [PAIRS[kind] for kind in kinds]
        self.report.cells[begin:] = sorted(
            self.report.cells[begin:], key=lambda one: order.index(Pair(one.hypervisor, one.guest))
        )

    def boot(self, kinds: list[str]) -> tuple[Booted, Log]:
        """In Bochs."""
        mode = "" if self.mode == "unaware" else f" split_lock_detect={self.mode}"
        words = f"{_COMMAND_LINE}{mode} splitlock={','.join(kinds)}"
        traps = Traps()
        try:
            options = Options(
                kernel=self.image.image, initrd=self.built.initrd, append=words, disk=None, disk_format=None,
                cdrom=None, firmware=None, memory=_MEMORY, cpus=1, qemu="", more=[], traps=traps.fd,
                detection=_UNAWARE if self.mode == "unaware" else _AWARE,
            )  # fmt: skip
            booted = boot(BochsMachine(options, self.emulator), self.wanted.deadline, traps.mark)
            log = Log(booted.console)
            self._sides = dict(zip((told.kind for told in log.kinds), traps.sides(), strict=False))
        finally:
            traps.close()
        ready = log.ready or {}
        self.report.boots.append(
            Boot(
                kernel=self.image.release, mode=self.mode, command_line=words, log=log.boot, end=booted.end,
                split_lock_detect=bool(ready.get("split_lock_detect")) if log.ready else None,
                seconds=round(booted.seconds, 3),
            )
        )  # fmt: skip
        return booted, log

    def tried(self, kind: str, told: Told, booted: Booted, warnings: int) -> None:
        """What is known of one guest."""
        self._add(cell(
            PAIRS[kind], told, booted.end, kernel=self.image.release, mode=self.mode, boot=len(self.report.boots) - 1,
            processor=self._sides.get(kind),
        ))  # fmt: skip

    def untried(self, kind: str, reason: str) -> None:
        """A cell that stays empty."""
        pair = PAIRS[kind]
        self._add(Cell(kernel=self.image.release, mode=self.mode, hypervisor=pair.hypervisor, guest=pair.guest,
                       outcome="not-tried", reason=reason))  # fmt: skip

    def _add(self, made: Cell) -> None:
        self.report.cells.append(made)
