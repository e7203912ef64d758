#!/usr/bin/env python3
"""How do the kernel's lines look once a tool has had them? Writes shapes/ anew, with the tools themselves.

    tests/linux/corpus/make.py              all shapes
    tests/linux/corpus/make.py dmesg-color  some

Each file holds every line of lines.toml, as that tool, or a person with that tool, puts it. shapes.toml says what of
the right answers is not to be had from which. Needs root (rsyslogd), and on Debian 12: gcc, util-linux, rsyslog,
logrotate, systemd-journal-remote, tmux, less, jq, gzip, xz-utils, zstd, bzip2, lz4, libc-bin.
"""

from __future__ import annotations

import html
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SHAPES = HERE / "shapes"
DATA = tomllib.loads((HERE / "lines.toml").read_text())
LINES: list[dict[str, Any]] = DATA["line"]
FORGED: dict[str, Any] = DATA["forged"]
BOOTED = 1_782_847_936  # seconds since 1970: 30 June 2026, 19:32:16 UTC
HOST = "box"
ENVIRONMENT = {**os.environ, "TZ": "UTC", "LC_ALL": "C.UTF-8", "TERM": "xterm-256color"}
PREFIX = "x86/split lock detection: "
_PSTORE = 1_700  # bytes of a part: what an EFI variable holds


def records() -> list[tuple[int, float, str]]:
    """What the kernel printed: level, seconds since boot, text, which may have two lines."""
    found = []
    for line in LINES:
        found.append((line["level"], line["at"], line["text"]))
        found += [(line["level"], line["at"], text) for text in line.get("after", [])]
    return found


def stamp(seconds: float) -> str:
    """CONFIG_PRINTK_TIME: print_time() in kernel/printk/printk.c."""
    return f"[{int(seconds):5}.{round(seconds % 1 * 1e6):06}]"


def syslog() -> bytes:
    """As syslog(2) and `dmesg --raw` have it: the level and time before every line of a record."""
    return "".join(
        f"<{level}>{stamp(at)} {part}\n" for level, at, text in records() for part in text.split("\n")
    ).encode()


def console(end: str = "\n") -> bytes:
    """As the kernel writes to a console: record_print_text()."""
    return "".join(f"{stamp(at)} {part}{end}" for _, at, text in records() for part in text.split("\n")).encode()


def kmsg(before: str = "") -> bytes:
    """As /dev/kmsg gives records (Documentation/ABI/testing/dev-kmsg); `before`: netconsole's release."""
    found = ""
    for number, (level, at, text) in enumerate(records(), 300):
        words = "".join(f"\\x{b:02x}" if b < 0x20 or b >= 0x7F or b == 0x5C else chr(b) for b in text.encode())
        more = "\n SUBSYSTEM=usb\n DEVICE=+usb:1-1" if text.startswith("usb") else ""
        found += f"{before}{level},{number},{round(at * 1e6)},-;{words}{more}\n"
    return found.encode()


def tool(*words: str, given: bytes | None = None, more: dict[str, str] | None = None) -> bytes:
    """What a tool writes."""
    return subprocess.run(words, input=given, stdout=subprocess.PIPE, check=True, env=ENVIRONMENT | (more or {})).stdout


def _file(data: bytes, name: str = "log") -> str:
    path = Path(tempfile.mkdtemp(prefix="corpus-"), name)
    path.write_bytes(data)
    return str(path)


def dmesg(*options: str) -> Callable[[], bytes]:
    """util-linux's dmesg, as it reads /dev/kmsg: a saved one stands in for it (kmsg.c)."""
    return lambda: tool("dmesg", *options, more={"LD_PRELOAD": _stand_in(), "SAVED_KMSG": _file(kmsg())})


@cache
def _stand_in() -> str:
    library = _file(b"", "kmsg.so")
    tool("gcc", "-shared", "-fPIC", "-O2", "-U_FORTIFY_SOURCE", "-o", library, str(HERE / "kmsg.c"), "-ldl")
    return library


def saved(*options: str) -> Callable[[], bytes]:
    """dmesg on a saved buffer of syslog(2)."""
    return lambda: tool("dmesg", "-F", _file(syslog()), *options)


def through(*words: str, given: Callable[[], bytes] | None = None) -> Callable[[], bytes]:
    """A filter over what dmesg prints."""
    return lambda: tool(*words, given=(given or dmesg())())


def compressed(*words: str) -> Callable[[], bytes]:
    """kern.log, compressed."""
    return lambda: tool(*words, given=dmesg()())


# --- syslog ---

