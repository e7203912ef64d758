"""Which Linux brought what? Mainline's versions; a distribution's kernel may have some of it earlier.

Sources: the history of arch/x86/kernel/cpu/intel.c, bus_lock.c and arch/x86/kvm, as marked.
"""

from __future__ import annotations

import re

Version = tuple[int, int]

SPLIT_LOCKS: Version = (5, 7)  #: `#AC`, modes warn and fatal
KVM_ASKS: Version = (5, 8)  #: KVM intercepts a guest's `#AC` and asks the host: handle_guest_split_lock()
BUS_LOCKS: Version = (5, 13)  #: `#DB`, Intel's
RATELIMIT: Version = (5, 14)
MISERY: Version = (5, 19)  #: 10 ms of sleep, one task at a time, detection back on after two jiffies
MITIGATE: Version = (6, 1)  #: kernel.split_lock_mitigate: 6.2, and stable releases of 6.1
AMD: Version = (6, 13)  #: `#DB`, AMD's
KVM_SWITCHES_DEBUGCTL: Version = (6, 14)  #: on AMD, for the guest: svm_vcpu_run()

_RELEASE = re.compile(r"(\d{1,3})\.(\d{1,3})(?:\.|-|\+|$)")


def version(release: str) -> Version | None:
    """Of a release, as `uname -r` has it: 6.1.0-56-amd64; None where it is none."""
    found = _RELEASE.match(release)
    return (int(found[1]), int(found[2])) if found else None
