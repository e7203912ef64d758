"""The stripped kernel in a package: its unwind table says where instructions start; findings do not depend on it."""

from __future__ import annotations

import pytest
from modules.debian import vmlinuz

from splitlock.image.bzimage import vmlinux
from splitlock.image.module import KernelImage
from splitlock.modules.scan import EXACT, Finding, scan


def by_place(findings: list[Finding]) -> dict[tuple[str, str | None, int | None], str]:
    return {(f.kind, f.section, f.offset): f.certainty for f in findings}


def test_findings_are_those_of_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = vmlinux(vmlinuz("cloud-amd64").read_bytes(), 512 << 20)
    image = KernelImage(raw)
    text = next(code for code in image.code if code.section == ".text")
    assert len(text.starts) > 300_000
    assert image.function(text, text.starts[7]) is None
    found = by_place(scan(raw, digest=False).findings)
    monkeypatch.setattr(KernelImage, "_unwind_places", [])
    swept = by_place(scan(raw, digest=False).findings)
    assert found.keys() == swept.keys()
    # a sweep from the start of 14 MB meets data somewhere, and what lies behind it is no longer certain
    certain = [list(each.values()).count(EXACT) for each in (found, swept)]
    assert certain[0] > 0.98 * len(found) > certain[1]
