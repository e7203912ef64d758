"""How often does the kernel say each of its sentences? One table, read in 5.10.262, 6.1.192, 6.12.118, 7.2.13, 7.3.4.

`once a boot` and `once a task` are said of who comes first; a rate limit holds back what is more than ten lines in
five seconds, of everybody who shares it (include/linux/ratelimit_types.h, lib/ratelimit.c).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from splitlock.linux import sentences, versions
from splitlock.linux.sentences import Sentence
from splitlock.linux.versions import Change

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from splitlock.linux.detection import Kernel

Every = Literal["boot", "once a boot", "once a task", "each time", "each interval"]
BURST, INTERVAL_MS = 10, 5000  #: of every rate limit here: DEFAULT_RATELIMIT_BURST, DEFAULT_RATELIMIT_INTERVAL

#: A rate limit that is one line of the source's own, and the kernel's common one, which segfaults use up, too.
OWN, COMMON = "its own", "shared with all lines of killed programs: printk_ratelimit()"


class Often(NamedTuple):
    """One entry. Of those of a sentence that fit, the last one holds."""

    sentence: Sentence
    every: Every
    source: str  #: the function, and what it calls
    place: str = ""  #: sentences of one place in the source are said once together, and share a limit; else empty
    limit: str = ""  #: whose rate limit; empty: none
    since: Change | None = None  #: None: as long as there is the sentence


_SPLIT, _BUS, _GUEST = "split_lock_warn()", "handle_bus_lock()", "handle_guest_split_lock()"
_SIGNAL, _SHOW, _SETUP = "show_signal()", "sld_state_show(), pr_info()", "split_lock_setup(), pr_info()"
_STEAMOS = "linux-integration, bus_lock.c"

TABLE = (
    # -- at boot: functions that run once, or once a processor -----------------------------------------------------
    *(Often(one, "boot", _SHOW) for one in (
        sentences.OFF, sentences.AC_WARN, sentences.AC_FATAL, sentences.DB_WARN, sentences.DB_FATAL,
        sentences.DB_FATAL_NON_WB, sentences.DB_RATELIMIT, sentences.NO_OFFLINE)),
    *(Often(one, "boot", _SETUP) for one in (sentences.NO_MSR, sentences.WARN_5_7, sentences.FATAL_5_7)),
    Often(sentences.STEAMOS_OFF, "boot", _STEAMOS),
    Often(sentences.STEAMOS_DB_OFF, "boot", f"{_STEAMOS}; for each processor"),
    Often(sentences.TDX, "boot", "posted"),
    # -- programs and guests ---------------------------------------------------------------------------------------
    Often(sentences.TOOK_SPLIT, "each time", f"{_SPLIT}, pr_warn_ratelimited()", _SPLIT, OWN, versions.SPLIT_LOCKS),
    Often(sentences.TOOK_SPLIT, "once a task", f"{_SPLIT}, reported_split_lock, pr_warn_ratelimited()", _SPLIT, OWN,
          versions.MISERY),
    Often(sentences.TOOK_BUS, "each time", f"{_BUS}, pr_warn_ratelimited()", _BUS, OWN),
    Often(sentences.GUEST_FATAL, "once a boot", f"{_GUEST}, pr_warn_once()", _GUEST),
    Often(sentences.GUEST_BOGUS, "once a boot", f"{_GUEST}, pr_warn_once()", _GUEST),
    Often(sentences.KILLED, "each time", f"{_SIGNAL}, printk_ratelimit()", _SIGNAL, COMMON),
    Often(sentences.MSR_REFUSED, "once a boot", "ex_handler_msr(), __ONCE_LITE_IF(); ex_handler_wrmsr_unsafe(), "
          "pr_warn_once() before", "ex_handler_msr()"),
    # -- the kernel's own ------------------------------------------------------------------------------------------
    *(Often(one, "each time", "die(), __die_header()") for one in (
        sentences.OOPS, sentences.OOPS_5_7, sentences.ALIGNMENT)),
    # -- about lines -----------------------------------------------------------------------------------------------
    *(Often(one, "each interval", "___ratelimit(), printk_deferred()") for one in (
        sentences.SUPPRESSED_SPLIT, sentences.SUPPRESSED_BUS, sentences.SUPPRESSED_SIGNALS)),
    Often(sentences.LOST, "each time", "kernel/printk/printk.c"),
    Often(sentences.MISSED, "each time", "systemd: journald-kmsg.c"),
    # -- posted, not merged; `splitlock guard` says it ---------------------------------------------------------------
    Often(sentences.OFF_BY_MODULE, "each time", "LWN 816918"),
)  # fmt: skip


def often(kernel: Kernel, sentence: Sentence) -> Often:
    """How often this kernel says it. Raises LookupError where it never does, as far as the table knows."""
    found = None
    for entry in TABLE:
        if entry.sentence is sentence and (entry.since is None or kernel.knows(entry.since)):
            found = entry
    if found is None:
        raise LookupError(sentence.template)
    return found


class Heard:
    """What one kernel has said since it booted, as far as it keeps it from saying it again."""

    def __init__(self) -> None:
        self._once: set[str] = set()
        self._tasks: set[tuple[str, int]] = set()

    def again(self, entry: Often, pid: int) -> bool:
        """Has it to be silent? Takes it that it speaks now."""
        if entry.every == "once a boot":
            silent = entry.place in self._once
            self._once.add(entry.place)
            return silent
        if entry.every == "once a task":
            silent = (entry.place, pid) in self._tasks
            self._tasks.add((entry.place, pid))
            return silent
        return False

    def ended(self, pid: int) -> None:
        """This task is no more; one that gets its number is another, of which nothing was said."""
        self._tasks = {(place, task) for place, task in self._tasks if task != pid}


def printed(times_ms: Iterable[float]) -> int:
    """Of lines at these times, in order: how many a rate limit lets through, that was not in use before."""
    begin, left, count = None, 0, 0
    for now in times_ms:
        if begin is None or now > begin + INTERVAL_MS:
            begin, left = now, BURST
        if left:
            left -= 1
            count += 1
    return count
