"""`--slow`: detection on a QEMU that exports no functions, in passes, as stops must be known beforehand.

In the first pass nothing is detected: the plugin tells where split locks are, and accesses to MSRs and DR6. In the
second the gdb stub stops there (stops.py). A pass in which something escaped is worth nothing and is made again with
what it has told. The kernel is told to put everything at the same addresses each time.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress

from splitlock._errors import SplitlockError
from splitlock.guest.machine import Machine
from splitlock.guest.stub.protocol import GoneError
from splitlock.guest.stub.stops import Stops
from splitlock.guest.watch import Watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from splitlock.guest.machine import Options
    from splitlock.guest.watch import Ended

SAME_ADDRESSES = "nokaslr norandmaps"  # Documentation/admin-guide/kernel-parameters.txt
MOST = 8  # passes; what escapes in the last is reported


@contextmanager
def lived(
    options: Options, qemu: str, *, duration: float | None, until: str | None, console: int | None,
    tell: Callable[[str], None] = lambda _: None,
) -> Iterator[tuple[Watch, Ended]]:  # fmt: skip
    """The last pass's guest, after its end. `tell` is told what begins. Raises SplitlockError."""
    at: frozenset[int] = frozenset()
    options = options._replace(append=f"{SAME_ADDRESSES} {options.append}")  # before a `--`
    number = 0
    while True:
        number += 1
        if options.traps is not None:
            with suppress(OSError):  # a pipe keeps what it has
                os.ftruncate(options.traps, 0)
        machine = Machine(options._replace(slow="count" if number == 1 else "stop"), qemu)
        try:
            watch = Watch(machine, options.cpus)
            watch.passes, watch.last_pass = number, number == MOST
            try:
                if number == 1:
                    tell("pass 1: where are split locks?")
                else:
                    tell(f"pass {number}: with detection, by {len(at)} stops")
                    watch.stops = Stops(machine, watch.names, watch.named, at)
                ended = watch.run(duration=duration, until=until, console=console)
            except GoneError:
                raise SplitlockError(f"--slow: QEMU ended: {machine.words() or 'it says nothing'}", 2) from None
            finally:
                machine.end()
            again = watch.stops is None or any(watch.stops.escaped())
            if ended.why.startswith("qemu: "):
                again = watch.stops is not None and _may_die(qemu)
            if number == MOST or not again or ended.why == "interrupted":
                yield watch, ended
                return
            at |= machine.shared.places()[0]
            at |= {entry.pc for entry in machine.shared.entries() if entry.hits or entry.traps}
        finally:
            machine.close()


def _may_die(qemu: str) -> bool:
    """Whether this QEMU may die of stops: before 8.0 a CPU may hold on to a plugin's callback that goes with the
    translations, which a stop throws away (accel/tcg/cpu-exec.c, cpu_tb_exec: qemu_plugin_disable_mem_helpers)."""
    return int(qemu.partition(".")[0]) < 8
