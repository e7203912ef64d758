"""Lines in chunks, columns, escapes: whatever cuts or wraps them, the records are the same."""

from __future__ import annotations

import html
import json
import textwrap
import tracemalloc
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitlock.host.log import rotated, structured
from splitlock.host.log.heard import Log
from splitlock.host.log.passing import Passing
from splitlock.host.log.sources import Text
from splitlock.host.log.wrappings import speaker
from splitlock.linux.log import Line
from splitlock.linux.log import lines as sentences

SAID = [
    "x86/split lock detection: #AC: Render Thread/61723 took a split_lock trap at address: 0x7f3a9c0041d2",
    "x86/split lock detection: #DB: a/2 took a bus_lock trap at address: 0x80483f1",
    "x86/split lock detection: #AC: CPU 7/KVM/40312 fatal split_lock trap at address: 0xfffff80104613be8",
    "traps: ledger[901] trap alignment check ip:55d0c2a417f2 sp:7ffe1bb14a90 error:0 in ledger[17f2,55d0c2a40000+9000]",
    "handle_bus_lock: 4051 callbacks suppressed",
]
OTHER = ["usb 1-1: new high-speed USB device number 5 using xhci_hcd", "wlan0: authenticated", "EXT4-fs (vda): mounted"]
_SPEAKERS = {
    "Jun 30 19:44:44 bazzite kernel: x86/split": "",
    "<4>Jun 30 19:44:44 bazzite kernel: x86/split": "",
    "Jun 30 19:44:44 kernel: x86/split": "",
    "2026-06-13T15:27:19.694458+01:00 calypso kernel: x86/split": "",
    "[  688.792264] box kernel: x86/split": "",
    "[  688.792264] Command line: x86/split": "",
    "2026-11-30T18:11:19,361245+00:00 Command line: x86/split": "",
    "[  688.792264] x86/split lock detection: #AC: a/1 took": "",
    "<4>[  688.792264] x86/split": "",
    "kern  :warn  : [  688.792264] x86/split": "",
    "user  :warn  : [  688.792264] x86/split": "user space",
    "<12>[  688.792264] x86/split": "user space",
    "Jun 30 19:44:44 bazzite steam[4242]: x86/split": "steam[4242]",
    "Jun 30 19:44:44 bazzite root: x86/split": "root",
    "Jun 30 19:44:44 router kern.warn kernel: [  12.0] x86/split": "",
    "Jun 30 19:44:44 router user.notice root: x86/split": "root",
    "[  688.792264] box sudo[7]: x86/split": "sudo[7]",
    "<13>1 2026-11-30T18:22:48.396276+00:00 box root 4243 - - x86/split": "root 4243",
    "<4>1 2026-11-30T18:22:48.396276+00:00 box kernel - - -  x86/split": "",
    # busybox's klogd: the C library makes `user` of the kernel's facility
    "<12>Jan  1 00:00:04 box kernel: [  312.123456] x86/split": "",
    "<12>1 2026-11-30T18:22:48.396276+00:00 box kernel - - - x86/split": "",
    "<28>Jan  1 00:00:04 box kernel: x86/split": "user space",
    "Jan  1 00:00:04 box kernel[0]: x86/split": "",
    "Jan  1 00:00:04 box Kernel: x86/split": "",
    "Jan  1 00:00:04 box kern: x86/split": "",
    "Jan  1 00:00:04 box kernel[812]: x86/split": "kernel[812]",
    "2026-01-01 00:00:04 box bob[44]: x86/split": "bob[44]",
    "2026-01-01 00:00:04.123 +0100 box bob: x86/split": "bob",
    "2026-01-01 00:00:04 box kernel: x86/split": "",
    "2026-01-01 00:00:04 Command line: x86/split": "",
    "2026 Jan  1 00:00:04 box bob[44]: x86/split lock detection: #AC: a/1 took": "bob[44]",
    "01/02/26 04:05 bob[44]: traps: a[1] trap": "bob[44]",
}  # fmt: skip


def _records(data: bytes, sizes: Iterator[int] | None = None) -> list[tuple[str, str]]:
    reader = structured.reader(data[:4096], Passing())
    found, at = [], 0
    while at < len(data):
        size = next(sizes) if sizes else len(data)
        found += list(reader.add(data[at : at + size]))
        at += size
    found += list(reader.end())
    return [(record.text, record.speaker) for record in found if record.text is not None]


def _said(data: bytes) -> list[Line]:
    return [line._replace(stamp="", text="") for text, _ in _records(data) for line in sentences(text)]


RIGHT = _said("\n".join(SAID).encode())


