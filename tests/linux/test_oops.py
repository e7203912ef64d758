"""The dump of an oops, read from consoles of real kernels, and from what loggers, pagers and other CPUs make of it."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from splitlock.linux.dump import Dump, Frame, Head
from splitlock.linux.oops import Collector, head

DATA = Path(__file__).parent / "data"
NAMES = sorted(path.stem.removeprefix("oops-") for path in DATA.glob("oops-*.txt"))


def lines(name: str) -> list[str]:
    """The console of a guest from the oops on: see data/README."""
    return (DATA / f"oops-{name}.txt").read_text().splitlines()


def dumps(records: list[str]) -> list[Dump]:
    """What all records say, fed as a log's reader does it."""
    found: list[Collector] = []
    for record in records:
        if head(record):
            found.append(Collector(record))
        elif found:
            found[-1].feed(record)
    return [each.dump for each in found]


def one(records: list[str]) -> Dump:
    """The only one."""
    (found,) = dumps(records)
    return found


def test_a_module_of_6_12() -> None:
    dump = one(lines("6.12-module"))
    assert dump.head == Head(split=True, number=1)
    assert dump.place == Frame("splitoops_get", 0x38, 0x50, "splitoops")
    assert str(dump.place) == "splitoops_get+0x38/0x50 [splitoops]"
    assert (dump.bits, dump.cs, dump.unreadable, dump.address) == (64, 0x10, False, None)
    assert dump.at == 42
    assert len(dump.code) == 64
    assert dump.code[42:46] == bytes.fromhex("f0ff473d")
    assert dump.registers["RDI"] == 0xFFFFFFFFC02035C0
    assert dump.registers["R15"] == 0xFFFF888004DC6D08
    assert dump.registers["EFLAGS"] == 0x202
    assert dump.registers["GS"] == 0xFFFF88803EA00000
    assert (dump.cpu, dump.pid, dump.comm, dump.taint) == (0, 143, "insmod", "GOE")
    assert (dump.release, dump.version) == ("6.12.117+deb12-cloud-amd64", "#1  Debian 6.12.117-1~deb12u1")
    assert dump.hardware == "QEMU Standard PC (i440FX + PIIX, 1996), BIOS 1.16.2-debian-1.16.2-1 04/01/2014"
    assert dump.modules == {"splitoops": "OE+"}
    assert dump.ended
    assert dump.panic is None
    assert dump.frames[0] == Frame("splitoops_init", 0x227, 0xFF0, "splitoops", context="TASK")
    assert not dump.frames[1].reliable
    assert [frame.symbol for frame in dump.frames if frame.reliable] == [
        "splitoops_init", "do_one_initcall", "do_init_module", "init_module_from_file", "idempotent_init_module",
        "__x64_sys_finit_module", "do_syscall_64", "entry_SYSCALL_64_after_hwframe",
    ]  # fmt: skip


def test_in_an_interrupt_the_machine_stops() -> None:
    dump = one(lines("6.12-timer"))
    assert dump.panic == "Fatal exception in interrupt"
    assert (dump.cpu, dump.pid, dump.comm) == (1, 0, "swapper/1")
    assert [str(frame) for frame in dump.frames if frame.context == "IRQ"][:2] == [
        "call_timer_fn+0x2a/0x120", "__run_timers+0x1f4/0x280"
    ]  # fmt: skip
    # the registers are the oops's, not those of what the interrupt had interrupted
    assert dump.registers["RDI"] == 0xFFFFFFFFC02035C0


def test_lines_of_another_cpu_in_between() -> None:
    dump = one(lines("7.2-timer"))  # a clock was found unstable in its midst
    assert dump.registers["R12"] == 0xFFFFFFFFC0201040
    assert dump.registers["GS"] == 0xFFFF8880BAD5B000
    assert dump.version == "#1 PREEMPT(lazy)  Debian 7.2.13-1"
    assert dump.taint == "GSOE"
    assert dump.panic == "Fatal exception in interrupt"


