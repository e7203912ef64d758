"""What are the kernel's sentences about split locks, word by word? One table: lines are made and understood by it.

A template is as `str.format` takes it. Each names where its words stand in the kernel; docs/linux.md says which
versions print them. Nothing is imported here: this file is on the way of `splitlock run`.
"""

from __future__ import annotations

PREFIX = "x86/split lock detection: "


class Sentence:
    """One sentence. `kind`, `exception`, `detail`: those of the `Line` that it is understood as (linux/log.py)."""

    __slots__ = ("detail", "exception", "kind", "source", "template")

    def __init__(self, kind: str, exception: str, template: str, source: str, detail: str = "") -> None:
        self.kind, self.exception, self.template, self.source = kind, exception, template, source
        self.detail = detail

    def format(self, **fields: str | int) -> str:
        """The kernel's line, without its time stamp. A name is cut as the kernel keeps it: at 15 characters."""
        if "comm" in fields:
            fields["comm"] = str(fields["comm"])[:COMM]
        return self.template.format(**fields)


COMM = 15  #: characters of a task's name (include/linux/sched.h: TASK_COMM_LEN)

_WARN = "split_lock_warn()"
_GUEST = "handle_guest_split_lock()"
_SHOW = "sld_state_show()"
_SETUP = "__split_lock_setup()"

TOOK_SPLIT = Sentence(
    "trap", "#AC", PREFIX + "#AC: {comm}/{pid} took a split_lock trap at address: 0x{address:x}", _WARN
)
TOOK_BUS = Sentence(
    "trap", "#DB", PREFIX + "#DB: {comm}/{pid} took a bus_lock trap at address: 0x{address:x}", "handle_bus_lock()"
)
GUEST_FATAL = Sentence(
    "guest", "#AC", PREFIX + "#AC: {comm}/{pid} fatal split_lock trap at address: 0x{address:x}", _GUEST, "fatal"
)
GUEST_BOGUS = Sentence(
    "guest", "#AC", PREFIX + "#AC: {comm}/{pid} bogus split_lock trap at address: 0x{address:x}", _GUEST, "bogus"
)
#: SIGBUS. What follows `error:`, print_vma_addr() appends: ` in FILE[START+SIZE]`, newer ` in FILE[OFFSET,START+SIZE]`.
KILLED = Sentence(
    "killed", "#AC", "traps: {comm}[{pid}] trap alignment check ip:{address:x} sp:{sp:x} error:{error:x}{place}",
    "traps.c: show_signal()",
)  # fmt: skip
#: The line break is part of the string: consoles and files have two lines, /dev/kmsg and the journal one record.
OOPS_5_7 = Sentence("oops", "#AC", "Split lock detected\n: {error:04x} [#{number}]", "traps.c: exc_alignment_check()")
OOPS = Sentence("oops", "#AC", "Oops: Split lock detected\n: {error:04x} [#{number}]", "traps.c: exc_alignment_check()")
#: What a kernel without detection makes of an `#AC` in itself: not known to be a split lock.
ALIGNMENT = Sentence("alignment", "#AC", "alignment check: {error:04x} [#{number}]", "traps.c: do_alignment_check()")

