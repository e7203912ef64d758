"""No sentence of the kernel's is passed over by what looks at every line of every log first."""

from __future__ import annotations

from string import Formatter

import pytest

from splitlock.host.log.wrappings import matters
from splitlock.linux.log import lines
from splitlock.linux.sentences import SENTENCES, Sentence

FIELDS = {"comm": "a b", "pid": 7, "address": 0x401000, "sp": 1, "error": 0, "value": 0, "number": 1, "count": 3,
          "rate": 9, "name": "x", "function": "show_signal_msg", "place": ""}  # fmt: skip


def said(sentence: Sentence) -> str:
    names = {field for _, field, _, _ in Formatter().parse(sentence.template) if field}
    return sentence.format(**{name: FIELDS[name] for name in names})  # type: ignore[arg-type]  # by name


@pytest.mark.parametrize("sentence", SENTENCES, ids=[f"{one.kind}-{one.template[-30:]!r}" for one in SENTENCES])
def test_whole_and_cut(sentence: Sentence) -> None:
    """Whatever the grammar finds something in, whole or cut on the right, is looked at."""
    text = said(sentence)
    assert matters(text.encode())
    for end in range(1, len(text)):
        if list(lines(text[:end])):
            assert matters(text[:end].encode()), text[:end]