def test_code_that_the_kernel_could_not_read() -> None:
    dump = one(lines("6.1-no-code"))  # a module's first function: 42 bytes before it there is no page
    assert dump.unreadable
    assert dump.code == b""
    assert dump.at is None
    assert dump.address == 0xFFFFFFFFC0201005  # the place that the kernel names, and 42
    assert dump.place == Frame("splitoops_get.constprop.0", 5, 0x20, "splitoops")
    assert one(lines("7.2-no-code")).address == 0xFFFFFFFFC0400015


def wrapped(name: str, record: str) -> str | None:
    """A record as a logger writes it."""
    stamp, _, text = record.partition("] ")
    if not text:
        return record
    return {
        "bare": text,
        "dmesg -T": f"[Mon Nov 30 18:2{len(text) % 10}:01 2026] {text}",
        "caller": f"{stamp}][  T143] {text}",
        "rsyslog": f"Nov 30 18:22:01 host kernel: {record}",
        "journalctl": f"Nov 30 18:22:01 host kernel: {text}",
        "iso": f"2026-11-30T18:22:01.123456+00:00 host kernel: {record}",
        "pstore": f"<4>{record}",
        "colour": f"\x1b[32m{stamp}] \x1b[0m\x1b[33m\x1b[1m{text}\x1b[0m",
        "crlf": record + "\r",
        "kern": f"kern  :warn  : {record}",
    }[name]


WRAPPINGS = ("bare", "dmesg -T", "caller", "rsyslog", "journalctl", "iso", "pstore", "colour", "crlf", "kern")


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("name", NAMES)
def test_a_logger_changes_nothing(name: str, wrapping: str) -> None:
    plain = lines(name)
    assert one([wrapped(wrapping, line) or "" for line in plain]) == one(plain)


@pytest.mark.parametrize("mark", ["\\x0a", "#012", "\n", "\\n"])
def test_one_record_for_the_first_two_lines(mark: str) -> None:
    first, second, *rest = lines("7.2-skb")
    record = f"{first}{mark}{second.split('] ', 1)[1]}"
    assert head(record) == Head(split=True, number=1)
    assert one([record, *rest]) == one([first, second, *rest])


@pytest.mark.parametrize(
    "text",
    [
        "Split lock detected",
        "Oops: Split lock detected",
        "[10.2] Split lock detected",
        "Split lock detected: 0000 [#1] SMP",  # retyped
        '"MESSAGE" : "Oops: Split lock detected\\n: 0000 [#3] SMP NOPTI",',
    ],
)
def test_heads(text: str) -> None:
    found = head(text)
    assert found is not None
    assert found.split


@pytest.mark.parametrize(
    "text",
    [
        "x86/split lock detection: #AC: crashing the kernel on kernel split_locks and warning on",
        "core: split lock detected in workload process sampler/1877",
        "Split lock detected by my script in 3 files",
        "traps: demo[143] trap alignment check ip:401260 sp:7ffd1 error:0 in demo[401000+1000]",
        "Oops: general protection fault, maybe for address 0x3e: 0000 [#1] SMP NOPTI",
        "invalid opcode: 0000 [#1] PREEMPT SMP",
    ],
)
def test_no_heads(text: str) -> None:
    assert head(text) is None


def test_a_kernel_without_detection() -> None:
    assert head("[ 4.1] alignment check: 0000 [#2] SMP PTI") == Head(split=False, number=2)
    assert head("[ 4.1] Oops: alignment check: 0000 [#1] SMP NOPTI") == Head(split=False, number=1)


def test_two_in_a_row() -> None:
    first, second = dumps([*lines("6.1-module")[:20], *lines("6.12-module")])
    assert (first.release, first.ended, len(first.frames)) == ("6.1.0-57-amd64", False, 2)
    assert second == one(lines("6.12-module"))


def test_what_follows_the_end_is_another_s() -> None:
    alien = [
        "[  9.0] RIP: 0010:other+0x1/0x2",
        "[  9.0] Call Trace:",
        "[  9.0]  alien+0x1/0x2",
        "[  9.0] CPU: 3 PID: 9",
    ]
    plain = lines("6.12-module")
    assert one([*plain, *alien]) == one(plain)


