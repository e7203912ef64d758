"""Is a record of a log parsed once, whoever asks what it says? A log may be nothing but heads of oopses."""

from __future__ import annotations

import pytest

from splitlock.linux import log
from splitlock.linux.oops import Collector, head


def test_a_record_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is asked about by the log's reader, the last oops and its own."""
    parsed: list[str] = []
    found = log._found

    def counted(text: str) -> object:
        parsed.append(text)
        return found(text)

    monkeypatch.setattr(log, "_found", counted)
    records = [f"[{at:5}.{at:06}] {word}" for at in range(1, 400) for word in ("Oops: Split lock detected", "other")]
    last: Collector | None = None
    for record in records:
        said = list(log.lines(record))
        if last and not last.again(record):
            last.feed(record)
        if head(record):
            last = Collector(record)
            assert [line.kind for line in said] == ["oops"]
    assert parsed == records[::2]
