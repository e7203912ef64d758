"""The verdict `disable`: what can be turned off at run time, and what is said about it.

The article's first answer turned detection itself off. No kernel can do that once it has booted: the mode,
`split_lock_detect=`, is fixed by then. What a running kernel has since 6.2 is `kernel.split_lock_mitigate`: 0 takes the
misery off user tasks (sleep, and one core at a time) in the mode `warn`, and leaves detection as it is. Debian's 6.1
has it, too.
"""

from __future__ import annotations

from splitlock.linux.sentences import PREFIX
from splitlock.linux.text import one_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.report.guard import Decision

SYSCTL = "/proc/sys/kernel/split_lock_mitigate"
KMSG = "/dev/kmsg"


def disable(decision: Decision, sysctl: str = SYSCTL, kmsg: str = KMSG) -> str:
    """Turn the mitigation off for a module that was let in as `disable`; what was done, for a person."""
    try:
        with open(sysctl, "w") as file:
            file.write("0\n")
        done = "kernel.split_lock_mitigate=0"
    except FileNotFoundError:
        done = "this kernel has no kernel.split_lock_mitigate"
    except OSError as error:
        done = f"kernel.split_lock_mitigate: {error.strerror}"
    done += "; the mode, split_lock_detect=, is fixed at boot"
    words = decision.log or f"{PREFIX}{decision.reason} in module: {decision.name}"
    try:
        with open(kmsg, "w") as file:
            file.write(f"<4>{one_line(words)} (splitlock: {done})\n")
    except OSError:
        pass  # the log has it
    return done
