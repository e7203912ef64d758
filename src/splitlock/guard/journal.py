"""systemd's journal, by its native protocol: a datagram of fields, a line each (systemd.io/JOURNAL_NATIVE_PROTOCOL)."""

from __future__ import annotations

import socket

from splitlock.linux.text import one_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.report.guard import Decision

SOCKET = "/run/systemd/journal/socket"
_PRIORITY = {"allow": 6, "disable": 4, "refuse": 4}  # info, warning


class Journal:
    """Where decisions are sent; without a journal they go nowhere, the log has them."""

    def __init__(self, path: str = SOCKET) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self.failed = 0  #: datagrams that nobody took

    def send(self, decision: Decision) -> None:
        """One decision as one entry."""
        word = "refused" if decision.refused else {"allow": "allowed", "disable": "let in, disable"}.get(
            decision.verdict, "let in (audit), would be refused"
        )  # fmt: skip
        fields = {
            "MESSAGE": f"module {decision.name or '?'} {word}: {decision.reason}",
            "PRIORITY": _PRIORITY[decision.verdict],
            "SYSLOG_IDENTIFIER": "splitlock",
            "SPLITLOCK_MODULE": decision.name,
            "SPLITLOCK_VERDICT": decision.verdict,
            "SPLITLOCK_REFUSED": int(decision.refused),
            "SPLITLOCK_POLICY": decision.policy,
            "SPLITLOCK_RULE": "" if decision.rule is None else decision.rule,
            "SPLITLOCK_DOUBT": decision.doubt or "",
            "SPLITLOCK_KERNEL_LOG": decision.log,
            "SPLITLOCK_DIGEST": decision.digest or "",
            "SPLITLOCK_BUILD_ID": decision.build_id,
            "SPLITLOCK_SIZE": decision.size,
            "SPLITLOCK_FINDINGS": ",".join(sorted({finding.kind for finding in decision.findings})),
            "SPLITLOCK_FROM": decision.source,
            "SPLITLOCK_LOADER": decision.comm,
            "SPLITLOCK_LOADER_PID": decision.pid,
            "SPLITLOCK_LOADER_UID": decision.uid,
            "SPLITLOCK_NANOSECONDS": decision.nanoseconds,
        }
        raw = "".join(f"{key}={one_line(str(value))}\n" for key, value in fields.items())
        try:
            self._socket.sendto(raw.encode("utf-8", "replace"), self.path)
        except OSError:  # no journal, or not yet; the file has it
            self.failed += 1
