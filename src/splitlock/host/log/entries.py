"""What is an entry of a log with a structure: whose is it, of when, which lines are in it; and a reader of such."""

from __future__ import annotations

from splitlock.host.log.wrappings import JOURNALD, QUOTED, Record, begins, kernels, other
from splitlock.linux import log
from splitlock.linux.text import number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

WHOLE = 32 << 20  # bytes of an entry, or of a JSON object, that are waited for
LONG = 1 << 20  #: bytes of a line, or of a JSON string, that are: longer ones are dealt with as they come


def whole(text: str, made: Record) -> Iterator[Record]:
    """A record's text as lines, as consoles have them.

    The kernel's sentence begins a record. What stands elsewhere in it is a part of a name: of a file, of a task, of a
    USB device; whoever chose it may have put line breaks and the kernel's words there. An oops alone has two lines.
    """
    said = log.parse(text)
    if "\n" in text and (said is None or said.kind == "unknown"):
        said = log.parse(text.replace("\n", " ")) or said
    quoted = said is not None and bool(said.stamp) and not begins(f"{said.stamp} ")
    if said is not None and not quoted and said.kind not in ("oops", "alignment"):
        yield made._replace(text=f"{said.stamp} {said.text}".lstrip())
        return
    own = 2 if said is not None and not quoted else 1
    for at, line in enumerate(text.split("\n")):
        speaker = made.speaker or (QUOTED if quoted or at >= own else "")
        yield made._replace(
            text=line,
            speaker=speaker,
            read=0 if at else made.read,
            lost=0 if at else made.lost,
        )


class Reader:
    """Chunks into whole lines, and those into records."""

    def __init__(self) -> None:
        self.first = self.last = b""
        self._rest = b""

    def add(self, chunk: bytes) -> Iterator[Record]:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > LONG:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            yield from self.line(line)

    def end(self) -> Iterator[Record]:
        rest, self._rest = self._rest, b""
        if rest:
            yield from self.line(rest)
        yield from self.close()

    def idle(self) -> Iterator[Record]:
        yield from ()

    def line(self, line: bytes) -> Iterator[Record]:
        raise NotImplementedError

    def close(self) -> Iterator[Record]:
        yield from ()

    def _note(self, text: str) -> None:
        self.last = text.encode("utf-8", "replace")
        self.first = self.first or self.last


_LAST = 253_402_300_800_000_000  # microseconds from 1970 to the year 10000: datetime knows none of later


def seconds(fields: dict[str, Any]) -> float | None:
    """An entry's time, in seconds since 1970."""
    given = fields.get("__REALTIME_TIMESTAMP")
    found = number(given) if isinstance(given, str) else None
    return None if found is None or found >= _LAST else found / 1e6


# Fields of a process, which the kernel is none of; journald itself notes them.
_PROCESS = ("_COMM", "_PID", "_UID", "_EXE", "_CMDLINE")
ENTRY = frozenset(("_TRANSPORT", "__CURSOR", *_PROCESS))
# As rsyslog, syslog-ng, fluentd and vector spell them.
_FACILITIES = ("SYSLOG_FACILITY", "facility", "syslogfacility", "syslogfacility-text", "facility_label")
_NAMES = ("SYSLOG_IDENTIFIER", "appname", "app-name", "app_name", "programname", "ident", "syslogtag", "PROGRAM")


def by(fields: dict[str, Any]) -> str:
    """Who an entry is from, where it is not from the kernel: by its transport, which journald itself notes, or by
    what a syslog daemon made of it."""
    transport = fields.get("_TRANSPORT")
    facility = _first(fields, _FACILITIES)
    name = str(_first(fields, _NAMES) or "")
    if transport == "driver":
        return JOURNALD
    if transport == "kernel":  # what programs write to /dev/kmsg comes that way too, with a facility of its own
        return "" if str(facility or "0") == "0" else name or "user space"
    process = _first(fields, _PROCESS)
    if transport is None and process is None:
        return other(facility, name)
    if process is not None and fields.get("_COMM"):
        return str(fields["_COMM"])
    return name if name and not kernels(name) else str(transport or "user space")


# As the journal, rsyslog, syslog-ng, fluentd and vector spell it.
_HOSTS = ("_HOSTNAME", "hostname", "HOST", "host", "fromhost", "HOSTNAME")


def whose(fields: dict[str, Any]) -> tuple[str, tuple[str, str]]:
    """Whose an entry is: the host's name, and the ids of the machine and of its boot; empty: it does not tell."""
    name, machine, boot = _first(fields, _HOSTS), fields.get("_MACHINE_ID"), fields.get("_BOOT_ID")
    text = [word if isinstance(word, str) else "" for word in (name, machine, boot)]
    return text[0], (text[1], text[2])


def _first(fields: dict[str, Any], names: tuple[str, ...]) -> object:
    return next((fields[name] for name in names if fields.get(name) is not None), None)
