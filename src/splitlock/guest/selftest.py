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

    from splitlock.guest.bochs.emulator import Emulator
    from splitlock.guest.machine import Options
    from splitlock.guest.watch import Ended, Watch

    Lived = Callable[..., AbstractContextManager[tuple[Watch, Ended]]]
    from splitlock.report.probe import Row

_MEMORY = 32 << 20  # bytes
_QEMU_SECONDS, _BOCHS_SECONDS = 60.0, 300.0  # it takes half a second, and with a BIOS before it two


def check(options: Options, emulator: str | Emulator, lived: Lived = watch.lived) -> None:
    """Try each row of the probe on the same emulator and processor. Raises SplitlockError where one ends otherwise.

    `lived`: watch.py's, stub/passes.py's with QEMU's version as `emulator`; bochs/machine.py's.
    """
    with tempfile.TemporaryDirectory(prefix="splitlock-") as directory:
        image = os.path.join(directory, "probe.iso")
        with open(image, "wb") as file:
            file.write(iso(wait=False))
        tried = options._replace(
            kernel=None, initrd=None, disk=None, cdrom=image, firmware=None, memory=_MEMORY, more=[], traps=None,
            cpus=min(options.cpus, 2),
        )  # fmt: skip
        limit = _QEMU_SECONDS if isinstance(emulator, str) else _BOCHS_SECONDS
        with lived(tried, emulator, duration=limit, until=r"slp1 stop [^\n]*\n", console=None) as (seen, ended):
            words = seen.machine.words()
            log = read(bytes(seen.said))
    who = f"--qemu {options.qemu}: QEMU {emulator}" if isinstance(emulator, str) else f"{emulator.program}"
    what = f"{who} is no processor with {named(options.detection)}"
    if log.expected is None or len(log.rows) != log.expected:
        why = f"this machine is too busy: not done after {limit:g} s" if ended.why == "duration" else words or ended.why
        raise SplitlockError(f"{what}: its test did not come to its end; {why}", 2)
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
    """How a row is to end on such a processor: `completed`, or vector, place, error code. QEMU checks no alignment."""
    code = "" if row.error is None else " 0000"
    if row.access == "buslock" and row.cpl == 3 and detection.bus_locks:
        return f"#1 after{code}"
    if detection.vmx and row.asked and row.access != "aligned":
        return f"#17 at{code}"
    split = row.access in ("split", "buslock")
    traps = detection.split_locks and row.detecting
    traps = traps or (detection.forward in ("once", "always")) or (detection.forward == "asked" and row.asked)
    return f"#17 at{code}" if split and traps else "completed"
