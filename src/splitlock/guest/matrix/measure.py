"""Which boots does a matrix take, and what does each of its cells say?"""

from __future__ import annotations

import errno
import os
import signal
import tempfile
from typing import NamedTuple

from splitlock._errors import SplitlockError
from splitlock.guest.machine import Machine, version
from splitlock.guest.matrix import module
from splitlock.guest.matrix.boot import boot
from splitlock.guest.matrix.column import Column
from splitlock.guest.matrix.documented import KERNEL, NOTES, SOURCE, differences, documented
from splitlock.guest.matrix.initramfs import initramfs
from splitlock.guest.matrix.kernels import headers, kernels
from splitlock.guest.matrix.log import Log, Told
from splitlock.guest.matrix.processors import options
from splitlock.guest.selftest import check
from splitlock.report.matrix import SCHEMA, Boot, Cell, Kernel, Report, Signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal

    from splitlock.guest.matrix.boot import Booted
    from splitlock.guest.matrix.kernels import Kernel as Image
    from splitlock.report.matrix import End, Kind, Outcome, Processor

# the console gets the kernel's lines and init's, all of them; a panic ends the boot
_COMMAND_LINE = "console=ttyS0 loglevel=7 printk.devkmsg=on panic=-1 random.trust_cpu=on"
_MITIGATE = "mitigate=0"
_WARNINGS = 10  # lines that the kernel logs from one place in five seconds (DEFAULT_RATELIMIT_BURST)


class Wanted(NamedTuple):
    """What to measure: paths, and words as in report.matrix."""

    kernels: list[str]
    headers: list[str] | None
    processors: list[Processor]
    modes: list[str]
    kinds: list[Kind]
    qemu: str
    deadline: float  #: seconds without anything new that end a boot


def measure(wanted: Wanted, begin: Callable[[int], None], advance: Callable[[int], None]) -> Report:
    """Boot until every cell is known. `begin` is told how many cells there are, `advance` how many more are done.

    KeyboardInterrupt ends it, with what there is so far. Raises SplitlockError where nothing can be measured.
    """
    report = Report(
        schema=SCHEMA, qemu=version(wanted.qemu), documentation=SOURCE, kernels=[], boots=[], cells=[],
        notes=[note for kind, note in NOTES.items() if kind in wanted.kinds], interrupted=False,
    )  # fmt: skip
    for processor in wanted.processors:
        check(options(processor, "", "", "", wanted.qemu), report.qemu)
    try:
        with tempfile.TemporaryDirectory(prefix="splitlock-matrix-", dir=os.environ.get("TMPDIR", "/var/tmp")) as place:
            images, passed_over = kernels(wanted.kernels, place)
            report.notes += [f"not measured: {line}" for line in passed_over]
            begin(len(images) * len(wanted.processors) * len(wanted.modes) * len(wanted.kinds))
            for image in images:
                _kernel(report, wanted, image, place, advance)
    except KeyboardInterrupt:
        report.interrupted = True
    return report


def _kernel(report: Report, wanted: Wanted, image: Image, place: str, advance: Callable[[int], None]) -> None:
    """All of one kernel's cells."""
    with tempfile.TemporaryDirectory(dir=place) as unpacked, tempfile.TemporaryDirectory(dir=place) as work:
        tree, built, why = _module(wanted, image, unpacked, work)
        archive = initramfs({f"{module.NAME}.ko": built} if built is not None else {})
    initrd = os.path.join(place, "initramfs")
    with open(initrd, "wb") as file:
        file.write(archive)
    report.kernels.append(
        Kernel(
            release=image.release, banner=image.banner, path=image.path, member=image.member,
            headers=tree and tree.removeprefix(unpacked),
        )
    )  # fmt: skip
    for processor in wanted.processors:
        for mode in wanted.modes:
            column = _Column(report, image, processor, mode, initrd, wanted)
            if tree is None:
                for kind in [kind for kind in wanted.kinds if kind in KERNEL]:
                    column.untried(kind, why)
                    advance(1)
            column.fill([kind for kind in wanted.kinds if tree or kind not in KERNEL], advance)


def _module(wanted: Wanted, image: Image, unpacked: str, work: str) -> tuple[str | None, bytes | None, str]:
    """The headers' directory and the module built with them; without them, why. Raises SplitlockError for `--headers`.

    Headers that merely lie beside the kernels may be of no use here, and the other kinds are measured all the same.
    """
    if not any(kind in KERNEL for kind in wanted.kinds):
        return None, None, ""
    try:
        tree = headers(image.release, wanted.headers or wanted.kernels, unpacked)
        if tree is not None:
            return tree, module.build(tree, work), ""
    except SplitlockError as error:
        if wanted.headers:
            raise
        return None, None, str(error)
    return None, None, "no headers for this kernel"