_RSYSLOG = """\
module(load="imklog" logPath="{0}/kmsg" permitNonKernelFacility="on")
module(load="imuxsock" sysSock.use="off")
input(type="imuxsock" socket="{0}/log" createPath="on" useSysTimestamp="off")
global(localHostname="box" workDirectory="{0}")
action(type="omfile" file="{0}/traditional" template="RSYSLOG_TraditionalFileFormat")
action(type="omfile" file="{0}/rfc3339" template="RSYSLOG_FileFormat")
action(type="omfile" file="{0}/rfc5424" template="RSYSLOG_SyslogProtocol23Format")
"""


def rsyslog(what: str, *, by_socket: bool = False) -> Callable[[], bytes]:
    """rsyslogd's file: the kernel's buffer by imklog; or as journald forwards it, a datagram a record (`#012`)."""
    return lambda: Path(_rsyslogd(by_socket=by_socket), what).read_bytes()


def _rsyslogd(*, by_socket: bool) -> Path:
    directory = Path(tempfile.mkdtemp(prefix="corpus-"))
    os.mkfifo(directory / "kmsg")
    (directory / "conf").write_text(_RSYSLOG.format(directory))
    held = os.open(directory / "kmsg", os.O_RDWR)  # or the reader meets its end
    with subprocess.Popen(
        ["rsyslogd", "-n", "-i", str(directory / "pid"), "-f", str(directory / "conf")], env=ENVIRONMENT
    ) as daemon:
        _until((directory / "log").exists)
        if by_socket:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.connect(str(directory / "log"))
                for level, at, text in records():
                    when = time.strftime("%b %e %H:%M:%S", time.gmtime(BOOTED + at))
                    sender.send(f"<{level}>{when} kernel: {text}".encode())
                    time.sleep(0.002)
        else:
            os.write(held, syslog())
        _until(
            lambda: (directory / "rfc3339").exists() and b"raw_local_deliver" in (directory / "rfc3339").read_bytes()
        )
        subprocess.run(
            ["logger", "--socket", str(directory / "log"), "--tag", "root", "--id=4243", FORGED["text"]], check=True
        )
        _until(lambda: b"forged" in (directory / "rfc5424").read_bytes())
        daemon.terminate()
    os.close(held)
    return directory


def _until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not done():
        if time.monotonic() > end:
            raise SystemExit("rsyslogd wrote nothing")
        time.sleep(0.05)


# --- the journal ---


def export() -> bytes:
    """The records as journald stores them, in the journal's export format."""
    found = b""
    for number, (level, at, text) in enumerate(records()):
        found += _entry(
            number, at, text, _TRANSPORT="kernel", SYSLOG_FACILITY="0", SYSLOG_IDENTIFIER="kernel", PRIORITY=str(level),
            _SOURCE_MONOTONIC_TIMESTAMP=str(round(at * 1e6)),
        )  # fmt: skip
    found += _entry(
        900, FORGED["at"], FORGED["text"], _TRANSPORT="syslog", SYSLOG_FACILITY="1", SYSLOG_IDENTIFIER="root",
        _COMM="logger", _UID="1000", PRIORITY="4", SYSLOG_PID="4243", _PID="4243",
    )  # fmt: skip
    return found + _entry(
        901, 2400.5, "Missed 20 kernel messages", _TRANSPORT="driver", SYSLOG_IDENTIFIER="systemd-journald",
        MESSAGE_ID="e9bf28e6e834481bb6f48f548ad13606", PRIORITY="4",
    )  # fmt: skip


def _entry(number: int, at: float, text: str, **fields: str) -> bytes:
    fields = {
        "__REALTIME_TIMESTAMP": str(BOOTED * 1_000_000 + round(at * 1e6) + number),
        "__MONOTONIC_TIMESTAMP": str(round(at * 1e6) + number),
        "_BOOT_ID": "0123456789abcdef0123456789abcdef", "_MACHINE_ID": "fedcba9876543210fedcba9876543210",
        "_HOSTNAME": HOST, **fields,
    }  # fmt: skip
    head = "".join(f"{name}={value}\n" for name, value in fields.items()).encode()
    words = text.encode()
    if b"\n" in words:
        return head + b"MESSAGE\n" + len(words).to_bytes(8, "little") + words + b"\n\n"
    return head + b"MESSAGE=" + words + b"\n\n"


def journal() -> str:
    """A binary journal, made by systemd."""
    path = _file(b"", "system.journal")
    os.unlink(path)
    writer = shutil.which("systemd-journal-remote", path="/usr/lib/systemd:/lib/systemd:/usr/bin") or "not installed"
    tool(writer, "-o", path, "-", given=export())
    return path


def journalctl(*options: str, **more: str) -> Callable[[], bytes]:
    """A form of journalctl's."""
    return lambda: tool("journalctl", "--no-pager", "--quiet", "--file", journal(), *options, more=more)