def test_a_panic_behind_lines_of_others() -> None:
    *plain, panic, _ = lines("6.12-timer")
    assert one([*plain, "audit: one", "audit: two", panic]).panic == "Fatal exception in interrupt"
    assert one([*plain, *("audit: one" for _ in range(20)), panic]).panic is None


def test_lines_of_another_task_by_their_caller() -> None:
    plain = [wrapped("caller", line) or "" for line in lines("6.12-module")]
    alien = "[    8.360][    C1] RAX: 1111111111111111 RBX: 2222222222222222 RCX: 3333333333333333"
    mixed = [record for line in plain for record in (line, alien)]
    assert one(mixed) == one(plain)


def test_another_s_dump_ends_this_one() -> None:
    plain = lines("6.12-module")
    warning = "[    8.35] CPU: 3 UID: 0 PID: 999 Comm: other Not tainted 6.12.117+deb12-cloud-amd64 #1"
    dump = one([*plain[:8], warning, *plain[8:]])
    assert (dump.pid, dump.ended, dump.frames) == (143, False, [])


@pytest.mark.parametrize("comm", ["a Not tainted 1", "Tainted: P 9.9", "x Tainted: G 1", "Comm: y PID: 7", " ", "a  b"])
@pytest.mark.parametrize("name", NAMES)
def test_a_task_s_name_is_no_word_of_the_kernel_s(name: str, comm: str) -> None:
    """15 bytes, whatever they read like."""
    plain = lines(name)
    full = one(plain)
    at = next(number for number, line in enumerate(plain) if " Comm: " in line)
    changed = plain[at].replace(f" Comm: {full.comm} ", f" Comm: {comm} ")
    dump = one([*plain[:at], changed, *plain[at + 1 :]])
    assert dump.comm == comm.strip()
    assert (dump.taint, dump.release, dump.version) == (full.taint, full.release, full.version)
    assert (dump.cpu, dump.pid) == (full.cpu, full.pid)


@pytest.mark.parametrize("name", NAMES)
def test_without_any_one_line(name: str) -> None:
    """A line that is lost costs what it said, and no more: the registers and the code stand there twice."""
    whole = lines(name)
    full = one(whole)
    for lost in range(1, len(whole)):
        dump = one(whole[:lost] + whole[lost + 1 :])
        assert dump.place == full.place
        assert dump.registers == full.registers
        assert dump.code == full.code
        assert len(full.frames) - len(dump.frames) in (0, 1) or "Call Trace" in whole[lost]


def test_cut_off_anywhere() -> None:
    """A log that ends anywhere gives what it has; nothing is made up."""
    text = "\n".join(lines("6.12-timer"))
    full = one(lines("6.12-timer"))
    for end in range(len(lines("6.12-timer")[0]), len(text), 31):
        dump = one(text[:end].splitlines())
        for name, value in dump.registers.items():
            assert value == full.registers[name]
        assert full.code.startswith(dump.code)


def test_bytes_broken_by_a_pager() -> None:
    broken: list[str] = []
    for line in lines("6.12-module"):
        at = line.find("Code: ")
        broken += [line[: at + 80].rstrip(), line[at + 80 :].strip()] if at > 0 else [line]
    assert one(broken).code == one(lines("6.12-module")).code
    assert one(broken).at == 42


@pytest.mark.parametrize("width", [72, 80, 100, 132])
@pytest.mark.parametrize("name", ["6.12-module", "6.12-timer", "7.2-mutex", "xdp-7.1.8"])
def test_a_terminal_breaks_every_line(name: str, width: int) -> None:
    """At its width, in the midst of words; blanks at an end of line are lost."""
    plain = lines(name)
    full = one(plain)
    broken = [line[at : at + width].rstrip() for line in plain for at in range(0, len(line), width)]
    dump = one(broken)
    assert (dump.code, dump.at, dump.place) == (full.code, full.at, full.place)
    assert all(full.registers[register] == value for register, value in dump.registers.items())
    assert dump.registers.keys() >= {register for register in full.registers if register[0] == "R"}
    if dump.release:
        assert (dump.cpu, dump.pid, dump.comm, dump.taint) == (full.cpu, full.pid, full.comm, full.taint)
        assert dump.release == full.release
    assert all(frame.module in ("", "splitoops") for frame in dump.frames)