class _Column(Column["Kind"]):
    """The cells of one kernel, processor and mode."""

    def __init__(
        self, report: Report, image: Image, processor: Processor, mode: str, initrd: str, wanted: Wanted
    ) -> None:
        self.report, self.image, self.processor, self.mode = report, image, processor, mode
        self.initrd, self.wanted = initrd, wanted

    def boot(self, kinds: list[Kind]) -> tuple[Booted, Log]:
        """In QEMU."""
        mode = f"warn sysctl.kernel.split_lock_{_MITIGATE}" if self.mode == _MITIGATE else self.mode
        words = f"{_COMMAND_LINE} split_lock_detect={mode} splitlock={','.join(kinds)}"
        machine = options(self.processor, self.image.image, self.initrd, words, self.wanted.qemu)
        booted = boot(Machine(machine, self.report.qemu), self.wanted.deadline)
        log = Log(booted.console)
        ready = log.ready or {}
        mitigate = ready.get("split_lock_mitigate")
        self.report.boots.append(
            Boot(
                kernel=self.image.release, processor=self.processor, mode=self.mode, command_line=words, log=log.boot,
                split_lock_detect=bool(ready.get("split_lock_detect")) if log.ready else None,
                bus_lock_detect=bool(ready.get("bus_lock_detect")) if log.ready else None,
                split_lock_mitigate=mitigate if isinstance(mitigate, int) else None,
                end=booted.end, seconds=round(booted.seconds, 3),
            )
        )  # fmt: skip
        return booted, log

    def untried(self, kind: Kind, reason: str) -> None:
        """A cell that stays empty."""
        self._add(Cell(
            kernel=self.image.release, processor=self.processor, mode=self.mode, kind=kind, outcome="not-tried",
            reason=reason,
        ))  # fmt: skip

    def tried(self, kind: Kind, told: Told, booted: Booted, warnings: int) -> None:
        """What is known of one kind; `warnings` came before it in this boot."""
        outcome, reason = outcome_of(told, booted.end)
        took = told.said("took")
        self._add(Cell(
            kernel=self.image.release, processor=self.processor, mode=self.mode, kind=kind, outcome=outcome,
            reason=reason, nanoseconds=[_whole(fields, "ns") for fields in took],
            executed=all(fields.get("executed") for fields in took) if took else None,
            apart=[_whole(fields, "ns") for fields in told.said("apart")], warnings=told.warnings,
            muted=warnings + told.warnings >= _WARNINGS, signal=_signal(told), log=told.log,
            boot=len(self.report.boots) - 1,
        ))  # fmt: skip

    def _add(self, cell: Cell) -> None:
        cell.documented = documented(cell.processor, cell.mode, cell.kind)
        cell.differs = differences(cell)
        self.report.cells.append(cell)


def _whole(fields: dict[str, int | str], name: str) -> int:
    value = fields.get(name, 0)
    return value if isinstance(value, int) else 0


def outcome_of(told: Told, end: End) -> tuple[Outcome, str | None]:
    """What became of a kind, and why where that is no outcome of the split lock's."""
    ends = told.said("end")
    killed = _whole(ends[0], "killed") if ends else 0
    if told.panic:
        return "panic", None
    if told.oops:
        return "oops", None
    if not ends and end != "done":
        return ("hang" if end == "hang" else "reset"), None
    if told.said("signal") or killed == signal.SIGBUS:
        return "sigbus", None
    if killed:
        return "killed", f"signal {killed}"
    if told.said("took"):
        return "completed", None
    if said := told.said("unavailable"):
        return "not-tried", f"this kernel runs no 32-bit programs ({_error(said[0])})"
    if (said := told.said("loaded")) and said[0].get("errno"):
        return "not-tried", f"the module cannot be loaded ({_error(said[0])})"
    return "hang", None  # of the kernel's thread or interrupt alone


def _error(fields: dict[str, int | str]) -> str:
    number = _whole(fields, "errno")
    return errno.errorcode.get(number, str(number))


def _signal(told: Told) -> Signal | None:
    if not (said := told.said("signal")):
        return None
    fields = said[0]
    places: dict[int | str, Literal["at", "after"]] = {"at": "at", "after": "after"}
    return Signal(
        number=_whole(fields, "number"), code=_whole(fields, "code"), address=hex(_whole(fields, "address")),
        executed=bool(fields.get("executed")), place=places.get(fields.get("place", ""), "elsewhere"),
    )  # fmt: skip
