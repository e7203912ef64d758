"""The kernel's lines, in every spelling that was seen in the wild or is in Debian's kernels."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from guard.machine import kernel
from hypothesis import given
from hypothesis import strategies as st

from splitlock.host.explain import explain
from splitlock.kernel_log import parse

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
        if line.kind == "mode":
            assert line.detail or "offline handler" in words
        else:
            assert (line.comm, line.pid, line.address) == ("a b/c", 12, 0x7F0000001234)


@given(st.text())
def test_garbage_is_survived(text: str) -> None:
    parse(text)
    for words in ("x86/split lock detection: ", "x86/split lock detection: #AC: ", "traps: ", "callbacks suppressed"):
        parse(text + words + text)