@pytest.mark.parametrize("name", ["6.1-module", "6.12-skb", "7.2-timer"])
def test_a_mark_that_was_lost(name: str) -> None:
    """The kernel prints 42 bytes before the instruction, and 64 in all: arch/x86/kernel/dumpstack.c."""
    plain = lines(name)
    full = one(plain)
    dump = one([line.replace("<", "").replace(">", "") if "Code:" in line else line for line in plain])
    assert (dump.code, dump.at) == (full.code, full.at)
    eaten = one([line.replace(" <f0>", "") if "Code:" in line else line for line in plain])
    assert (len(eaten.code), eaten.at) == (63, None)


@pytest.mark.parametrize("name", NAMES)
def test_digits_in_upper_case(name: str) -> None:
    plain = lines(name)

    def upper(line: str) -> str:
        words = ("Code: ", "RIP: ", "RAX", "RDX", "RBP", "R10", "R13", "FS: ", "CR2")
        if not any(f"] {word}" in line for word in words) or "Unable" in line:
            return line
        return re.sub(r"(?<=[ :(<])(?=[0-9a-f]*\d?)[0-9a-f]{2,16}(?=[ )>(]|$)", lambda found: found[0].upper(), line)

    changed = [upper(line) for line in plain]
    assert changed != plain
    assert one(changed) == one(plain)


def test_names_put_in_by_decode_stacktrace() -> None:
    dump = one([
        "[ 8.3] Oops: Split lock detected",
        "[ 8.3] RIP: 0010:skb_clone (./include/linux/atomic/atomic-arch-fallback.h:532 net/core/skbuff.c:1571) ",
        "[ 8.3] Call Trace:",
        "[ 8.3]  <IRQ>",
        "[ 8.3] raw_local_deliver (net/ipv4/raw.c:190 (discriminator 1)) ",
        "[ 8.3] ? helper (lib/helper.c:3) mymodule",
    ])  # fmt: skip
    assert dump.place is not None
    assert (dump.place.symbol, dump.place.source) == ("skb_clone", "./include/linux/atomic/atomic-arch-fallback.h:532")
    assert [frame.symbol for frame in dump.frames][:1] == ["raw_local_deliver"]
    assert dump.frames[0].source == "net/ipv4/raw.c:190"


def test_a_kernel_of_32_bits() -> None:
    dump = one([
        "[   12.1] Split lock detected",
        "[   12.1] : 0000 [#1] SMP",
        "[   12.1] CPU: 0 PID: 77 Comm: insmod Tainted: P           O      6.1.0-57-686-pae #1  Debian 6.1.192-3",
        "[   12.1] EIP: bump+0x9/0x20 [drv]",
        "[   12.1] Code: 90 90 <f0> ff 40 3e c3",
        "[   12.1] EAX: f8a01000 EBX: 00000000 ECX: 00000001 EDX: c1234560",
        "[   12.1] ESI: 00000000 EDI: 00000000 EBP: c9b7fd80 ESP: c9b7fd78",
        "[   12.1] DS: 007b ES: 007b FS: 00d8 GS: 0000 SS: 0068 EFLAGS: 00010202",
        "[   12.1] CR0: 80050033 CR2: b7ef8000 CR3: 09b5c000 CR4: 003506f0",
        "[   12.1] Call Trace:",
        "[   12.1]  init+0x3/0x8 [drv]",
    ])  # fmt: skip
    assert dump.bits == 32
    assert dump.place == Frame("bump", 9, 0x20, "drv")
    assert dump.registers["EAX"] == 0xF8A01000
    assert "FS" not in dump.registers  # a selector, no base
    assert dump.taint == "PO"