def binary() -> bytes:
    """The journal itself, compressed: its 8 MiB are mostly holes."""
    return tool("xz", "-9e", given=Path(journal()).read_bytes())


# --- a terminal ---


def terminal(command: str, *keys: str, columns: int = 80, rows: int = 24) -> bytes:
    """What stands on a terminal, line by line, as one marks and copies it. {}: a file of what dmesg prints."""
    server = ["tmux", "-L", f"corpus{os.getpid()}"]
    command = command.replace("{}", _file(dmesg()()))
    tool(*server, "-f", "/dev/null", "new-session", "-d", "-x", str(columns), "-y", str(rows), f"{command}; sleep 60")
    time.sleep(1.5)
    for key in keys:
        tool(*server, "send-keys", key)
        time.sleep(0.3)
    found = tool(*server, "capture-pane", "-p", "-S", "-")
    tool(*server, "kill-server")
    return found.rstrip(b"\n") + b"\n"


# --- what people and trackers do to lines ---


def text() -> str:
    """What dmesg prints."""
    return dmesg()().decode()


def each(before: str, after: str = "") -> Callable[[], bytes]:
    """Something before, and behind, every line."""
    return lambda: "".join(f"{before}{line}{after}\n" for line in text().splitlines()).encode()


def page() -> bytes:
    """As a web page has it: most characters that are not letters escaped."""
    escaped = html.escape(text()).replace("#", "&#35;").replace("/", "&#x2F;")
    return f"<!DOCTYPE html>\n<html><body><pre><code>{escaped}</code></pre></body></html>\n".encode()


def latin_1() -> bytes:
    """Bytes that are no UTF-8 between the lines, and before them."""
    return b"".join(
        b"caf\xe9 \xff\xfe\x80\n" + b"[\xb5s] " * (n % 2) + line + b"\n"
        for n, line in enumerate(dmesg()().splitlines())
    )


def pstore(*, reverse: bool) -> Callable[[], bytes]:
    """Parts as the kernel dumps them, from its last lines on (fs/pstore/platform.c); `reverse`: as `cat` finds them."""
    return lambda: b"".join(reversed(_parts()) if not reverse else _parts())


def _parts() -> list[bytes]:
    parts: list[bytes] = []
    lines = syslog().splitlines(keepends=True)
    while lines:
        part = b""
        while lines and len(part) + len(lines[-1]) <= _PSTORE:
            part = lines.pop() + part
        parts.append(f"Oops#1 Part{len(parts) + 1}\n".encode() + part)
    return parts


# --- several files ---


def rotated(directory: Path, *options: str) -> None:
    """kern.log, kern.log.1, kern.log.2.gz, in this order of age: logrotate's."""
    lines = rsyslog("traditional")().splitlines(keepends=True)
    log = Path(_file(b"", "kern.log"))
    conf = _file(
        f"{log} {{\n rotate 4\n missingok\n nomail\n compress\n delaycompress\n {' '.join(options)}\n}}\n".encode()
    )
    log.chmod(0o640)
    for number, start in enumerate(range(0, len(lines), 20)):
        if number:
            tool("logrotate", "--force", "--state", f"{conf}.state", conf)
            if "dateext" in options:
                for path in log.parent.glob("kern.log-*"):  # as if it were another day's
                    path.rename(path.with_name(path.name.replace(time.strftime("-%Y%m%d"), f"-2026070{number}")))
        log.write_bytes(b"".join(lines[start : start + 20]))
    for path in sorted(log.parent.glob("kern.log*")):
        shutil.copyfile(path, directory / path.name)


def efi(directory: Path) -> None:
    """/sys/fs/pstore of EFI: a file a part, the part's number in the name."""
    for number, part in enumerate(_parts(), 1):
        (directory / f"dmesg-efi_pstore-1782850328{number:02}001").write_bytes(part)


