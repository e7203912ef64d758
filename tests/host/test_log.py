"""How whole is a log? "Nothing was logged" is said of one that begins with the boot, lost nothing, and can hear."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from splitlock.commands import main
from splitlock.host.log.heard import Heard, Log
from splitlock.host.log.sources import Stored
from splitlock.host.root import Root
from splitlock.host.status import status
from splitlock.report.status import Guard

BANNER = (
    "[    0.000000] Linux version 6.12.48+deb13-amd64 (debian-kernel@lists.debian.org) (gcc) #1 SMP Debian 6.12.48-1\n"
)
WARN = (
    "[    0.112233] x86/split lock detection: #AC: crashing the kernel on kernel split_locks and warning on user-space "
    "split_locks\n"
)
LATER = "[ 4000.500000] wlan0: authenticated\n"
TRAP = "[ 4100.500000] x86/split lock detection: #AC: ledger/901 took a split_lock trap at address: 0x55d0c2a417f2\n"
WHOLE = BANNER + WARN + LATER
PREFIX = "x86/split lock detection: "
DEBUG = f"[    0.1] {PREFIX}#DB: warning on user-space bus_locks\n"

#: A log; what must be said of why it is less than all, or would not tell; empty: nothing, and it is whole.
RULES = {
    "whole": (WHOLE, ""),
    "empty": ("", "it is empty"),
    "blank lines only": ("\n\n", "not in it: the beginning is missing"),
    "no beginning": (WARN + LATER, "the beginning is missing"),
    "errors only (dmesg --level=err)": ("[   12.000000] nvme nvme0: I/O error\n", "or some levels"),
    "ends with the boot": (BANNER + WARN + "[   12.000000] audit: type=1400\n", "it ends with the boot"),
    "ends early, in a panic": (BANNER + WARN + "[   12.000000] Kernel panic - not syncing: VFS: no root\n", ""),
    "ends early, in a panic with KASLR": (
        BANNER
        + WARN
        + "[   12.0] Kernel panic - not syncing: x\n[   12.1] Kernel Offset: 0x1000000 from 0xffffffff81000000\n",
        "",
    ),
    "powered off soon": (BANNER + WARN + "[   12.000000] reboot: Power down\n", ""),
    "lost on the way": (WHOLE + "** 40 printk messages dropped **\n" + LATER, "40 records lost"),
    "lost before the last boot": ("** 40 printk messages dropped **\n" + WHOLE, ""),
    "held back": (WHOLE + "[ 4001.000000] split_lock_warn: 3 callbacks suppressed\n" + LATER, ""),
    "signals held back in warn": (WHOLE + "[ 4001.000000] show_signal: 3 callbacks suppressed\n", ""),
    "signals held back in fatal": (
        BANNER
        + WARN.replace("warning on", "sending SIGBUS on")
        + LATER
        + "[ 4001.0] show_signal: 3 callbacks suppressed\n",
        "3 lines of signals held back",
    ),
    "not understood": (
        WHOLE + f"[ 4001.000000] {PREFIX}something new\n" + LATER,
        "1 line in the kernel's words is not",
    ),
    "off": (BANNER + f"[    0.1] {PREFIX}disabled\n" + LATER, "detection is off"),
    "no detection, or silent": (BANNER + LATER, "said nothing of detection"),
    "fatal by #DB alone": (
        BANNER + f"[    0.1] {PREFIX}#DB: sending SIGBUS on user-space bus_locks\n" + LATER,
        "SIGBUS",
    ),
    "warn by #DB on a Linux that may not": (BANNER + DEBUG + LATER, "processor of AMD's"),
    "warn by #DB": (BANNER.replace("6.12.48", "6.14.11") + DEBUG + LATER, ""),
    "an older boot had none": (BANNER + LATER + WHOLE, ""),
}


@pytest.mark.parametrize("rule", RULES)
def test_rules(rule: str, tmp_path: Path) -> None:
    text, reason = RULES[rule]
    path = tmp_path / "saved.txt"
    path.write_text(text)
    log = Log(Stored(str(path)))
    for _ in log:
        pass
    said = [*log.gaps(), *filter(None, [log.deaf(), log.unarmed()])]
    assert bool(said) == bool(reason), said
    assert reason in "; ".join(said)
    # watch's own words and exit status
    output = tmp_path / "told"
    status = main(["watch", "--format", "json", "-o", str(output), str(path)])
    summary = json.loads(output.read_text().splitlines()[-1])
    found = summary["suppressed"] > 0
    assert status == (1 if found else 2 if reason else 0)
    assert summary["whole"] == (not reason and not found)


def test_what_debian_saves_at_boot_ends_with_it(tmp_path: Path) -> None:
    """/var/log/dmesg, however late its last line."""
    place = tmp_path / "log"
    place.mkdir()
    (place / "dmesg").write_text(WHOLE)
    done = subprocess.run(
        [sys.executable, "-m", "splitlock", "watch", place / "dmesg"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "it ends with the boot" in done.stdout


def _heard(tmp_path: Path, files: dict[str, str | bytes]) -> Any:
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Heard(Root(str(tmp_path))).report()


def test_of_all_places_the_one_that_is_whole(tmp_path: Path) -> None:
    found = _heard(tmp_path, {
        "sos_commands/kernel/dmesg": LATER,  # its beginning was overwritten
        "var/log/dmesg": BANNER + WARN,
        "var/log/kern.log": "",
        "var/log/kern.log.1": LATER + TRAP,
        "var/log/kern.log.2.gz": gzip.compress((BANNER + WARN).encode()),
        "var/log/syslog": LATER,
    })  # fmt: skip
    assert (found.source, found.lines, found.whole) == ("var/log/kern.log", 1, True)


def test_none_is_whole(tmp_path: Path) -> None:
    """The one that found something; and why it is not all."""
    found = _heard(tmp_path, {"sos_commands/kernel/dmesg": LATER, "var/log/messages": LATER + TRAP})
    assert (found.source, found.lines, found.whole) == ("var/log/messages", 1, False)
    assert "Linux version" in found.why


def test_the_log_of_another_boot_is_not_this_ones(tmp_path: Path) -> None:
    now = BANNER.partition("] ")[2].replace("6.12.48", "6.12.57")
    found = _heard(tmp_path, {"proc/version": now, "var/log/kern.log": WHOLE + TRAP})
    assert found.source is None
    assert found.why == "var/log/kern.log is of another boot, of Linux 6.12.48+deb13-amd64"
    found = _heard(tmp_path, {"var/log/messages": WHOLE.replace("6.12.48", "6.12.57")})
    assert (found.source, found.lines, found.whole) == ("var/log/messages", 0, True)


@pytest.mark.parametrize(
    ("behind", "same"),
    [("", True), (" (Ubuntu 6.12.48-1.2-generic 6.12.50)", True), (" ()", True), ("-other", False), (" other", False)],
)
def test_distributions_put_their_version_behind_the_first_line(behind: str, same: bool, tmp_path: Path) -> None:
    """Of Ubuntu and Proxmox, in the log alone: /proc/version has linux_banner."""
    found = _heard(tmp_path, {
        "proc/version": BANNER.partition("] ")[2],
        "var/log/kern.log": BANNER.rstrip() + behind + "\n" + WARN + LATER + TRAP,
    })  # fmt: skip
    assert (found.lines, found.whole) == ((1, True) if same else (0, False))


def test_an_oops_is_one_line_with_its_function(tmp_path: Path) -> None:
    dump = (
        "[ 5000.1] Oops: Split lock detected\n[ 5000.1] : 0000 [#1] SMP NOPTI\n"
        "[ 5000.1] RIP: 0010:fifo_put+0x31/0x70 [fifo]\n[ 5000.1] ---[ end trace 0000000000000000 ]---\n"
    )
    found = _heard(tmp_path, {"sos_commands/kernel/dmesg": WHOLE + dump})
    assert (found.lines, found.oopses, found.whole) == (1, ["fifo_put+0x31/0x70 [fifo]"], True)


_OLD = {"var/log/kern.log.3": WHOLE, "var/log/kern.log.1": "[ 990000.0] b\n", "var/log/kern.log": "[ 999999.0] c\n"}
#: Files of a log; why it is not whole.
HOLES: dict[str, tuple[dict[str, str], str]] = {
    "a number is missing": (_OLD, "kern.log.2 is missing"),
    "none is": (_OLD | {"var/log/kern.log.2": "[ 980000.0] a\n"}, ""),
    "many are": ({"var/log/kern.log.7": WHOLE, "var/log/kern.log": LATER}, "kern.log.1 to .6 are missing"),
    "one is, before the boot": (_OLD | {"var/log/kern.log": WHOLE}, ""),
    "savelog's begin at 0": ({"var/log/kern.log.0": WHOLE, "var/log/kern.log": LATER}, ""),
    "the journal's limit": (
        {"var/log/messages": WHOLE + "Nov  2 11:00:00 h rsyslogd[9]: imjournal: 47 messages lost due to rate-limit\n"},
        "rsyslogd: imjournal: 47 messages lost"),
    **{said: (
        {"var/log/messages": WHOLE + f"Nov  2 11:00:00 h {said}\n" + LATER}, said.partition("]: ")[2]) for said in (
        "rsyslogd[9]: imjournal: begin to drop messages", "rsyslogd[9]: imklog: begin to drop messages",
        "rsyslogd[9]: imuxsock[pid 1]: begin to drop messages", "rsyslogd[9]: imklog: 12 messages lost",
        "systemd-journald[211]: Forwarding to syslog missed 7 messages",
        "syslog-ng[7]: Destination queue full, dropping message",
    )},
    "journald's own word": (
        {"var/log/messages": WHOLE + "Nov  2 11:00:00 h systemd-journald[211]: Missed 5 kernel messages\n" + LATER},
        "5 records lost"),
    "a crash left zeros": ({"var/log/kern.log": WHOLE + "\0" * 4096 + LATER}, "zero bytes"),
    "a crash left zeros, and then it booted": ({"var/log/kern.log": WHOLE + "\0" * 4096 + WHOLE}, ""),
    "rsyslogd stopped": (
        {"var/log/messages": WHOLE + "Nov  2 11:00:01 h kernel: Kernel logging (proc) stopped.\n"}, "rsyslogd stopped"),
    "and began again": (
        {"var/log/messages": WHOLE + "Nov  2 11:00:01 h kernel: Kernel logging (proc) stopped.\n"
         "Nov  2 11:00:01 h kernel: imklog 5.8.10, log source = /proc/kmsg started.\n"}, ""),
}  # fmt: skip


@pytest.mark.parametrize("holes", HOLES)
def test_holes(holes: str, tmp_path: Path) -> None:
    files, reason = HOLES[holes]
    found = _heard(tmp_path, dict(files))
    assert found.whole == (not reason), found.why
    assert reason in found.why


#: What a name within a record may hold: a file's of a program that crashes, a USB device's. Whoever chose it, chose it.
_FORGED = {
    "boot": "Linux version 6.12.48+deb13-amd64 (debian-kernel@lists.debian.org) (gcc) #1 SMP Debian 6.12.48-1",
    "mode": PREFIX + "disabled",
    "oops": "Oops: Split lock detected: 0000 [#1] SMP NOPTI",
    "trap": PREFIX + "#AC: sshd/1 took a split_lock trap at address: 0x1234",
}
_CRASH = "x[4713]: segfault at 0 ip 0000000000401000 sp 00007ffc00000000 error 4 in "
_KMSG = "".join(
    f"6,{number},{int(float(line[1:13]) * 1e6)},-;{line[15:]}\n"
    for number, line in enumerate((WHOLE + TRAP).splitlines())
)
#: How a name with a line break, or none, comes through: a record's head, what stands for the break, and the log before.
_SHAPES = {
    "dmesg": ("[ 9001.000000] ", "\n" + " " * 15, WHOLE + TRAP),
    "dmesg, one line": ("[ 9001.000000] ", "", WHOLE + TRAP),
    "dmesg -S": ("[ 9001.000000] ", "\n[ 9001.000000]  ", WHOLE + TRAP),
    "kern.log of rsyslog": (
        "Nov  1 10:00:00 h kernel: [ 9001.000000] ", "#012",
        "".join(f"Nov  1 10:00:00 h kernel: {line}\n" for line in (WHOLE + TRAP).splitlines()),
    ),
    "messages of rsyslog, without the kernel's clock": (
        "Nov  1 10:00:00 h kernel: ", "#012",
        "".join(f"Nov  1 10:00:00 h kernel: {line[15:]}\n" for line in (WHOLE + TRAP).splitlines()),
    ),
    "/dev/kmsg": ("4,4,9001000000,-;", "\\x0a", _KMSG),
    "/dev/kmsg, one line": ("4,4,9001000000,-;", "", _KMSG),
}  # fmt: skip


# syslog(2) gives each line of a record a time of its own: nothing tells them apart, but for a boot's
@pytest.mark.parametrize(
    ("forged", "shape"), [(f, s) for f in _FORGED for s in _SHAPES if f == "boot" or s != "dmesg -S"]
)
def test_no_name_is_the_kernels_word(forged: str, shape: str, tmp_path: Path) -> None:
    """The log says the same of split locks as without the crash of that program."""
    head, broken, before = _SHAPES[shape]
    found = _heard(tmp_path, {"sos_commands/kernel/dmesg": before + head + _CRASH + broken + _FORGED[forged] + "\n"})
    assert (found.lines, found.oopses, found.whole, found.deaf) == (1, [], True, "")
    assert [task.comm for task in found.tasks] == ["ledger"]


_CPU = "vendor_id\t: GenuineIntel\nflags\t\t: fpu split_lock_detect\n"
_LINE = "[    0.000000] Command line: root=/dev/sda1 ro{}\n"
_FATAL = WARN.replace("warning on", "sending SIGBUS on")
#: Files of a machine; lines that must be found in its log; why it is not whole, or not of this boot.
MACHINES: dict[str, tuple[dict[str, str], int, str]] = {
    "its own first line was overwritten, an older boot's log is whole": (
        {"sos_commands/kernel/dmesg": TRAP, "var/log/kern.log": WHOLE}, 1, "the beginning is missing"),
    "the same, and nothing was logged": (
        {"sos_commands/kernel/dmesg": "[ 999000.000000] x\n", "var/log/kern.log": WHOLE}, 0, "ran for 999000 s"),
    "whole when it was taken, and a trap later": (
        {"sos_commands/kernel/dmesg": WHOLE, "var/log/kern.log": WHOLE + TRAP}, 1, ""),
    "each has one, and both are one machine's": (
        {"sos_commands/kernel/dmesg": TRAP, "var/log/kern.log": WHOLE + TRAP.replace("ledger", "invoiced")}, 2, ""),
    "a whole one, and older lines of nobody knows when": (
        {"sos_commands/kernel/dmesg": WHOLE, "var/log/kern.log": TRAP}, 0, ""),
    "of another kernel": (
        {"proc/sys/kernel/osrelease": "6.12.57+deb13-amd64", "var/log/kern.log": WHOLE + TRAP}, 0, "another boot"),
    "of another command line": (
        {"proc/cmdline": "root=/dev/sda1 ro split_lock_detect=fatal",
         "var/log/kern.log": BANNER + _LINE.format(" split_lock_detect=off") + LATER}, 0, "another command line"),
    "the same command line, behind bootconfig's": (
        {"proc/cmdline": "split_lock_mitigate=1 root=/dev/sda1 ro",
         "var/log/kern.log": BANNER + _LINE.format("") + WARN + LATER + TRAP}, 1, ""),
    "of another machine": (
        {"etc/hostname": "web1\n", "var/log/messages": f"Nov  1 10:00:00 web2 kernel: {BANNER}" + LATER}, 0, "web2"),
    "of this one, by its whole name": (
        {"etc/hostname": "web1\n", "var/log/messages": f"Nov  1 10:00:00 web1.lan kernel: {BANNER}" + LATER}, 0, ""),
    "it ends long before now": (
        {"proc/uptime": "3456000.00 1.00", "var/log/kern.log": WHOLE}, 0, "the machine ran for 3456000 s"),
    "the kernel was asked, and is quiet": (
        {"proc/uptime": "3456000.00 1.0", "sos_commands/kernel/dmesg": WHOLE}, 0, ""),
    "detects, and is silent about it": (
        {"proc/cpuinfo": _CPU, "var/log/kern.log": BANNER + LATER}, 0, "some levels were filtered out"),
    "detects, and off is silent from 7.1 on": (
        {"proc/cpuinfo": _CPU, "proc/cmdline": "ro split_lock_detect=off", "var/log/kern.log": BANNER + LATER}, 0, ""),
    "fatal, and no line of any signal": (
        {"proc/sys/debug/exception-trace": "0\n", "var/log/kern.log": BANNER + _FATAL + LATER}, 0, "exception-trace=0"),
    "warn, and no line of any signal": (
        {"proc/sys/debug/exception-trace": "0\n", "var/log/kern.log": WHOLE}, 0, ""),
}  # fmt: skip


@pytest.mark.parametrize("machine", MACHINES)
def test_what_all_logs_of_a_machine_say_of_this_boot(machine: str, tmp_path: Path) -> None:
    files, lines, reason = MACHINES[machine]
    found = _heard(tmp_path, dict(files))
    assert (found.lines, found.whole) == (lines, not reason)
    assert reason in found.why


#: What an oops's dump is left with, by how many of its first lines are lost; and that other dumps are none.
@pytest.mark.parametrize("name", ["6.1-module", "6.12-skb", "7.2-timer", "xdp-7.1.8"])
@pytest.mark.parametrize("lost", [0, 1, 2, 3, 4])
def test_an_oops_without_its_first_lines_is_not_nothing(name: str, lost: int, tmp_path: Path) -> None:
    dump = (Path(__file__).parents[1] / "linux" / "data" / f"oops-{name}.txt").read_text().splitlines()
    (tmp_path / "log").write_text(WHOLE + "\n".join(dump[lost:]) + "\n" + LATER)
    log = Log(Stored(str(tmp_path / "log")), ends=True)
    for _ in log:
        pass
    assert log.found == (lost == 0)
    assert any("an oops whose first line is missing" in gap for gap in log.gaps()) is (lost > 0)
    assert log.unknown == (lost > 0)


@pytest.mark.parametrize(
    "head",
    [
        "------------[ cut here ]------------\nWARNING: CPU: 0 PID: 143 at lib/x.c:1 x+0x1/0x2",
        "BUG: unable to handle page fault for address: ffff8880\nOops: 0002 [#1] PREEMPT SMP PTI",
        "general protection fault, probably for non-canonical address 0xdead: 0000 [#1] PREEMPT SMP PTI",
        "watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [insmod:143]",
        "Oops: general protection fault, kernel NULL pointer dereference 0x0: 0000 [#1] SMP NOPTI",
        "invalid opcode: 0000 [#1] SMP NOPTI",
    ],
)
def test_an_oops_of_another_kind_at_a_locked_instruction(head: str, tmp_path: Path) -> None:
    """A write to a place that is not there, say: the marked instruction is locked too."""
    dump = (Path(__file__).parents[1] / "linux" / "data" / "oops-6.12-skb.txt").read_text().splitlines()
    stamped = [f"[    7.59] {line}" for line in head.splitlines()]
    (tmp_path / "log").write_text(WHOLE + "\n".join([*stamped, *dump[2:]]) + "\n" + LATER)
    log = Log(Stored(str(tmp_path / "log")), ends=True)
    for _ in log:
        pass
    assert (log.found, log.unknown) == (0, 0)


@pytest.mark.parametrize("name", ["6.1-module", "6.12-skb", "7.2-timer", "xdp-7.1.8"])
def test_each_line_twice_is_one_oops(name: str, tmp_path: Path) -> None:
    dump = (Path(__file__).parents[1] / "linux" / "data" / f"oops-{name}.txt").read_text().splitlines()
    dumps = []
    for times in (1, 2):
        (tmp_path / "log").write_text("".join(f"{line}\n" * times for line in dump))
        log = Log(Stored(str(tmp_path / "log")), ends=True)
        for _ in log:
            pass
        assert log.found == 1
        dumps.append(log.dumps)
    assert dumps[0] == dumps[1]


@pytest.mark.parametrize(("mode", "deaf"), [(WARN, False), (_FATAL, True)])
def test_without_exception_trace_fatal_says_nothing(mode: str, deaf: bool, tmp_path: Path) -> None:
    """traps.c: show_signal() asks show_unhandled_signals."""
    path = tmp_path / "saved.txt"
    path.write_text(BANNER + mode + LATER)
    log = Log(Stored(str(path)), untraced=True)
    for _ in log:
        pass
    assert ("exception-trace" in log.deaf()) == deaf


#: Files of a machine; the one that the mode stands in.
_TOLD = {
    "another log than the one that found most": (
        {"sos_commands/kernel/dmesg": WHOLE, "var/log/messages": LATER + TRAP}, "sos_commands/kernel/dmesg"),
    "a rotated file": (
        {"var/log/kern.log.2": WHOLE, "var/log/kern.log.1": LATER, "var/log/kern.log": LATER}, "var/log/kern.log.2"),
    "the last boot's": ({"var/log/kern.log.1": WHOLE, "var/log/kern.log": WHOLE}, "var/log/kern.log"),
}  # fmt: skip


@pytest.mark.parametrize("told", _TOLD)
def test_a_mode_is_told_with_the_file_that_holds_its_line(told: str, tmp_path: Path) -> None:
    files, source = _TOLD[told]
    _heard(tmp_path, dict(files))
    assert Heard(Root(str(tmp_path))).told_by == source
    made = status(Root(str(tmp_path)), Guard(up="unknown", why=""), scan=False)
    assert (made.kernel.mode, made.kernel.why) == ("warn", f"the kernel said so at boot ({source})")