@pytest.mark.parametrize("text", _SPEAKERS)
def test_who_speaks(text: str) -> None:
    assert speaker(text) == _SPEAKERS[text]


#: What a JSON object says of who wrote its words, and who it is.
_WRITERS: list[tuple[dict[str, object], str]] = [
    ({"_TRANSPORT": "kernel", "SYSLOG_FACILITY": "0", "SYSLOG_IDENTIFIER": "kernel"}, ""),
    ({"_TRANSPORT": "kernel", "SYSLOG_FACILITY": "1", "SYSLOG_IDENTIFIER": "eve"}, "eve"),
    ({"_TRANSPORT": "journal", "_COMM": "eve"}, "eve"),
    ({"_TRANSPORT": "syslog", "SYSLOG_IDENTIFIER": "kernel"}, "syslog"),
    ({"SYSLOG_IDENTIFIER": "kernel", "_COMM": "logger"}, "logger"),
    ({"SYSLOG_IDENTIFIER": "kernel", "_UID": "1000"}, "user space"),
    ({"SYSLOG_IDENTIFIER": "kernel"}, ""),
    ({"facility": "user", "appname": "eve"}, "eve"),
    ({"facility": "kern", "appname": "kernel"}, ""),
    ({"facility": "user", "programname": "kernel"}, ""),  # klogd's
    ({"syslogfacility": 3}, "user space"),
    ({"syslogtag": "kernel:"}, ""),
    ({"syslogtag": "eve[7]:"}, "eve[7]:"),
    ({}, ""),
]


@pytest.mark.parametrize("words", ["one", "several", "none", "bytes", "nested", "elsewhere"])
@pytest.mark.parametrize("writer", _WRITERS, ids=str)
@pytest.mark.parametrize("indent", [None, 1])
def test_who_speaks_in_json(writer: tuple[dict[str, object], str], words: str, indent: int | None) -> None:
    """Wherever in an object the kernel's words stand, they are whose the object is."""
    fields, who = writer
    journal = not {"_TRANSPORT", "_COMM", "_UID"}.isdisjoint(fields)
    name = "MESSAGE" if journal else "message"
    values: dict[str, dict[str, object]] = {
        "one": {name: SAID[0]}, "several": {name: ["hello", SAID[0]]}, "bytes": {name: list(SAID[0].encode())},
        "none": {name: None, "more": SAID[0]}, "nested": {"more": {"log": SAID[0]}}, "elsewhere": {"more": SAID[0]},
    }  # fmt: skip
    text = json.dumps([{"a": 1}, {**fields, **values[words]}], indent=indent).encode()
    found = {speaker for text, speaker in _records(text) if any(sentences(text))}
    if found:
        assert found == {who}
    else:
        assert who or words == "none"


#: JSON of more than is looked at at once, on one line: where it is cut is nothing to what it says.
_PAD = [f"usb 1-1: USB disconnect, device number {number}" for number in range(30_000)]
_LONG: dict[str, Callable[[list[str]], str]] = {
    "array of strings": json.dumps,
    "one string": lambda lines: json.dumps({"host": "box", "dmesg": "\n".join(lines), "more": SAID}),
    "array of objects": lambda lines: json.dumps([{"a": {"MESSAGE": line}} for line in lines]),
    "objects in one": lambda lines: json.dumps({"entries": [{"line": line, "é": "é\n"} for line in lines]}),
}


@pytest.mark.parametrize("form", _LONG)
@pytest.mark.parametrize("size", [1 << 18, 1 << 24])
def test_long_json_on_one_line(form: str, size: int) -> None:
    lines = [line for number, other in enumerate(_PAD) for line in ([other, *SAID] if number % 500 == 0 else [other])]
    text = _LONG[form](lines).encode()
    assert len(text) > 1 << 20
    sizes = iter(lambda: size, 0)
    found = [line for text, _ in _records(text, sizes) for line in sentences(text)]
    assert [line._replace(stamp="", text="") for line in found] == RIGHT * (60 + (form == "one string"))
    assert not [line for line in found if line.stamp]


def test_a_long_json_string_is_not_held_whole() -> None:
    """What is kept of it does not grow with it."""
    text = json.dumps({"dmesg": "\n".join(SAID * 5_000)}).encode()
    tracemalloc.start()
    reader = structured.reader(text[:4096], Passing())
    number = 0
    for at in range(0, len(text), 1 << 18):
        number += sum(1 for _ in reader.add(text[at : at + (1 << 18)]))
    number += sum(1 for _ in reader.end())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert number == 25_000
    assert peak < 8 << 20


