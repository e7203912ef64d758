"""Does this QEMU do what the plugin's detection builds on? The probe's image runs before each guest that detects."""

from __future__ import annotations

import os
import tempfile

from splitlock._errors import SplitlockError
from splitlock.guest import watch
from splitlock.guest.detection import Detection, named
from splitlock.guest.probe.image import iso
from splitlock.guest.probe.log import read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from splitlock.guest.machine import Options
    from splitlock.guest.watch import Ended, Watch

    Lived = Callable[..., AbstractContextManager[tuple[Watch, Ended]]]
    from splitlock.report.probe import Row

_MEMORY = 32 << 20  # bytes
_SECONDS = 60.0  # it takes half a second


def check(options: Options, qemu: str, lived: Lived = watch.lived) -> None:
    """Try each row of the probe on the same QEMU and processor. Raises SplitlockError where one ends otherwise.

    `lived`: watch.py's, or stub/passes.py's.
    """
    with tempfile.TemporaryDirectory(prefix="splitlock-") as directory:
        image = os.path.join(directory, "probe.iso")
        with open(image, "wb") as file:
            file.write(iso())
        tried = options._replace(
            kernel=None, initrd=None, disk=None, cdrom=image, firmware=None, memory=_MEMORY, more=[], traps=None,
            cpus=min(options.cpus, 2),
        )  # fmt: skip
        with lived(tried, qemu, duration=_SECONDS, until=r"slp1 stop [^\n]*\n", console=None) as (seen, _):
            words = seen.machine.words()
            log = read(bytes(seen.said))
    what = f"--qemu {options.qemu}: {named(options.detection)} does not work on QEMU {qemu}"
    if log.expected is None or len(log.rows) != log.expected:
        raise SplitlockError(
            f"{what}: its test did not come to its end; {words.splitlines()[-1] if words else 'no reason given'}", 2
        )
    for row in log.rows:
        wanted = expected(row, options.detection)
        found = f"#{row.vector} {row.place} {row.error or ''}".strip() if row.outcome == "raised" else row.outcome
        if found != wanted or row.memory_right is False:
            raise SplitlockError(f"{what}: row {row.number} of its test is `{found}`, not `{wanted}`", 2)
    if options.detection.split_locks and not any(row.detecting for row in log.rows):
        raise SplitlockError(f"{what}: TEST_CTRL cannot be set", 2)
    if options.detection.bus_locks and not any(row.access == "buslock" for row in log.rows):
        raise SplitlockError(f"{what}: CPUID does not show bus-lock detection", 2)


def expected(row: Row, detection: Detection) -> str:
    """How a row is to end on such a processor: `completed`, or vector, place, error code. TCG checks no alignment."""
    code = "" if row.error is None else " 0000"
    if row.access == "buslock" and row.cpl == 3 and detection.bus_locks:
        return f"#1 after{code}"
    split = row.access in ("split", "buslock")
    traps = detection.split_locks and row.detecting
    traps = traps or (detection.forward in ("once", "always")) or (detection.forward == "asked" and row.asked)
    return f"#17 at{code}" if split and traps else "completed"
