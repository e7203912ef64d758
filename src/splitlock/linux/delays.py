"""How long does the kernel make a task wait that takes split or bus locks?

Nothing is imported here: this file is on the way of `splitlock run`. Source: arch/x86/kernel/cpu/bus_lock.c (intel.c
before 6.13), split_lock_warn() and handle_bus_lock(); docs/linux.md says from which version on.
"""

from __future__ import annotations

SLEEP_MS = 10  #: `warn`: sleep before each split lock that traps ("misery factor #1")
JIFFIES = 2  #: `warn`: for so long detection is then off on that processor, and no other task may have it off
STEP_MS = 20  #: `ratelimit`: sleep between two looks whether the next bus lock is within the limit
RATES = range(1, 1001)  #: `ratelimit:N`: the bus locks a second that may be asked for (match_option())