@pytest.mark.parametrize("text", [
    '{"a": "b"}\n' + SAID[0] + "\n", '[{"MESSAGE": "' + SAID[0] + '", "b": "c', '["' + SAID[0] + r"\nusb 1-1",
    '{"a": "a stray quote\n' + SAID[0] + "\nusb\n",
])  # fmt: skip
def test_what_is_no_whole_json_is_heard(text: str) -> None:
    assert _said(text.encode()) == RIGHT[:1]


def test_an_address_where_json_ends_early_is_none() -> None:
    for cut in ('["' + SAID[0][:-4], '{"MESSAGE": "' + SAID[0][:-1]):
        assert [line.address for line in _said(cut.encode())] == [None], cut


@settings(max_examples=60, deadline=None)
@given(
    st.integers(60, 140),
    st.permutations(SAID + OTHER),
    st.sampled_from(["[  688.792264] ", "Jun 30 19:44:44 box kernel: "]),
)
def test_a_terminal_of_any_width(width: int, lines: list[str], stamp: str) -> None:
    """Broken hard at a column, into up to three lines: put together again."""
    whole = [stamp + line for line in lines]
    broken = [line[at : at + width] for line in whole for at in range(0, len(line), width)]
    assert _said("\n".join(broken).encode()) == [line for words in lines for line in _said(words.encode())]


@pytest.mark.parametrize("quote", ["", "> ", "    ", "> > ", "| ", "\t", ": ", "+"])
@pytest.mark.parametrize("stamp", ["[  688.792264] ", "Jun 30 19:44:44 box kernel: ", "<4>[  688.792264] ", ""])
@pytest.mark.parametrize("way", ["column", "blanks"])
def test_a_narrow_terminal_and_a_quote_of_it(quote: str, stamp: str, way: str) -> None:
    """Of any width: what is said is right and whole, or is counted as not understood; from 40 columns on it is right.

    A number at a line's end and in the next one may be a half address: it is never shown."""
    for line, right in [(SAID[0], RIGHT[0]), (SAID[1], RIGHT[1]), (SAID[2], RIGHT[2])]:
        for width in range(18, 121):
            whole = stamp + line
            parts = [whole[at : at + width] for at in range(0, len(whole), width)]
            if way == "blanks":
                parts = textwrap.wrap(whole, width, break_long_words=False, break_on_hyphens=False)
            lines = [f"[    1.000000] {OTHER[0]}" if stamp else OTHER[0], *parts]
            lines.append(f"[  700.000000] {OTHER[1]}" if stamp else OTHER[1])
            found = _said("\n".join(quote + part for part in lines).encode())
            assert found, (width, parts)
            assert all(each.address in (None, right.address) for each in found), (width, parts)
            if width >= 40 and stamp:
                assert [(each.kind, each.pid, each.address) for each in found] == [
                    (right.kind, right.pid, right.address)
                ], (width, parts)


@pytest.mark.parametrize("text", [
    f"**[  688.792264] {SAID[0]}**", f"__{SAID[0]}__", f"*{SAID[0]}*", f"see **{SAID[0]}** there",
    SAID[0].replace("0x", "\u200b0x"), SAID[0].replace("_lock", "_\u00adlock"), SAID[0].replace("0x", "0X"),
    SAID[0].replace("_lock", "_<wbr>lock"), SAID[0].replace("_lock", "_<wbr />lock"), f"\ufeff{SAID[0]}",
])  # fmt: skip
def test_marks_of_markdown_and_web_pages(text: str) -> None:
    assert _said(text.encode()) == RIGHT[:1]


@pytest.mark.parametrize("cut", ["0x7f3a 9c0041d2", "0x7f3a**", "0x7f3a…", "0x7f3a****41d2", "0x7f3a9c00 41d2  "])
def test_half_an_address_is_none(cut: str) -> None:
    (line,) = _said(SAID[0].replace("0x7f3a9c0041d2", cut).encode())
    assert line.address is None


@pytest.mark.parametrize("line", [line for line in SAID if line.startswith("x86/")])
def test_no_cut_line_is_passed_over(line: str) -> None:
    """Wherever it ends behind the kernel's prefix, it says something, if only that it is not understood."""
    for length in range(len("x86/split lock detection: "), len(line)):
        for tail in ("", ">", "…", "..."):
            assert _said((line[:length] + tail + "\n" + OTHER[0]).encode()), (length, tail)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from(["text", "json", "kmsg", "export", "array"]))
