"""The kernel's lines, in every spelling that was seen in the wild or is in Debian's kernels."""

from __future__ import annotations

import re
import time
import tomllib
from pathlib import Path
from string import Formatter
from typing import Any

import pytest
from guard.machine import kernel
from hypothesis import given
from hypothesis import strategies as st

from splitlock.host.explain.line import explain
from splitlock.linux.log import Line, lines, parse
from splitlock.linux.sentences import SENTENCES, Sentence

CORPUS: list[dict[str, Any]] = tomllib.loads(Path(__file__).with_name("lines.toml").read_text())["line"]


@pytest.mark.parametrize("entry", CORPUS, ids=[entry["text"][-50:] for entry in CORPUS])
def test_corpus(entry: dict[str, Any]) -> None:
    line = parse(entry["text"])
    if "kind" not in entry:
        assert line is None
        return
    assert line is not None
    expected = {"exception": "", "comm": "", "pid": 0, "address": None, "number": 1, "detail": "", **entry}
    text, guest = expected.pop("text"), expected.pop("guest", False)
    assert {key: getattr(line, key) for key in expected} == expected
    assert (
        text.strip() == f"{line.stamp} {line.text}".strip() or "x86/split lock detection" in text or line.text in text
    )
    assert explain(line, live=False).guest == guest


@pytest.mark.parametrize("kind", ["amd64", "xz"])
def test_every_format_in_a_kernel_is_known(kind: str) -> None:
    """What is in the kernel's own strings, filled in, is recognised, none of it as something unnamed."""
    text = kernel(kind).image.read_bytes()
    formats = {found[1].decode() for found in re.finditer(rb"(x86/split lock detection: [^\0]*)\n\0", text)}
    assert len(formats) >= 8
    for words in formats:
        filled = (
            words.replace("%s/%d", "a b/c/12").replace("%s split", "bogus split").replace("0x%lx", "0x7f0000001234")
        )
        filled = filled.replace("%u/sec", "20/sec").replace("%s", "")
        line = parse(f"[    1.000000] {filled}")
        assert line is not None
        assert line.kind != "unknown", words
        if line.kind == "mode":
            assert line.detail
        elif line.kind != "note":
            assert (line.comm, line.pid, line.address) == ("a b/c", 12, 0x7F0000001234)


SPOILT = "x86/split lock detection: "
FIELDS = {
    "comm": st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1, max_size=15).map(str.strip),
    "pid": st.integers(1, 4_194_304), "address": st.integers(0, (1 << 64) - 1), "sp": st.integers(0, (1 << 64) - 1),
    "error": st.integers(0, 0xFFFF), "value": st.integers(0, (1 << 64) - 1), "number": st.integers(1, 9999),
    "count": st.integers(1, 10**12 - 1), "rate": st.integers(1, 1000),
    "name": st.from_regex("[a-z_]{1,20}", fullmatch=True),
    "function": st.sampled_from(["show_signal", "show_signal_msg"]),
    "place": st.sampled_from(["", " in demo[401000+95000]", " in a b[1260,55d0c42c5000+1000]"]),
}  # fmt: skip


@st.composite
def said(draw: st.DrawFn) -> tuple[Sentence, dict[str, Any], str]:
    """A sentence with what is put into it."""
    sentence = draw(st.sampled_from(SENTENCES))
    names = [field for _, field, _, _ in Formatter().parse(sentence.template) if field]
    fields: dict[str, Any] = {name: draw(FIELDS[name]) for name in names}
    return sentence, fields, sentence.format(**fields)


def understood(line: Line, sentence: Sentence, fields: dict[str, Any]) -> bool:
    expected = {"comm": fields.get("comm", ""), "pid": fields.get("pid", 0), "address": fields.get("address"),
                "number": fields.get("count", 1)}  # fmt: skip
    got = {name: getattr(line, name) for name in expected}
    return (line.kind, line.exception) == (sentence.kind, sentence.exception) and got == expected


@given(said())
def test_what_is_formatted_is_understood(given_: tuple[Sentence, dict[str, Any], str]) -> None:
    """Every sentence with everything that may be in it, with what loggers put around it."""
    sentence, fields, text = given_
    for around in ("{}", "[    1.234567] {}", "Dec 27 00:11:17 host kernel: {}", '{{"MESSAGE": "{}"}}', "> {}\r"):
        found = list(lines(around.format(text)))
        assert len(found) == 1, (around, found)
        assert understood(found[0], sentence, fields), (around, found[0])


@given(st.lists(said(), min_size=2, max_size=5))
def test_several_in_a_text(many: list[tuple[Sentence, dict[str, Any], str]]) -> None:
    found = list(lines("\n".join(f"[    1.000001] {text}" for _, _, text in many)))
    assert len(found) == len(many)
    for line, (sentence, fields, _) in zip(found, many, strict=True):
        assert understood(line, sentence, fields)


@given(said(), st.data())
def test_what_is_cut_is_not_taken_for_nothing(
    given_: tuple[Sentence, dict[str, Any], str], data: st.DataObject
) -> None:
    """Of a line with the kernel's prefix, cut anywhere behind it: something is said, and never another task's trap."""
    sentence, fields, text = given_
    if not text.startswith(SPOILT):
        return
    cut = text[: data.draw(st.integers(len("x86/split lock"), len(text)))]
    found = list(lines(cut))
    assert found, cut
    assert found[0].kind in ("unknown", sentence.kind, "mode")
    if found[0].kind == "trap":
        assert (found[0].comm, found[0].pid) == (fields["comm"], fields["pid"])


@given(st.text())
def test_garbage_is_survived(text: str) -> None:
    list(lines(text))
    for words in ("x86/split lock detection: ", "x86/split lock detection: #AC: ", "traps: ", "callbacks suppressed"):
        list(lines(text + words + text))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r\r\n"])
@pytest.mark.parametrize("stamp", ["", "[    8.923347] "])
def test_an_oops_in_a_whole_console(stamp: str, end: str) -> None:
    """A console read as one text: the sentence goes on in the next line, behind a time."""
    told = ["Run /init as init process", "Oops: Split lock detected", ": 0000 [#1] SMP PTI", "CPU: 0 PID: 1 Comm: init"]
    assert [line.kind for line in lines("".join(stamp + line + end for line in told))] == ["oops"]


@pytest.mark.parametrize("text", [
    "[    2.000000] hdmi: pixel clock detected", "mmc0: bad block detected", "PLL lock detect timed out",
    "took a split second", "x86/split_lock_detect", "split", "checking ip: 1",
    "Kernel command line: split_lock_detect=off",
    "arch/x86/sp", "breakpoint trap at 0x1",
])  # fmt: skip
def test_words_of_others_are_no_piece_of_the_kernels(text: str) -> None:
    assert not list(lines(text))


def test_nothing_is_quadratic() -> None:
    """Hostile text: what costs more than one look at each of its characters would not end here."""
    for piece in ("#AC: ", "x86/split lock", "traps: a[1] trap alignment check ip:1 sp:1 error:0 in ", "show_signal: "):
        assert len(list(lines(piece * 20_000))) <= 20_000
    # a prefix is a piece of its own each time: 16 s when each looked for the line's end
    before = time.process_time()
    assert len(list(lines("x86/split lock detection: " * 100_000))) == 100_000
    assert time.process_time() - before < 8