def test_module_names_with_a_build_id() -> None:
    dump = one([
        "Oops: Split lock detected",
        "RIP: 0010:a.isra.0+0x1/0x2 [hid_x 1234abcd5678]",
        "Call Trace:",
        " <TASK>",
        " ? b+0x3/0x4 [hid_x 1234abcd5678]",
    ])  # fmt: skip
    assert dump.place == Frame("a.isra.0", 1, 2, "hid_x", "1234abcd5678")
    assert dump.frames == [Frame("b", 3, 4, "hid_x", "1234abcd5678", reliable=False, context="TASK")]


def test_memory_is_bounded() -> None:
    collector = Collector("Split lock detected")
    for _ in range(3_000):
        collector.feed("Call Trace:")
        collector.feed(" a+0x1/0x2")
        collector.feed("Modules linked in: " + " ".join(f"m{n}" for n in range(3_000)))
        collector.feed("Code: " + "90 " * 5_000)
    assert collector.done
    assert len(collector.dump.frames) <= 128
    assert len(collector.dump.modules) <= 1024
    assert len(collector.dump.code) <= 256


def test_other_lines_without_end_are_no_dump() -> None:
    collector = Collector("Split lock detected")
    fed = 0
    while not collector.done:
        assert collector.feed("audit: something else") is False
        fed += 1
    assert fed < 100


def test_a_list_of_modules_over_two_lines() -> None:
    dump = one([
        "Oops: Split lock detected",
        "Modules linked in: one(OE) two",
        " three(P) four-4 [last unloaded: gone]",
        "next: a line of somebody else's",
    ])  # fmt: skip
    assert dump.modules == {"one": "OE", "two": "", "three": "P", "four_4": ""}


def test_what_is_no_dump_is_refused() -> None:
    with pytest.raises(ValueError, match="no head"):
        Collector("anything")


NASTY = (
    "Modules linked in: a", "a" * 4000 + "!", "a " * 2000 + "!", "Code: " + "90 " * 1300 + "x", "f (" + "a:1" * 1300,
    "f (a:1" + " " * 4000, "f (a:1 (" + "b" * 4000, "? " * 2000, "[<0>] " * 700, "a+0x1/0x2" * 400, "<" * 4000,
    "<A>" * 1300,
    "CPU: 1 PID: 2 Comm: " + " " * 4000, "CPU: 1 PID: 2 Comm: a Tainted: " + "G " * 2000, "RIP: " * 800,
    "RIP: 0010:" + "[<0>]" * 800, "RAX: " * 800, "note: " * 600, "Hardware name: " * 300, "(" * 4000, ": " * 2000,
)  # fmt: skip


@pytest.mark.parametrize("line", NASTY, ids=range(len(NASTY)))
def test_no_line_takes_long(line: str) -> None:
    """Anybody may write to the log."""
    collector = Collector("Split lock detected")
    begin = time.process_time()
    for _ in range(200):
        collector.done = False
        collector.feed("Modules linked in: a")
        collector.feed("Call Trace:")
        collector.feed(line)
    assert time.process_time() - begin < 1


def test_a_whole_dump_in_one_record() -> None:
    plain = lines("7.2-skb")
    collector = Collector("\n".join(plain))
    assert collector.done
    assert collector.dump == one(plain)
    assert Collector("\n".join(["before", *plain])).dump == one(plain)
    assert Collector("Split lock detected\n" + "x\n" * 100_000).done


def test_a_program_s_registers_are_no_place_of_the_kernel_s() -> None:
    whole = lines("6.12-module")
    cut = [whole[0], *whole[whole.index(next(line for line in whole if "RIP: 0033" in line)) :]]
    ended = next(number for number, line in enumerate(cut) if "end trace" in line)
    dump = one(cut[:ended])
    assert (dump.place, dump.code, dump.registers) == (None, b"", {})
    assert one(cut).place == Frame("splitoops_get", 0x38, 0x50, "splitoops")  # said once more at the end


def test_json_of_a_journal() -> None:
    record = json.dumps("Oops: Split lock detected\n: 0000 [#4] SMP NOPTI")
    assert head(record) == Head(split=True, number=4)