def test_chunks_of_any_size(data: st.DataObject, form: str) -> None:
    lines = SAID + OTHER
    whole = {
        "text": "".join(f"[  1.000000] {line}\n" for line in lines),
        "json": "".join(json.dumps({"MESSAGE": line, "_TRANSPORT": "kernel"}) + "\n" for line in lines),
        "kmsg": "".join(f"4,{number},1000,-;{line}\n SUBSYSTEM=x\n" for number, line in enumerate(lines)),
        "export": "".join(f"__CURSOR=x\n_TRANSPORT=kernel\nMESSAGE={line}\n\n" for line in lines),
        "array": json.dumps([{"a": {"line": line}} for line in lines], indent=1),
    }[form].encode()
    sizes = iter(lambda: data.draw(st.integers(1, 300)), 0)
    assert [text for text, _ in _records(whole, sizes)] == [text for text, _ in _records(whole)]
    assert _said(whole) == RIGHT


@settings(max_examples=100, deadline=None)
@given(
    st.binary(max_size=3000),
    st.sampled_from([b"", b"{", b'["', b"4,1,1,-;", b"__CURSOR=x\n_A=", b"x [s=1;i=1\n    A="]),
)
def test_garbage_is_survived(garbage: bytes, start: bytes) -> None:
    _records(start + garbage, iter(lambda: 100, 0))


def test_escapes_of_all_of_a_line() -> None:
    for wrapped in (
        "\n".join(html.escape(line) for line in SAID),
        "\n".join("".join(f"\x1b[1;3{n % 8}m{c}" for n, c in enumerate(line)) for line in SAID),
        "\r\n".join(SAID),
        json.dumps(SAID),
        json.dumps({"a": [{"b": "\n".join(SAID)}]}),
        "#012".join(SAID),
        "<br>".join(SAID),
        "\n".join(SAID).replace(" ", "\u00a0"),
        "\n".join(SAID).replace("_", "\\_").replace("#", "\\#"),
        "=\n".join([SAID[0][:70], SAID[0][70:]]) + "\n" + "\n".join(SAID[1:]),
    ):
        assert _said(wrapped.encode()) == RIGHT, wrapped[:60]


OOPS = [
    "Oops: Split lock detected", ": 0000 [#1] SMP NOPTI", "CPU: 3 UID: 0 PID: 9 Comm: x Not tainted 7.0.0 #1",
    "RIP: 0010:fifo_put+0x31/0x70 [fifo]", "Call Trace:", " <IRQ>", " fifo_work+0x9c/0x1e0",
    "---[ end trace 0000000000000000 ]---",
]  # fmt: skip


@pytest.mark.parametrize("text", [
    "\n".join(OOPS), "\r\n".join(OOPS), "\n".join(f"[ 18.114503] {line}" for line in OOPS),
    " ".join(f"[ 18.114503] {line}" for line in OOPS), " ".join(f"Jun 30 19:44:44 box kernel: {line}" for line in OOPS),
    " ".join(f"2026-06-30T19:44:44.1Z box kernel: {line}" for line in OOPS), "<br>\n".join(map(html.escape, OOPS)),
    "\n".join(f"[ 18.114503][ T88] {line}" for line in OOPS), "\n".join(f"> {line}" for line in OOPS), json.dumps(OOPS),
    json.dumps({"a": "\n".join(OOPS)}), "#012".join(OOPS[:2]) + "\n" + "\n".join(OOPS[2:]),
    "\n".join(OOPS[:1] + OOPS[2:]), "\\x0a".join(OOPS[:2]) + "\n" + "\n".join(OOPS[2:]),
    "\n".join(f"| {line} |" for line in OOPS),
])  # fmt: skip
def test_an_oops_however_it_is_wrapped(text: str) -> None:
    log = Log(Text(text))
    (oops,) = [said for said in log if said.dump]
    assert oops.dump
    assert (oops.line and oops.line.kind, str(oops.dump.place)) == ("oops", "fifo_put+0x31/0x70 [fifo]")


def test_the_age_of_rotated_files() -> None:
    """The oldest first, as logrotate, savelog and pstore name them."""
    for right in (
        ["kern.log.10.gz", "kern.log.9.gz", "kern.log.2.gz", "kern.log.1", "kern.log"],
        ["messages-20260104.xz", "messages-20260111", "messages-20260118", "messages"],
        ["syslog-2026-01-04.gz", "syslog-2026-01-11", "syslog"],
        ["dmesg.4.gz", "dmesg.1.gz", "dmesg.0", "dmesg"],
        ["dmesg-efi_pstore-178285032803001", "dmesg-efi_pstore-178285032802001", "dmesg-efi_pstore-178285032801001",
         "dmesg-efi_pstore-178285099901001"],
    ):  # fmt: skip
        assert sorted(sorted(right), key=rotated.age) == right
        assert rotated.ordered(sorted(right)) == right
        assert len({rotated.family(name) for name in right}) == 1