_JSON = ("jq", "-R", "-c")
FILES: dict[str, Callable[[], bytes]] = {
    "console": lambda: console("\r\n"),
    "dmesg": dmesg(),
    "dmesg-color": dmesg("--color=always"),
    "dmesg-ctime": dmesg("-T"),
    "dmesg-ctime-color": dmesg("-T", "--color=always"),
    "dmesg-decode": dmesg("-x"),
    "dmesg-delta": dmesg("-d"),
    "dmesg-human": dmesg("-H", "--nopager", "--color=always"),
    "dmesg-iso": dmesg("--time-format=iso"),
    "dmesg-json": dmesg("--json"),
    "dmesg-saved": saved(),
    "dmesg-saved-raw": saved("-r"),
    "dmesg-notime": dmesg("-t"),
    "dmesg-raw": dmesg("-r"),
    "dmesg-reltime": dmesg("-e"),
    "kmsg": kmsg,
    "netconsole-release": lambda: kmsg("6.12.117,"),
    "rsyslog": rsyslog("traditional"),
    "rsyslog-rfc3339": rsyslog("rfc3339"),
    "rsyslog-rfc5424": rsyslog("rfc5424"),
    "rsyslog-forwarded": rsyslog("traditional", by_socket=True),
    "rsyslog-forwarded-rfc3339": rsyslog("rfc3339", by_socket=True),
    "rsyslog-forwarded-rfc5424": rsyslog("rfc5424", by_socket=True),
    **{
        f"journal-{form}": journalctl("-o", form)
        for form in (
            "short", "short-full", "short-iso", "short-iso-precise", "short-precise", "short-monotonic", "short-unix",
            "short-delta", "verbose", "export", "json", "json-pretty", "json-sse", "json-seq", "cat", "with-unit",
        )
    },
    "journal-color": journalctl(SYSTEMD_COLORS="1"),
    "journal-no-full": journalctl("--no-full"),
    "journal-fields": journalctl("-o", "json", "--output-fields=MESSAGE"),
    "journal.xz": binary,
    "pager-less": lambda: terminal("less -S {}", rows=200),
    "pager-more": lambda: terminal("more {}", *["Space"] * 12),
    "pager-journalctl": lambda: terminal(
        f"SYSTEMD_PAGER=less SYSTEMD_LESS=FRSXMK TZ=UTC journalctl --quiet --file {journal()}", rows=200
    ),
    "terminal-80": lambda: terminal("cat {}"),
    "terminal-100": lambda: terminal("cat {}", columns=100),
    "fold": through("fold", "-w", "80"),
    "mail": through("fold", "-s", "-w", "72"),
    "cut": through("cut", "-c", "-80"),
    "utf-8-bom": lambda: b"\xef\xbb\xbf" + dmesg()(),
    "utf-16le-bom": lambda: b"\xff\xfe" + tool("iconv", "-t", "UTF-16LE", given=through("sed", "s/$/\\r/")()),
    "utf-16le": through("iconv", "-t", "UTF-16LE"),
    "utf-16be-bom": lambda: b"\xfe\xff" + tool("iconv", "-t", "UTF-16BE", given=dmesg()()),
    "utf-16be": through("iconv", "-t", "UTF-16BE"),
    "latin-1": latin_1,
    "blanks": through("tr", "\\n", " "),
    "html": page,
    "quote": each("> "),
    "quote-twice": each("> > "),
    "indent": each("    "),
    "list": each("* `", "`"),
    "table": each("| ", " |"),
    "grep": lambda: tool(
        "grep", "-n", "-H", "--label=kern.log", "--color=always", "-i", "-E",
        "lock|alignment|^ +: 00|RIP|missed|WRMSR|callback", given=dmesg()(),
    ),
    "bare": through("sed", "s/^\\[[^]]*\\] //; s,x86/split lock detection: ,,"),
    "json-array": lambda: tool("jq", "-c", "-n", "[inputs | {line: .}]", "-R", given=dmesg()()),
    "json-array-pretty": lambda: tool("jq", "-n", "[inputs]", "-R", given=dmesg()()),
    "json-docker": through("jq", "-R", "-c", '{log: (. + "\\n"), stream: "stdout", time: "2026-06-30T19:44:44Z"}'),
    "json-one-string": through("jq", "-R", "-s", "-c", "{body: .}"),
    "dmesg.gz": compressed("gzip", "-9n"),
    "dmesg.xz": compressed("xz", "-9e"),
    "dmesg.zst": compressed("zstd", "-19"),
    "dmesg.bz2": compressed("bzip2", "-9"),
    "dmesg.lz4": compressed("lz4", "-9"),
    "utf-16le.gz": lambda: tool("gzip", "-9n", given=b"\xff\xfe" + tool("iconv", "-t", "UTF-16LE", given=dmesg()())),
    "pstore": pstore(reverse=True),
    "pstore-in-order": pstore(reverse=False),
}  # fmt: skip
DIRECTORIES: dict[str, Callable[[Path], None]] = {
    "rotated": rotated,
    "rotated-dates": lambda directory: rotated(directory, "dateext"),
    "efi-pstore": efi,
}


def main() -> None:
    """Write those that are named, or all."""
    wanted = sys.argv[1:] or [*FILES, *DIRECTORIES]
    SHAPES.mkdir(exist_ok=True)
    for name in wanted:
        if name in FILES:
            (SHAPES / name).write_bytes(FILES[name]())
            continue
        shutil.rmtree(SHAPES / name, ignore_errors=True)
        (SHAPES / name).mkdir()
        DIRECTORIES[name](SHAPES / name)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="corpus-") as work:
        tempfile.tempdir = work  # all others are in it
        main()