OFF = Sentence("mode", "", PREFIX + "disabled", _SHOW, "off")
#: Posted, never merged (LWN 816918); `splitlock guard` says it in these words.
OFF_BY_MODULE = Sentence("mode", "", PREFIX + "disabled due to VMLAUNCH in module: {name}", "LWN 816918", "off")
NO_MSR = Sentence("mode", "", PREFIX + "MSR access failed: Disabled", _SETUP, "off")
WARN_5_7 = Sentence("mode", "", PREFIX + "warning about user-space split_locks", _SETUP, "warn")
FATAL_5_7 = Sentence("mode", "", PREFIX + "sending SIGBUS on user-space split_locks", _SETUP, "fatal")
_CRASHING = PREFIX + "#AC: crashing the kernel on kernel split_locks and "
AC_WARN = Sentence("mode", "#AC", _CRASHING + "warning on user-space split_locks", _SHOW, "warn")
AC_FATAL = Sentence("mode", "#AC", _CRASHING + "sending SIGBUS on user-space split_locks", _SHOW, "fatal")
DB_WARN = Sentence("mode", "#DB", PREFIX + "#DB: warning on user-space bus_locks", _SHOW, "warn")
DB_FATAL = Sentence("mode", "#DB", PREFIX + "#DB: sending SIGBUS on user-space bus_locks", _SHOW, "fatal")
DB_FATAL_NON_WB = Sentence(
    "mode", "#DB", PREFIX + "#DB: sending SIGBUS on user-space bus_locks from non-WB", _SHOW, "fatal"
)
DB_RATELIMIT = Sentence(
    "mode", "#DB", PREFIX + "#DB: setting system wide bus lock rate limit to {rate}/sec", _SHOW, "ratelimit"
)
#: SteamOS's kernel: mode off, or a processor without `#DB`, whatever the mode that was asked for.
STEAMOS_OFF = Sentence(
    "mode", "", PREFIX + "Split lock detection explicitly disabled via MSR_TEST_CTRL",
    "linux-integration, bus_lock.c: split_lock_setup()", "off",
)  # fmt: skip
STEAMOS_DB_OFF = Sentence(
    "note", "", PREFIX + "Bus lock detection explicitly disabled via MSR_IA32_DEBUGCTLMSR",
    "linux-integration, bus_lock.c: bus_lock_init()",
)  # fmt: skip
#: Posted, in no release up to 7.3: a TDX guest's kernel, which cannot know what its host does.
TDX = Sentence(
    "note", "#AC", "tdx: #AC depends on host configuration: crashing the kernel on kernel split_locks and sending "
    "SIGBUS on user-space split_locks", "posted: x86/tdx",
)  # fmt: skip
NO_OFFLINE = Sentence("note", "", PREFIX + "No splitlock CPU offline handler", _SHOW)

SUPPRESSED_SPLIT = Sentence(
    "suppressed", "#AC", "split_lock_warn: {count} callbacks suppressed", "lib/ratelimit.c", "split_lock_warn"
)
SUPPRESSED_BUS = Sentence(
    "suppressed", "#DB", "handle_bus_lock: {count} callbacks suppressed", "lib/ratelimit.c", "handle_bus_lock"
)
#: Shared with every other signal that the kernel logs, segfaults above all: not known to be split locks.
SUPPRESSED_SIGNALS = Sentence(
    "suppressed", "", "{function}: {count} callbacks suppressed", "traps.c: show_signal(); mm/fault.c", "signals"
)
#: A guest that must not turn detection off, and does not get on: TDX.
MSR_REFUSED = Sentence(
    "msr", "#AC", "unchecked MSR access error: WRMSR to 0x33 (tried to write 0x{value:x}) at rIP: 0x{address:x}",
    "arch/x86/mm/extable.c: ex_handler_msr()",
)  # fmt: skip
LOST = Sentence("lost", "", "** {count} printk messages dropped **", "kernel/printk/printk.c")
#: The journal's own word for what it did not get.
MISSED = Sentence("lost", "", "Missed {count} kernel messages", "systemd: journald-kmsg.c")

#: In the order in which a text is held against them: where one begins like another, the longer comes first.
SENTENCES = (
    TOOK_SPLIT, TOOK_BUS, GUEST_FATAL, GUEST_BOGUS, KILLED, OOPS, OOPS_5_7, ALIGNMENT, OFF_BY_MODULE, OFF, NO_MSR,
    WARN_5_7, FATAL_5_7, AC_WARN, AC_FATAL, DB_WARN, DB_FATAL_NON_WB, DB_FATAL, DB_RATELIMIT, NO_OFFLINE,
    STEAMOS_OFF, STEAMOS_DB_OFF, TDX, SUPPRESSED_SPLIT, SUPPRESSED_BUS, SUPPRESSED_SIGNALS, MSR_REFUSED, LOST,
    MISSED,
)  # fmt: skip
